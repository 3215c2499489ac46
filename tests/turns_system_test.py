"""Runs of several turns: killed in the middle of episodes, and as good as undisturbed."""

import pytest

from benchmarks import chaos
from offpolicy_rl import types
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import replies
from tests.resume_test import STEPS, deterministic, run_through, run_with_kills, schedule_of
from tests.run_system import assert_identical, processes, train_rows

GUESS = "offpolicy_rl.environments.guess"
SETTINGS = [
  f"--config.task.name={GUESS}:guess_the_number",
  f"--config.environment.name={GUESS}:GuessTheNumber",
  "--config.environment.max_turns=3",
  "--config.environment.max_turn_tokens=2",
  "--config.task.max_prompt_tokens=5",
  "--config.task.max_completion_tokens=9",
  "--config.warm_start.steps=0",
  "--config.sampler.decode_steps=1",
]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_fixed_lag_survives_kills_in_the_middle_of_episodes_to_the_bit(tmp_path):
  settings = [*SETTINGS, "--config.lag.mode=fixed", "--config.lag.max_lag=3"]
  found, expected = tmp_path / "run", tmp_path / "undisturbed"
  run_through(expected, *settings)
  run_with_kills(found, settings, {7: "l", 14: "s", 23: "b"})
  assert_identical(chaos.parameters(found), chaos.parameters(expected))
  assert schedule_of(found) == schedule_of(expected)
  rows = [[deterministic(row) for row in train_rows(folder)] for folder in (found, expected)]
  assert rows[0] == rows[1] and len(rows[0]) == STEPS
  texts = [c for row in metrics.read_lines(found / "completions.jsonl") for c in row["completions"]]
  assert {c["ended"] for c in texts} <= set(types.EPISODE_ENDS)
  assert any(None in [version for version, _ in c["versions"]] for c in texts)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_async_uses_every_group_once_and_is_replayed_without_its_environment_to_the_bit(tmp_path):
  run_dir, again = tmp_path / "run", tmp_path / "again"
  run_with_kills(run_dir, [*SETTINGS, "--config.lag.max_lag=5"], {11: "b"})
  with processes() as launch:
    gone = "--config.environment.name=nowhere:Gone"  # what it said was recorded
    local = launch("local", f"--replay={run_dir}/lag_schedule.jsonl", gone, f"--run_dir={again}")
    output, _ = local.communicate(timeout=200)
  assert local.returncode == 0, output
  assert_identical(chaos.parameters(again), chaos.parameters(run_dir))
  assert schedule_of(again) == schedule_of(run_dir)
  said = [sorted((folder / replies.FILE).read_text().splitlines()) for folder in (again, run_dir)]
  assert said[0] == said[1] and len(set(said[0])) == len(said[0])
  solved = [[row for row in metrics.read(f) if row["kind"] == "heldout"] for f in (again, run_dir)]
  assert solved[0] == solved[1] and len(solved[0]) == 4
