"""`local` with stand-ins for learner and samplers: who is replaced, what is said, who is left."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from offpolicy_rl.roles import local
from offpolicy_rl.system import children
from tests.conftest import ROOT
from tests.run_system import HEARING_HANGUPS, wait_for

STUB = str(pathlib.Path(__file__).with_name("local_stub.py"))
PARENT = f"""
import functools, pathlib, sys
from offpolicy_rl.system import children, signals
from offpolicy_rl.roles import local
stop, start = signals.stop_event(), functools.partial(
  children.start, command=(sys.executable, {STUB!r}))
code = local.run([], run_dir=pathlib.Path(sys.argv[1]), samplers=2, stop=stop, sampler_args=[],
                 start=start)
sys.exit(130 if stop.is_set() and code == 0 else code)
"""


def pids(notes, role: str) -> list[int]:
  """Of those that began, in no order."""
  return [int(path.name.partition("-")[2]) for path in notes.glob(f"{role}-*[0-9]")]


def alive(pid: int) -> bool:
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
  except FileNotFoundError:
    return False


@pytest.fixture
def notes(tmp_path, monkeypatch):
  """The directory where stand-ins leave notes; whatever is left of them ends with the test."""
  monkeypatch.setenv("NOTES", str(tmp_path))
  (tmp_path / "run").mkdir()
  yield tmp_path
  for role in ("learner", "sampler"):
    for pid in pids(tmp_path, role):
      if alive(pid):
        os.kill(pid, signal.SIGKILL)


class Local:
  """`local.run` in a thread."""

  def __init__(self, notes):
    self.stop, self.code = threading.Event(), None
    start = functools.partial(children.start, command=(sys.executable, STUB))
    run = functools.partial(
      local.run, [], run_dir=notes / "run", samplers=1, stop=self.stop, sampler_args=[], start=start
    )
    self._thread = threading.Thread(target=lambda: setattr(self, "code", run()))
    self._thread.start()
    wait_for(lambda: pids(notes, "sampler"), 20, "a sampler")

  def ended(self) -> int:
    self._thread.join(20)
    assert not self._thread.is_alive()
    return self.code


@pytest.mark.parametrize(
  ("number", "why"),
  [
    (signal.SIGTERM, "it was asked to stop, exit code 0"),
    (signal.SIGKILL, "killed by SIGKILL; by the kernel, for lack of memory?"),
  ],
)
def test_a_sampler_that_ends_while_the_run_goes_on_is_replaced(notes, capfd, number, why):
  run = Local(notes)
  [first] = pids(notes, "sampler")
  os.kill(first, number)
  wait_for(lambda: len(pids(notes, "sampler")) == 2, 20, "another sampler")
  (notes / "learner.exit").write_text("0")
  assert run.ended() == 0
  assert not any(map(alive, pids(notes, "sampler")))
  assert capfd.readouterr().err == (
    f"sampler 0 ended ({why}) while the run goes on; starting another\n"
  )


def test_samplers_that_keep_ending_for_one_reason_end_the_run_with_it(notes, capfd, monkeypatch):
  monkeypatch.setattr(local, "_MAX_ENDS", 2)
  run = Local(notes)
  (notes / "sampler.exit").write_text("3")
  assert run.ended() == 1 and not run.stop.is_set()
  log = notes / "run" / "sampler-0.log"
  assert capfd.readouterr().err.splitlines()[1:] == [
    f"sampler 0 ended (exit code 3) 2 times within 0 minutes; {log} ends with: last words of a "
    "sampler",
    f"so the run was ended, with a checkpoint; continue with offpolicy-rl "
    f"local --resume --run_dir={notes}/run",
  ]
  assert len(pids(notes, "sampler")) == 2


def test_a_sampler_that_can_never_go_on_ends_the_run_at_once(notes, capfd):
  run = Local(notes)
  (notes / "sampler.exit").write_text("2")
  assert run.ended() == 1
  log = notes / "run" / "sampler-0.log"
  line = capfd.readouterr().err.splitlines()[0]
  assert line == f"sampler 0 can't go on; {log} ends with: last words of a sampler"
  assert len(pids(notes, "sampler")) == 1


def booked(monkeypatch, slot, seconds: float, why: str):
  """(why the run has to end, pause) after a sampler's end at that time."""
  monkeypatch.setattr(time, "monotonic", lambda: seconds)
  problem = slot._ended(why)
  return problem, slot.not_before - seconds


def test_ends_count_by_reason_and_rate(monkeypatch):
  a_day = local._SamplerSlot(0, pathlib.Path("run"))
  for hour in range(24):
    assert booked(monkeypatch, a_day, hour * 3600.0, "killed by SIGKILL") == (None, 0)
  reasons = local._SamplerSlot(1, pathlib.Path("run"))
  for i in range(10):
    assert booked(monkeypatch, reasons, i * 60.0, f"exit code {i % 2}")[0] is None
  quick = local._SamplerSlot(2, pathlib.Path("run"))
  found = [booked(monkeypatch, quick, 1000.0 + i, "exit code 1") for i in range(6)]
  assert [pause for _, pause in found[:5]] == [0, 1, 3, 7, 15]
  assert [problem is None for problem, _ in found] == [True] * 5 + [False]
  assert "sampler 2 ended (exit code 1) 6 times within 0 minutes" in found[5][0]


@pytest.mark.parametrize(
  ("hurt", "code", "said"),
  [
    (signal.SIGKILL, 137, "the learner ended (killed by SIGKILL; by the kernel, for lack of memor"),
    (
      signal.SIGTERM,
      130,
      "someone else asked the learner to stop; continue with offpolicy-rl local --resume --run_d",
    ),
    (7, 7, "the learner ended (exit code 7); continue with offpolicy-rl local --resume --run_dir="),
  ],
)
def test_a_learner_that_ends_is_spoken_of(notes, capfd, hurt, code, said):
  run = Local(notes)
  if hurt == 7:
    (notes / "learner.exit").write_text("7")
  else:
    os.kill(pids(notes, "learner")[0], hurt)
  assert run.ended() == code
  err = capfd.readouterr().err
  assert err.startswith(said)
  assert ("--config.learner.microbatches=2" in err) == (hurt == signal.SIGKILL)
  assert not any(map(alive, pids(notes, "sampler")))


def test_a_run_that_is_asked_to_stop_says_so_at_once(notes, capfd):
  """The learner may have a long step or an evaluation before it."""
  run = Local(notes)
  run.stop.set()
  assert run.ended() == 0
  assert capfd.readouterr().err == (
    "stopping after the current step or evaluation, with a checkpoint; again to stop at once\n"
  )


def test_the_directory_of_a_printed_command_is_one_word(notes, capfd):
  spaced = notes / "a run [1"
  spaced.mkdir()
  local._exit_code(7, spaced, stopped=False, problem=None)
  assert capfd.readouterr().err.endswith(
    f"continue with offpolicy-rl local --resume --run_dir='{spaced}'\n"
  )


def test_the_address_of_an_earlier_run_is_left_alone(notes):
  """Another `local` on this directory may still need it, whose learner then refuses ours."""
  (notes / "run" / "address").write_text("old")
  run = Local(notes)
  [told] = [path.read_text() for path in notes.glob("sampler-*[0-9]")]
  assert "--learner=127.0.0.1:1 " in told
  run.stop.set()
  assert run.ended() == 0


@pytest.mark.parametrize(
  ("signals", "code"),
  [
    ([signal.SIGHUP], 130),
    ([signal.SIGHUP, signal.SIGHUP], 130),
    ([signal.SIGINT, signal.SIGTERM], 130),
    ([signal.SIGKILL], -9),
  ],
)
def test_nobody_is_left_behind(notes, signals, code):
  parent = subprocess.Popen(
    [*HEARING_HANGUPS, sys.executable, "-c", PARENT, str(notes / "run")],
    cwd=ROOT,
    start_new_session=True,
  )
  wait_for(lambda: len(pids(notes, "sampler")) == 2, 20, "two samplers")
  for number in signals:
    os.kill(parent.pid, number)
    time.sleep(0.02)
  assert parent.wait(20) == code
  everybody = pids(notes, "sampler") + pids(notes, "learner")
  wait_for(lambda: not any(map(alive, everybody)), 20, "the children's end")
  assert (notes / "run" / "live.json").read_text() == '{"ended": "stopped"}'  # all in order


def test_nohup_is_respected(notes):
  ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"]
  parent = subprocess.Popen(
    [*ignoring, sys.executable, "-c", PARENT, str(notes / "run")], cwd=ROOT, start_new_session=True
  )
  wait_for(lambda: len(pids(notes, "sampler")) == 2, 20, "two samplers")
  os.kill(parent.pid, signal.SIGHUP)
  time.sleep(0.3)
  assert parent.poll() is None
  (notes / "learner.exit").write_text("0")
  assert parent.wait(20) == 0


def test_words_for_ends():
  assert children.describe(3) == "exit code 3"
  assert children.describe(-11) == children.describe(139) == "killed by SIGSEGV"
  assert children.describe(130) == "interrupted, exit code 130"
  assert [children.exit_code(code) for code in (0, 2, -9, -15)] == [0, 2, 137, 143]
