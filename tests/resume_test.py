"""A run that was killed goes on as if nothing had happened: to the bit where lag is exact."""

import json
import os
import signal
import subprocess

import pytest

from benchmarks import chaos
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import schedule
from tests.run_system import assert_identical, processes, train_rows, wait_for

STEPS = 32
SETTINGS = [
  "--config=configs/test.py",
  "--config.warm_start.steps=40",
  f"--config.learner.steps={STEPS}",
  "--config.checkpoint.every=7",
  "--config.evaluation.every=13",
]


def run_through(run_dir, *settings):
  """A run that nobody disturbs."""
  with processes() as launch:
    local = launch("local", *SETTINGS, *settings, f"--run_dir={run_dir}")
    output, _ = local.communicate(timeout=200)
  assert local.returncode == 0, output


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
  arguments = ["learner", *SETTINGS, *settings, f"--run_dir={run_dir}"]
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


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fixed_lag_survives_kills_of_learner_samplers_and_all_to_the_bit(tmp_path):
  """What replaces a group without signal depends on that group only, before and after a kill."""
  settings = ["--config.lag.mode=fixed", "--config.lag.max_lag=5", "--config.learner.max_refills=2"]
  found, expected = tmp_path / "run", tmp_path / "undisturbed"
  run_through(expected, *settings)
  run_with_kills(found, settings, {8: "l", 14: "s", 21: "b"})
  state = chaos.parameters(found)
  assert state["['step']"] == STEPS
  assert_identical(state, chaos.parameters(expected))
  rows, expected_rows = metrics.read(found), metrics.read(expected)
  for kind in ("warm_start", "train"):
    given = [deterministic(row) for row in rows if row["kind"] == kind]
    assert given == [deterministic(row) for row in expected_rows if row["kind"] == kind]
  by_phase = lambda found: {
    (row["phase"], row["step"]): row["heldout/pass@1"] for row in found if row["kind"] == "heldout"
  }
  assert by_phase(rows) == by_phase(expected_rows)
  assert sum(row["filtered/groups"] for row in train_rows(found)) > 20
  assert schedule_of(found) == schedule_of(expected)


def schedule_of(run_dir):
  """Digests and replacements of every step."""
  return [(row["digests"], row["attempts"]) for row in schedule_rows(run_dir)[1:]]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_async_uses_every_group_once_and_can_be_replayed_to_the_bit(tmp_path):
  run_dir = tmp_path / "run"
  settings = ["--config.lag.mode=async", "--config.lag.max_lag=6", "--config.learner.max_refills=1"]
  run_with_kills(run_dir, settings, {16: "l"})
  rows = schedule_rows(run_dir)[1:]
  assert [row["step"] for row in rows] == list(range(STEPS))
  lags = [row["step"] - v for row in rows for v in row["versions"]]
  assert min(lags) >= 0 and max(lags) <= 6
  assert max(row["lag/max"] for row in train_rows(run_dir)) <= 6
  again = tmp_path / "again"
  with processes() as launch:
    local = launch("local", f"--replay={run_dir}/{schedule.FILE}", f"--run_dir={again}")
    output, _ = local.communicate(timeout=200)
  assert local.returncode == 0, output
  assert_identical(chaos.parameters(again), chaos.parameters(run_dir))
  assert schedule_of(again) == schedule_of(run_dir)
  assert any(any(row["attempts"]) for row in rows)
