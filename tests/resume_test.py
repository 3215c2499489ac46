"""A run that was killed goes on as if nothing had happened: to the bit where lag is exact."""

import shutil

import pytest

from benchmarks import chaos
from offpolicy_rl.observe import metrics
from tests.run_system import (
  SHORT_RUN,
  STEPS,
  assert_same_training,
  deterministic,
  processes,
  replay,
  run_local,
  run_through,
  run_with_kills,
  schedule_rows,
  start,
  train_rows,
  wait_for,
)

FIXED = ["--config.lag.mode=fixed", "--config.lag.max_lag=5"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fixed_lag_survives_kills_of_learner_samplers_and_all_to_the_bit(tmp_path):
  """What replaces a group without signal depends on that group only, before and after a kill."""
  settings = [*FIXED, "--config.learner.max_refills=2"]
  found, expected = tmp_path / "run", tmp_path / "undisturbed"
  run_through(expected, *settings)
  run_with_kills(found, [*settings, "--config.lag.kept_versions=1"], {8: "l", 14: "s", 21: "b"})
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


@pytest.mark.long
@pytest.mark.timeout(600)
def test_lost_groups_are_sampled_again_or_the_run_says_that_they_are_lost(tmp_path):
  expected = tmp_path / "undisturbed"
  run_through(expected, *FIXED)
  for kept in (0, 1):
    found = tmp_path / f"kept_{kept}"
    settings = [*FIXED, f"--config.lag.kept_versions={kept}"]
    with processes() as launch:
      launch("learner", *SHORT_RUN, *settings, f"--run_dir={found}")
      wait_for((found / "address").exists, 90, "the learner's address")
      launch("sampler", f"--learner={(found / 'address').read_text()}")
      wait_for(lambda found=found: len(train_rows(found)) > 17, 120, "step 17")
    away = (found / "groups").rename(tmp_path / f"groups_{kept}")
    if kept:
      refused = start("local", "--resume", f"--run_dir={found}")
      output, _ = refused.communicate(timeout=60)
      assert refused.returncode == 1
      assert "kept_1/groups: lacks groups of " in output and "put the directory back" in output
      shutil.rmtree(found / "groups")
      away.rename(found / "groups")
    run_local("--resume", f"--run_dir={found}")
    assert_same_training(found, expected)
