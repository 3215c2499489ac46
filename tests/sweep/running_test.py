"""Which runs of a sweep are made, skipped, resumed and tried again; at the end with real ones."""

import fcntl
import io
import json
import re
import signal
import threading

import pytest
from rich.console import Console

from offpolicy_rl.config import ConfigError
from offpolicy_rl.sweep import running, runs, summary
from offpolicy_rl.sweep.screen import Screen
from tests.run_system import processes, train_rows, wait_for
from tests.sweep.made import CARD, expand, finish, sweep_file


class Stub:
  """Stands for `running.run_process`: what was asked of it, and what happens to each run."""

  def __init__(self, meet=lambda: None, **fates):
    """`fates`: run002=... an exit code without being done, "wait" for the stop, or "finish".
    `meet`: called by every run that waits for the stop.
    """
    self.asked, self._meet, self._fates = [], meet, fates

  def __call__(self, line, run_dir, stop):
    self.asked.append((run_dir.name[:3], "--resume" in line))
    (run_dir / running.LOG).write_text("first\nlast words\n")
    fate = self._fates.get(f"run{run_dir.name[:3]}", "finish")
    if fate == "wait":
      self._meet()
      assert stop.wait(60)
    if fate == "finish":
      finish(run_dir)
    return fate if isinstance(fate, int) else 0


def execute(made: runs.Sweep, out, stub, *, stop=None, parallel=2, **flags):
  """(statuses in order, what the screen said)."""
  text = io.StringIO()
  screen = Screen(parallel, Console(file=text, width=200, highlight=False))
  out.mkdir(exist_ok=True)
  runs.write(made, out)
  found = running.execute(
    made,
    out,
    parallel=parallel,
    stop=stop or threading.Event(),
    screen=screen,
    run_one=stub,
    **flags,
  )
  return [found[run.name] for run in made.runs], text.getvalue()


def test_finished_runs_are_skipped_and_failed_ones_wait_to_be_retried(tmp_path):
  made = expand(tmp_path, "sweep.seeds(4)")
  out = tmp_path / "out"
  first = Stub(run001=7, run002=-9)
  found, said = execute(made, out, first)
  assert found == ["finished", "failed", "failed", "finished"]
  assert sorted(first.asked) == [("000", False), ("001", False), ("002", False), ("003", False)]
  assert "4 runs: 4 waiting; 4 to do, 2 at a time" in said
  assert re.search(rf"failed in 0:\d\d  001-seed=1 \({out}/001-seed=1/log.txt\)", said)
  page = summary.write(made, out)
  assert "`001-seed=1`: exit code 7 at 20" in page and "    last words" in page
  assert "`002-seed=2`: killed by SIGKILL at 20" in page

  again = Stub()
  assert execute(made, out, again)[0] == found and again.asked == []
  found, said = execute(made, out, again, retry_failed=True)
  assert found == ["finished"] * 4 and sorted(again.asked) == [("001", True), ("002", True)]
  assert "2 finished, 2 failed; 2 to do" in said and "4 finished" in said
  assert "Failed" not in summary.write(made, out)


def test_so_many_runs_are_at_work_at_a_time(tmp_path):
  made = expand(tmp_path, "sweep.seeds(6)")
  three, now, most = threading.Barrier(3, timeout=60), set(), []

  def stub(line, run_dir, stop):
    now.add(run_dir)
    three.wait()  # fewer would wait in vain
    most.append(len(now))
    three.wait()
    now.remove(run_dir)
    finish(run_dir)
    return 0

  assert execute(made, tmp_path / "out", stub, parallel=3)[0] == ["finished"] * 6
  assert most == [3] * 6


def test_stopping_ends_what_runs_begins_nothing_more_and_goes_on_later(tmp_path):
  made = expand(tmp_path, "sweep.seeds(5)")
  stop = threading.Event()
  both = threading.Barrier(2, action=stop.set, timeout=60)
  stub = Stub(both.wait, run001="wait", run002="wait")
  found, said = execute(made, tmp_path / "out", stub, stop=stop)
  assert found == ["finished", "interrupted", "interrupted", "waiting", "waiting"]
  assert said.count("ending all running runs") == 1 and "003" not in said
  stub = Stub()
  assert execute(made, tmp_path / "out", stub)[0] == ["finished"] * 5
  assert sorted(stub.asked) == [("001", True), ("002", True), ("003", False), ("004", False)]


def test_a_run_that_breaks_the_sweep_ends_the_others_in_order(tmp_path):
  made = expand(tmp_path, "sweep.seeds(3)")
  ended, begun = [], threading.Event()

  def stub(line, run_dir, stop):
    if run_dir.name.startswith("000"):
      assert begun.wait(60)
      raise OSError("disk full")
    begun.set()
    ended.append(stop.wait(60))
    return 0

  with pytest.raises(OSError, match="disk full"):
    execute(made, tmp_path / "out", stub)
  assert ended and all(ended)


def test_a_run_at_work_and_a_second_command_are_noticed(tmp_path):
  made = expand(tmp_path, "sweep.seeds(2)")
  out = tmp_path / "out"
  execute(made, out, Stub(run001=1))
  with (out / made.runs[1].name / running.LOG).open("ab") as log:
    fcntl.flock(log, fcntl.LOCK_SH)
    assert running.status(made.runs[1], out) == "running"
    with pytest.raises(ConfigError, match="001-seed=1 is running already"):
      execute(made, out, Stub())
  assert running.status(made.runs[1], out) == "failed"
  another = pytest.raises(ConfigError, match="another sweep command is at work")
  with running.locked(out), another, running.locked(out):
    pass


def test_runs_may_be_added_but_not_changed(tmp_path):
  out = tmp_path / "out"
  made = expand(tmp_path, 'sweep.grid({"lag.max_lag": [0, 16], "seed": [0]})')
  execute(made, out, Stub())
  wider = (
    'sweep.grid({"lag.max_lag": [0, 4, 16], "seed": [0, 1], "objective.name": ["beta_shift"]})'
  )
  more = runs.reconcile(expand(tmp_path, wider), out)
  assert [run.name for run in more.runs] == [
    "000-lag.max_lag=0",
    "002-lag.max_lag=0,seed=1",
    "003-lag.max_lag=4,seed=0",
    "004-lag.max_lag=4,seed=1",
    "001-lag.max_lag=16",
    "005-lag.max_lag=16,seed=1",
  ]
  stub = Stub()
  assert execute(more, out, stub)[0] == ["finished"] * 6
  assert [name for name, _ in sorted(stub.asked)] == ["002", "003", "004", "005"]
  assert runs.read(out).runs == more.runs and runs.reconcile(more, out) == more
  for returned, assignments, message in (
    ('[{"lag.max_lag": 0}]', [], "run 002-.* is not in this one; the closest differs in seed: 1 t"),
    (wider, [("learner.steps", "80")], "run 000-.* differs in learner.steps: 40 then, 80 now"),
  ):
    with pytest.raises(ConfigError, match=message):
      runs.reconcile(expand(tmp_path, returned, assignments), out)


# ---------------------------------------------------------------- real runs


@pytest.mark.long
def test_a_real_run_is_interrupted_and_goes_on_beside_another(tmp_path):
  out = tmp_path / "out"
  small = {
    "model.num_layers": 1,
    "warm_start.steps": 0,
    "learner.steps": 30,
    "evaluation.every": 0,
    "evaluation.problems": 1,
    "evaluation.samples": 1,
    "checkpoint.every": 1000,
    "lag.mode": "fixed",
    "lag.max_lag": 0,
    "learner.prompts_per_step": 4,
  }
  flags = ["sweep", f"--config={CARD}", f"--sweep={sweep_file(tmp_path, 'sweep.seeds(2)')}"]
  flags += [f"--out={out}", *(f"--config.{key}={value}" for key, value in small.items())]
  first, second = out / "000-seed=0", out / "001-seed=1"
  with processes() as launch:
    begun = launch(*flags)
    wait_for(lambda: len(train_rows(first)) >= 3, 120, "3 steps")
    begun.send_signal(signal.SIGINT)
    output, _ = begun.communicate(timeout=100)
    assert begun.returncode == 130, output
    assert "1 interrupted, 1 waiting" in output and "the same command continues" in output
    steps = len(train_rows(first))
    assert steps < 30 and (first / "checkpoints" / "steps" / str(steps)).exists()
    more = launch(*flags, "--parallel=2")
    output, _ = more.communicate(timeout=120)
  assert more.returncode == 0, output
  assert "1 interrupted, 1 waiting; 2 to do, 2 at a time" in output and "2 finished" in output
  for run_dir in (first, second):
    assert [row["step"] for row in train_rows(run_dir)] == list(range(30))
    assert "Traceback" not in (run_dir / "log.txt").read_text()
  assert "--resume" in (first / "log.txt").read_text().split(f"stopped after step {steps}")[1]
  found = json.loads((out / "summary.json").read_text())
  assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
