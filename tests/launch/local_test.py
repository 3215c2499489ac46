"""launch/local.sh with a program that only waits, and notes its arguments and its signals."""

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest

from offpolicy_rl.cli import flags
from tests import run_system as system
from tests.launch.desk import LAUNCH, accepted

# Notes its arguments and its signals, and ends with the code in ROLE.exit once that file is there.
# Like the real one it hears SIGINT even where the shell had it ignored.
PROGRAM = f"""#!{sys.executable} -IS
import os, pathlib, signal, sys, threading, time

notes, role = pathlib.Path(os.environ["NOTES"]), sys.argv[1]
name, code = f"{{role}}-{{os.getpid()}}", notes / f"{{role}}.exit"

def note(number, _):
  with (notes / f"{{name}}.signals").open("a") as file:
    file.write(signal.Signals(number).name + " ")
  if number == signal.SIGTERM:
    time.sleep(0.3)  # where a second signal would be heard
    sys.exit(0)

for number in (signal.SIGINT, signal.SIGTERM):
  signal.signal(number, note)
def watch():
  os.read(int(os.environ["OFFPOLICY_RL_PARENT"]), 1)
  os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=watch, daemon=True).start()
(notes / f"{{name}}.new").write_text(" ".join(sys.argv[1:]))
(notes / f"{{name}}.new").rename(notes / f"{{name}}.arguments")
while not code.exists():
  time.sleep(0.05)
sys.exit(int(code.read_text()))
"""


@pytest.fixture
def heard_sigint():
  """As at a terminal: no shell traps what it inherits ignored, as it does in the background."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def end(notes, role: str, code: int):
  """Ends the processes of a role; they see the file only with its content."""
  (notes / f"{role}.new").write_text(str(code))
  (notes / f"{role}.new").rename(notes / f"{role}.exit")


@pytest.fixture
def local(tmp_path, heard_sigint):
  """Starts the script; whatever is left of it ends with the test."""
  folder = tmp_path / "bin"
  folder.mkdir()
  (folder / "offpolicy-rl").write_text(PROGRAM)
  (folder / "offpolicy-rl").chmod(0o755)
  always = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(tmp_path)}
  begun = []

  def start(*arguments: str, **env: str):
    begun.append(
      subprocess.Popen(
        [*system.HEARING_HANGUPS, LAUNCH / "local.sh", f"--run_dir={tmp_path}/run", *arguments],
        text=True,
        env=always | env,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
      )
    )
    return begun[-1]

  yield start
  for role in ("learner", "sampler"):
    end(tmp_path, role, 0)
  for script in begun:
    script.communicate(timeout=60)


def started(tmp_path, count: int) -> list:
  """What each process was told, once so many are there."""
  files = lambda: sorted(tmp_path.glob("*.arguments"))
  system.wait_for(lambda: len(files()) == count, 60, f"{count} processes")
  return [accepted(shlex.split(file.read_text())) for file in files()]


def test_all_are_started_and_the_script_ends_with_them(local, tmp_path):
  script = local("--learners=2", "--samplers=3", "--port=6000", "--config=configs/test.py")
  roles = started(tmp_path, 5)
  learners = [role for role in roles if role.role == "learner"]
  samplers = [role for role in roles if role.role == "sampler"]
  assert sorted(role.process_id for role in learners) == [0, 1] and len(samplers) == 3
  for role in learners:
    assert (role.coordinator, role.num_processes) == ("127.0.0.1:6001", 2)
    assert (role.listen, role.config) == ("127.0.0.1:6000", "configs/test.py")
  assert {role.learner for role in samplers} == {"127.0.0.1:6000"}
  assert {role.weights_dir for role in roles} == {f"{tmp_path}/run-weights"}
  assert len({role.name for role in samplers}) == 3
  for role in ("learner", "sampler"):
    end(tmp_path, role, 0)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 0 and f"done: {tmp_path}/run" in output
  [command] = re.findall("follow it with: offpolicy-rl (.*)", output)
  assert flags.parser("").parse_args(command.split()).run == f"{tmp_path}/run"


def test_a_dry_run_prints_the_commands_and_starts_none(local, tmp_path):
  script = local("--dry-run", "--learners=2", "--samplers=1", '--config.task.mixture={"a b": 1}')
  printed, _ = script.communicate(timeout=60)
  commands = [shlex.split(line) for line in printed.splitlines()]
  assert [command[0] for command in commands] == ["offpolicy-rl"] * 3
  roles = [accepted(command[1:]) for command in commands]
  assert [role.role for role in roles] == ["learner", "learner", "sampler"]
  assert script.returncode == 0 and not list(tmp_path.glob("*.arguments"))
  assert not (tmp_path / "run").exists()


def test_a_process_that_fails_ends_the_others_and_the_script(local, tmp_path):
  script = local("--config=configs/test.py")
  started(tmp_path, 4)
  end(tmp_path, "sampler", 3)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 3 and "ended with exit code 3" in output
  assert len(list(tmp_path.glob("learner-*.signals"))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_reaches_each_process_once_and_as_sigterm(local, tmp_path, number):
  """A second signal would end them without a checkpoint."""
  script = local("--config=configs/test.py")
  started(tmp_path, 4)
  os.killpg(script.pid, number)  # as a terminal does
  script.communicate(timeout=60)
  assert script.returncode == 130
  assert [file.read_text() for file in tmp_path.glob("*.signals")] == ["SIGTERM "] * 4


def test_ctrl_c_just_after_a_process_was_started_reaches_it_too(local, tmp_path):
  """Before the script has noted which one it is: it must not be waited for without a signal."""
  hook = tmp_path / "hook.bash"
  hook.write_text(
    r"""set -T
trap 'case $BASH_COMMAND in
  *"\$!"*) while ! compgen -G "$NOTES/*.arguments" > /dev/null; do :; done; kill -INT $$;;
esac' DEBUG
"""
  )
  script = local("--config=configs/test.py", BASH_ENV=str(hook))
  script.communicate(timeout=60)
  assert script.returncode == 130
  heard = [file.read_text() for file in tmp_path.glob("*.signals")]
  assert heard == ["SIGTERM "] * len(list(tmp_path.glob("*.arguments"))) and heard


def test_nobody_outlives_the_script(local, tmp_path):
  script = local("--config=configs/test.py")
  started(tmp_path, 4)
  script.kill()
  heard = lambda: [file.read_text() for file in tmp_path.glob("*.signals")]
  system.wait_for(lambda: heard() == ["SIGTERM "] * 4, 60, "the end of all")
  script.communicate(timeout=60)


def test_who_ends_in_order_is_said(local, tmp_path):
  script = local("--config=configs/test.py", "--samplers=1", "--learners=1")
  started(tmp_path, 2)
  for role in ("sampler", "learner"):
    end(tmp_path, role, 0)
  output, _ = script.communicate(timeout=60)
  assert script.returncode == 0
  assert f"sampler-0 ended with exit code 0; see {tmp_path}/run/logs/sampler-0.log" in output


def test_wrong_arguments_are_named(local):
  for arguments, message in (
    (["--learners=two"], "--learners: got two, expected a number from 1"),
    (["--samplers=0"], "--samplers: got 0, expected a number from 1"),
    (["--run_dir="], "--run_dir: missing, expected the directory"),
  ):
    script = local(*arguments)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 2 and message in output
