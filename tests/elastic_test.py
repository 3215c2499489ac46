"""Samplers as processes that join late, are preempted, hang: the run goes on without loss."""

import os
import signal
import time

import pytest

from tests.run_system import ledger_of, processes, train_rows, wait_for

pytestmark = pytest.mark.long
STEPS = 100
SETTINGS = [
  "--config=configs/test.py",
  "--config.warm_start.steps=0",
  "--config.evaluation.every=0",
  f"--config.learner.steps={STEPS}",
  "--config.lag.mode=async",
  "--config.lag.max_lag=3",
]
GROUPS = STEPS * 8 + 2 * 2 * 8  # of training, and two evaluations with two tickets per problem


def begin(launch, run_dir, *settings):
  """(learner, function that starts a sampler)."""
  learner = launch("learner", *SETTINGS, *settings, f"--run_dir={run_dir}")
  wait_for((run_dir / "address").exists, 90, "the learner's address")
  address = (run_dir / "address").read_text()
  return learner, lambda name: launch("sampler", f"--learner={address}", f"--name={name}")


def steps_reach(run_dir, count):
  wait_for(lambda: len(train_rows(run_dir)) >= count, 120, f"{count} steps")


def finished(learner, run_dir) -> dict:
  """The ledger at the end of a run in which nothing was lost or doubled."""
  output, _ = learner.communicate(timeout=120)
  assert learner.returncode == 0, output
  assert [row["step"] for row in train_rows(run_dir)] == list(range(STEPS))
  audit = ledger_of(run_dir)
  assert audit["added"] == audit["taken"] == GROUPS
  return audit


def test_a_preempted_sampler_finishes_its_groups_and_another_joins_late(tmp_path):
  with processes() as launch:
    learner, join = begin(launch, tmp_path)
    first = join("first")
    steps_reach(tmp_path, 8)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20) == 0
    done = len(train_rows(tmp_path))
    time.sleep(1.5)
    assert len(train_rows(tmp_path)) <= done + 4  # nobody samples; what was pushed is used up
    late = join("late")
    audit = finished(learner, tmp_path)
    assert late.wait(timeout=20) == 0
  assert audit["expired"] == audit["duplicates"] == 0
  assert audit["returned"] <= 4  # 16 slots of it, leased but not begun when the signal came


def test_a_preempted_sampler_without_grace_returns_its_tickets(tmp_path):
  with processes() as launch:
    learner, join = begin(launch, tmp_path, "--config.sampler.grace_seconds=0")
    first = join("first")
    steps_reach(tmp_path, 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20) == 0
    join("second")
    audit = finished(learner, tmp_path)
  assert audit["expired"] == 0  # nobody waited for a lease to run out


def test_a_hanging_sampler_is_noticed_and_may_come_back(tmp_path):
  with processes() as launch:
    learner, join = begin(launch, tmp_path)
    hanging = join("hanging")
    steps_reach(tmp_path, 5)
    os.killpg(hanging.pid, signal.SIGSTOP)
    join("healthy")
    # More than the lag bound allows without the groups that it was to sample.
    steps_reach(tmp_path, len(train_rows(tmp_path)) + 30)
    assert len(train_rows(tmp_path)) < STEPS
    os.killpg(hanging.pid, signal.SIGCONT)
    finished(learner, tmp_path)
    output, _ = hanging.communicate(timeout=20)
    assert hanging.returncode == 0, output
