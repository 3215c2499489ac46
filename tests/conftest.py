"""Settings for every test, and the small pieces that many of them share."""

import os
import tempfile

from offpolicy_rl.system import compiled

# Before JAX starts: eight virtual devices for the sharding tests, silence from TensorFlow. Nearly
# all of the time goes into compiling what runs once, so nothing is optimised.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "").replace("--xla_backend_optimization_level=0", "")
  + " --xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests, workers and the processes they start compile the same programs, many of one operation, and
# so does the next session. What JAX's keys lack is in the directory's name, so none can be stale.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
  os.environ["JAX_COMPILATION_CACHE_DIR"]  # of the process that has started this worker
  if "PYTEST_XDIST_WORKER" in os.environ
  else str(compiled.user_directory("compiled-tests") or tempfile.mkdtemp(prefix="offpolicy-rl-"))
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import gc
import pathlib
import signal

import jax
import pytest

from offpolicy_rl import config as config_lib
from tests.cpu_times import pytest_addoption, pytest_runtest_protocol  # noqa: F401 (hooks)

ROOT = pathlib.Path(__file__).parent.parent

jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8
# Processes that tests start have one device, as users' have; its number is in a program's key.
XLA_FLAGS = os.environ["XLA_FLAGS"].removesuffix(" --xla_force_host_platform_device_count=8")
os.environ["XLA_FLAGS"] = XLA_FLAGS


@pytest.fixture
def tiny_config():
  """configs/test.py: the hermetic task and a tiny model, unlocked values may be changed."""
  return config_lib.load(str(ROOT / "configs" / "test.py"))


@pytest.fixture(autouse=True)
def signals():
  """A command line run in this process hears them its own way; afterwards they are as before."""
  numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU]
  before = {number: signal.getsignal(number) for number in numbers}
  yield
  for number, handler in before.items():
    if handler is not None and signal.getsignal(number) is not handler:
      signal.signal(number, handler)


# Files that take longest are begun first: no worker is left alone with one at the end. Those of
# whole runs come before those of `make test`, which had 20 to 100 CPU seconds each.
LONGEST = (
  "several_processes_test.py",
  "resume_test.py",
  "cards_test.py",
  "lora_test.py",
  "colab_test.py",
  "end_to_end_test.py",
  "lag_lab_test.py",
  "elastic_test.py",
  "step_test.py",
  "objectives_test.py",
  "chaos_test.py",
  "running_test.py",
  "docs_test.py",
  "local_test.py",
  "lora_step_test.py",
  "golden_test.py",
  "masked_test.py",
  "pretrained_test.py",
  "engine_test.py",
  "attention_test.py",
  "checkpoint_test.py",
  "reductions_test.py",
  "config_json_test.py",
  "poison_test.py",
  "chunks_test.py",
  "paged_kernel_test.py",
  "induced_target_test.py",
  "mixture_test.py",
  "smollm2_test.py",
  "evaluate_test.py",
  "sampling_test.py",
)


def pytest_collection_modifyitems(items):
  """The longest files first; the others in their order."""
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
  """Thousands of collected tests stay: no garbage collection looks through them again."""
  gc.collect()
  gc.freeze()
