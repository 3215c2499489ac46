"""launch/sky: the tasks against SkyPilot's schema, their scripts, and sky.sh against a stand-in."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml

from tests.launch.desk import LAUNCH, accepted, ok
from tests.params import some

TASKS = {
  role: yaml.safe_load((LAUNCH / "sky" / f"{role}.yaml").read_text())
  for role in ("learner", "sampler")
}
# The fields that we use, as SkyPilot 0.14.1 has them (sky/utils/schemas.py); any other is refused.
# Both tasks were checked with all of that schema once, by hand.
_TEXT = {"type": "string"}
TASK = {
  "type": "object",
  "additionalProperties": False,
  "properties": {
    "name": _TEXT,
    "workdir": _TEXT,
    "resources": {
      "type": "object",
      "additionalProperties": False,
      "properties": {
        "accelerators": _TEXT,
        "disk_size": {"type": "integer"},
        "ports": {"type": "integer"},
        "use_spot": {"type": "boolean"},
      },
    },
    "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    "file_mounts": {"type": "object"},
    "setup": _TEXT,
    "run": _TEXT,
  },
}
TASK_FLAGS = ["--gpus", "--env", "--detach-run", "--yes"]
SKY = {
  "launch": ["--cluster", "--num-nodes", *TASK_FLAGS],
  "jobs launch": ["--name", *TASK_FLAGS],
  "jobs cancel": ["--name", "--yes"],
  "status": ["--ip"],
  "cancel": ["--all", "--yes"],
  "down": ["--yes"],
}
NODES = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}


@pytest.fixture
def sky(desk, tmp_path):
  """sky.sh for a run called q, in a project that has credentials."""
  project = tmp_path / "project"
  shutil.copytree(LAUNCH / "sky", project / "launch" / "sky")
  (project / "certs").mkdir()
  (project / "certs" / "token").touch()
  script = project / "launch" / "sky" / "sky.sh"
  desk.stub("sky", SKY, {"status": ["10.0.0.1"]})
  return lambda *words, **env: desk.run(script, *words, **({"NAME": "q", "BUCKET": "gs://b"} | env))


@pytest.mark.parametrize("role", TASKS)
def test_tasks_are_what_skypilot_accepts(role):
  jsonschema.validate(TASKS[role], TASK)
  with pytest.raises(jsonschema.ValidationError, match="use_sport"):
    wrong = TASKS[role]["resources"] | {"use_sport": True}
    jsonschema.validate(TASKS[role] | {"resources": wrong}, TASK)
  mounted = [source for source in TASKS[role]["file_mounts"].values() if isinstance(source, str)]
  assert "certs/ca.key" not in mounted and len(mounted) == 4


@pytest.mark.parametrize("role", TASKS)
def test_shellcheck_has_nothing_to_say(role):
  program = pathlib.Path(sys.executable).with_name("shellcheck")
  script = TASKS[role]["setup"] + "\n" + TASKS[role]["run"]
  ok(subprocess.run([program, "-s", "bash", "-"], input=script, capture_output=True, text=True))


def started(desk, tmp_path, role: str, **env: str):
  """What offpolicy-rl reads from the flags that a task gives it on a node."""
  program = tmp_path / ".venv" / "bin" / "offpolicy-rl"
  program.parent.mkdir(parents=True, exist_ok=True)
  program.write_text(f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
  program.chmod(0o755)
  script = tmp_path / "run.sh"
  script.write_text("#!/usr/bin/env bash\n" + TASKS[role]["run"])
  script.chmod(0o755)
  words = json.loads(ok(desk.run(script, cwd=tmp_path, HOME=str(tmp_path), RUN="q", **env)))
  return words, accepted(words)


def test_a_learner_of_several_nodes_numbers_its_processes(desk, tmp_path):
  mixture = '--config.task.mixture={"a b": 1}'
  flags = shlex.join(["--config=configs/test.py", mixture])
  node = NODES | {"SKYPILOT_NODE_RANK": "1"}
  words, trains = started(desk, tmp_path, "learner", EXTRA="cuda", FLAGS=flags, **node)
  assert (trains.coordinator, trains.num_processes, trains.process_id) == ("10.0.0.1:8482", 2, 1)
  assert words[-1] == mixture and trains.resume
  assert trains.weights_dir == "/shared/q/weights" and trains.run_dir == f"{tmp_path}/q"
  _, on_tpu = started(desk, tmp_path, "learner", EXTRA="tpu", FLAGS=flags)
  assert (on_tpu.coordinator, on_tpu.num_processes) == ("auto", None)


def test_a_sampler_finds_the_learner(desk, tmp_path):
  _, samples = started(desk, tmp_path, "sampler", LEARNER="10.0.0.1")
  assert (samples.learner, samples.tls_server_name) == ("10.0.0.1:50051", "learner")
  assert samples.weights_dir == "/shared/q/weights"


def test_commands(desk, sky):
  ok(sky("learner", "--config=configs/test.py", NODES="2", GPUS="tpu-v6e-16"))
  ok(sky("samplers", SAMPLERS="1"))
  ok(sky("stop", SAMPLERS="1"))
  ok(sky("delete", SAMPLERS="1"))
  launch, _, sampler, *ends = desk.argvs("sky")
  assert launch[:3] == ["launch", "--cluster=q", "--num-nodes=2"]
  assert {"--gpus=tpu-v6e-16", "--env=EXTRA=tpu", "--env=FLAGS=--config=configs/test.py "} <= set(
    launch
  )
  assert sampler[:3] == ["jobs", "launch", "--name=q-sampler-0"]
  assert {"--env=LEARNER=10.0.0.1", "--env=EXTRA=cuda", "--env=BUCKET=gs://b"} <= set(sampler)
  assert [call[:2] for call in ends] == [["jobs", "cancel"], ["cancel", "--all"]] + [
    ["jobs", "cancel"],
    ["down", "--yes"],
  ]
  for call, role in ((launch, "learner"), (sampler, "sampler")):
    given = {word.split("=")[1] for word in call if word.startswith("--env=")}
    assert given >= {name for name, value in TASKS[role]["envs"].items() if value is None}


@pytest.mark.parametrize("command", some(["samplers"], ["learner", "stop", "delete"]))
def test_a_dry_run_prints_and_runs_nothing(desk, sky, command):
  flags = ["--config=x.py"] if command == "learner" else []
  lines = [shlex.split(line) for line in ok(sky(command, *flags, "--dry-run")).splitlines()]
  assert desk.argvs("sky") == []
  printed = [line[1:] for line in lines if line[0] == "sky"]
  assert printed
  for words in printed:  # each is a command that the tool knows
    ok(desk.run(desk.folder / "sky", *words))


@pytest.mark.parametrize(
  ("words", "env", "message"),
  [
    (["fly"], {}, "got fly, expected learner, samplers, stop or delete"),
    (["learner"], {}, "learner: got no flags, expected at least --config=FILE"),
    (["delete", "--dryrun"], {}, "delete: got --dryrun, expected nothing behind it"),
    (["samplers"], {"NAME": ""}, "NAME: missing"),
    (["samplers"], {"BUCKET": "b"}, "BUCKET: got 'b', expected such as gs://mine"),
  ],
)
def test_what_is_missing_is_named(desk, sky, words, env, message):
  done = sky(*words, **env)
  assert done.returncode == 2 and message in done.stderr and desk.argvs("sky") == []
