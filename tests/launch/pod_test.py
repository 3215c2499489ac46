"""launch/pod.sh, as a pod of a JobSet runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.desk import LAUNCH, accepted, ok

# Notes its arguments; with an argument --wait it ends well when it is told to, as the learner does.
PROGRAM = f"""#!{sys.executable} -IS
import json, os, pathlib, signal, sys, time

here = pathlib.Path(sys.argv[0]).parent
signal.signal(signal.SIGTERM, lambda *_: (here / "told").touch() or sys.exit(0))
(here / "argv").write_text(json.dumps(sys.argv[1:]))
code = [int(word.split("=")[1]) for word in sys.argv if word.startswith("--exit=")]
time.sleep(60 if "--wait" in sys.argv else 0)
sys.exit(*code)
"""


@pytest.fixture
def pod(desk, tmp_path):
  """Runs the script with a program that only notes what it gets."""
  program = desk.folder / "offpolicy-rl"
  program.write_text(PROGRAM)
  program.chmod(0o755)
  return lambda *words, **env: desk.run("pod.sh", *words, LOCAL=str(tmp_path / "local"), **env)


def test_the_first_process_keeps_waiting_groups_on_its_own_disk(pod, desk, tmp_path):
  for index, slice_id in (("0", "0"), ("1", "0"), ("0", "1"), ("0", "0")):  # at last: started again
    run = tmp_path / f"run{index}{slice_id}"
    ok(pod(str(run), "--seed", JOB_COMPLETION_INDEX=index, MEGASCALE_SLICE_ID=slice_id))
    assert (run / "groups").is_symlink() == (index == slice_id == "0")
  assert (tmp_path / "run00" / "groups").resolve() == tmp_path / "local" / "groups"
  role, *words = json.loads((desk.folder / "argv").read_text())
  given = accepted([role, *words[:-1]])
  assert (role, given.coordinator, given.resume, words[-1]) == ("learner", "auto", True, "--seed")
  assert given.run_dir == str(run)


def test_a_run_on_the_pods_own_disk_needs_no_link(pod, tmp_path):
  ok(pod(str(tmp_path / "local" / "run")))
  assert not (tmp_path / "local" / "run" / "groups").exists()


def test_exit_codes_are_passed_on(pod, tmp_path):
  assert pod(str(tmp_path / "run"), "--exit=2").returncode == 2, "wrong flags"


def test_an_interrupted_run_is_not_a_finished_one(pod, desk, tmp_path):
  """Exit code 0 would end the JobSet; the program is waited for, as it writes a checkpoint."""
  env = {"PATH": str(desk.folder), "LOCAL": str(tmp_path / "local")}
  script = subprocess.Popen([LAUNCH / "pod.sh", str(tmp_path / "run"), "--wait"], env=env)
  while not (desk.folder / "argv").exists():
    time.sleep(0.05)
  os.kill(script.pid, signal.SIGTERM)
  assert script.wait(timeout=30) == 143 and (desk.folder / "told").exists()
