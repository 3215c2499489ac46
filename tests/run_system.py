"""Learners and samplers as real processes: starting, watching, killing, reading what they left."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from benchmarks import chaos
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import replies, schedule
from tests.conftest import ROOT

STEPS = 32
HEARING_HANGUPS = ("env", "--default-signal=HUP")  # before a command; we may run under nohup
SHORT_RUN = [
  "--config=configs/test.py",
  "--config.warm_start.steps=40",
  f"--config.learner.steps={STEPS}",
  "--config.checkpoint.every=7",
  "--config.evaluation.every=13",
]


def start(*arguments: str, cwd=ROOT, **environment: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", "offpolicy_rl.cli.main", *arguments],
    cwd=cwd,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


@contextlib.contextmanager
def processes():
  """Whatever is started through this ends with the test."""
  started = []

  def launch(*arguments, **environment):
    started.append(start(*arguments, **environment))
    return started[-1]

  try:
    yield launch
  finally:
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def wait_for(condition, seconds: float, what: str):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, f"waited {seconds} s for {what}"
    time.sleep(0.05)


def train_rows(run_dir):
  return [row for row in metrics.read(run_dir) if row["kind"] == "train"]


def ledger_of(run_dir) -> dict:
  return json.loads((run_dir / "ledger.json").read_text())


def assert_identical(a: dict, b: dict):
  """The same names and bits."""
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def run_through(run_dir, *settings):
  """A run that nobody disturbs."""
  run_local(*SHORT_RUN, *settings, f"--run_dir={run_dir}")


def assert_ends_well(process, *, seconds: float):
  """Exit code 0 within so long; else says what the process printed."""
  try:
    output, _ = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGABRT)  # with what each thread does, by faulthandler
    output, _ = process.communicate(timeout=30)
    raise AssertionError(f"still there after {seconds} s: {output}") from None
  assert process.returncode == 0, output


def run_with_kills(run_dir, settings, kills):
  """A run whose learner ("l"), samplers ("s") or all processes ("b") are killed on the way.

  kills: {step: who}. One sampler replaces those that died; the learner resumes at its old address.
  """
  arguments = ["learner", *SHORT_RUN, *settings, f"--run_dir={run_dir}"]
  with processes() as launch:
    learner = launch(*arguments)
    wait_for((run_dir / "address").exists, 90, "the learner's address")
    address = (run_dir / "address").read_text()
    join = lambda i: launch("sampler", f"--learner={address}", f"--name=s{i}")
    samplers = [join(i) for i in range(2)]
    for step, who in kills.items():
      wait_for(lambda step=step: len(train_rows(run_dir)) > step, 120, f"step {step}")
      if who in "lb":
        kill(learner)
      if who in "sb":
        for _ in samplers[:] if who == "b" else samplers[:1]:
          kill(samplers.pop(0))
        samplers.append(join(step))
      if who in "lb":
        learner = launch(*arguments, "--resume", f"--listen={address}")
        wait_for(lambda step=step: len(train_rows(run_dir)) > step, 120, f"step {step} again")
    output, _ = learner.communicate(timeout=200)
    assert learner.returncode == 0, output
    for sampler in samplers:
      assert_ends_well(sampler, seconds=30)


def kill(process):
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def schedule_rows(run_dir):
  return [json.loads(line) for line in (run_dir / schedule.FILE).read_text().splitlines()]


def deterministic(row: dict) -> dict:
  """What of a metrics row does not measure time or how far samplers were."""
  timing = (
    "seconds/",
    "episode/seconds_",
    "ticket/",
    "sampler/",
    "lag/in_",
    "mismatch/",
    "alarm/mismatch",
    "alarm/sampler",
    "flops_per_second",
    "compilations",
  )
  return {key: value for key, value in row.items() if not key.startswith(timing)}


def replay(run_dir, again, *settings):
  """A recorded run, repeated."""
  run_local(f"--replay={run_dir}/{schedule.FILE}", *settings, f"--run_dir={again}")


def run_local(*arguments: str, seconds: float = 200, cwd=ROOT, **environment: str) -> str:
  """A run with all its processes, to its end; returns what they printed."""
  with processes() as launch:
    local = launch("local", *arguments, cwd=cwd, **environment)
    output, _ = local.communicate(timeout=seconds)
  assert local.returncode == 0, output
  return output


def schedule_of(run_dir):
  """Digests and replacements of every step."""
  return [(row["digests"], row["attempts"]) for row in schedule_rows(run_dir)[1:]]


def assert_same_training(found, expected):
  """The same weights at the end, by the same groups in the same order."""
  assert_identical(chaos.parameters(found), chaos.parameters(expected))
  assert schedule_of(found) == schedule_of(expected)


def assert_same_metrics(found, expected):
  """Those of every step, apart from what measures time."""
  rows = [[deterministic(row) for row in train_rows(folder)] for folder in (found, expected)]
  assert rows[0] and rows[0] == rows[1]


def kill_resume_replay(folder, settings, kills, *gone):
  """Kills and resumes a run with fixed lag, replays it without its environment; all are equal.

  Args:
    gone: flags without which the replay would have its environment.

  Returns:
    directories of the run that was killed and of an undisturbed one.
  """
  fixed = [*settings, "--config.lag.mode=fixed", "--config.lag.max_lag=3"]
  found, expected, again = (folder / name for name in ("run", "undisturbed", "again"))
  run_through(expected, *fixed)
  run_with_kills(found, fixed, kills)
  replay(found, again, *gone)
  assert_same_training(found, expected)
  assert_same_training(again, expected)
  assert_same_metrics(found, expected)
  said = [sorted((run / replies.FILE).read_text().splitlines()) for run in (again, found)]
  assert said[0] == said[1]
  return found, expected
