"""Runs of several turns: killed in the middle of episodes, and as good as undisturbed."""

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import replies
from tests.run_system import (
  STEPS,
  assert_same_metrics,
  assert_same_training,
  replay,
  run_through,
  run_with_kills,
  schedule_of,
  train_rows,
)

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
  assert_same_training(found, expected)
  assert_same_metrics(found, expected)
  texts = [c for row in metrics.read_lines(found / "completions.jsonl") for c in row["completions"]]
  assert {c["ended"] for c in texts} <= set(types.EPISODE_ENDS)
  assert any(None in [version for version, _ in c["versions"]] for c in texts)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_async_uses_every_group_once_and_is_replayed_without_its_environment_to_the_bit(tmp_path):
  run_dir, again = tmp_path / "run", tmp_path / "again"
  run_with_kills(run_dir, [*SETTINGS, "--config.lag.max_lag=5"], {11: "b"})
  replay(run_dir, again, "--config.environment.name=nowhere:Gone")  # what it said was recorded
  assert_same_training(again, run_dir)
  said = [sorted((folder / replies.FILE).read_text().splitlines()) for folder in (again, run_dir)]
  assert said[0] == said[1] and len(set(said[0])) == len(said[0])
  solved = [[row for row in metrics.read(f) if row["kind"] == "heldout"] for f in (again, run_dir)]
  assert solved[0] == solved[1] and len(solved[0]) == 4


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_teacher_scores_episodes_whose_turns_are_of_several_versions(tmp_path):
  teacher, run_dir = tmp_path / "teacher", tmp_path / "run"
  run_through(teacher, *SETTINGS, "--config.seed=5", "--config.learner.steps=1")
  taught = ["--config.objective.name=distill", f"--config.teacher.checkpoint={teacher}"]
  newest = ["--config.lag.max_lag=5", "--config.sampler.weight_update=in_flight"]
  run_with_kills(run_dir, [*SETTINGS, *taught, *newest], {11: "b"})
  distances = [row["teacher/kl"] for row in train_rows(run_dir)]
  assert len(distances) == STEPS and np.isfinite(distances).all() and distances[0] > 0
  digests = [digest for step, _ in schedule_of(run_dir) for digest in step]
  assert len(set(digests)) == len(digests) > STEPS
  turns = [
    [version for version, _ in completion["versions"] if version is not None]
    for row in metrics.read_lines(run_dir / "completions.jsonl")
    for completion in row["completions"]
  ]
  assert all(versions == sorted(versions) for versions in turns)
  assert any(len(set(versions)) > 1 for versions in turns)
