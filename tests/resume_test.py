"""A run that was killed goes on as if nothing had happened: to the bit where lag is exact."""

import pytest

from benchmarks import chaos
from offpolicy_rl.observe import metrics
from tests.run_system import (
  STEPS,
  assert_same_training,
  deterministic,
  replay,
  run_through,
  run_with_kills,
  schedule_rows,
  train_rows,
)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fixed_lag_survives_kills_of_learner_samplers_and_all_to_the_bit(tmp_path):
  """What replaces a group without signal depends on that group only, before and after a kill."""
  settings = ["--config.lag.mode=fixed", "--config.lag.max_lag=5", "--config.learner.max_refills=2"]
  found, expected = tmp_path / "run", tmp_path / "undisturbed"
  run_through(expected, *settings)
  run_with_kills(found, settings, {8: "l", 14: "s", 21: "b"})
  assert chaos.parameters(found)["['step']"] == STEPS
  assert_same_training(found, expected)
  rows, expected_rows = metrics.read(found), metrics.read(expected)
  for kind in ("warm_start", "train"):
    given = [deterministic(row) for row in rows if row["kind"] == kind]
    assert given == [deterministic(row) for row in expected_rows if row["kind"] == kind]
  by_phase = lambda found: {
    (row["phase"], row["step"]): row["heldout/pass@1"] for row in found if row["kind"] == "heldout"
  }
  assert by_phase(rows) == by_phase(expected_rows)
  assert sum(row["filtered/groups"] for row in train_rows(found)) > 20


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
  replay(run_dir, again)
  assert_same_training(again, run_dir)
  assert any(any(row["attempts"]) for row in rows)
