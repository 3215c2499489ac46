"""Real kinds of tasks through the whole system: mixture, formats, a user's verifier that fails."""

import json

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.observe import metrics
from offpolicy_rl.roles import build
from offpolicy_rl.roles import sampler as sampler_role
from tests.end_to_end_test import over_the_wire, small
from tests.run_system import train_rows
from tests.tasks.sources_test import WORDS


def completions(run_dir):
  rows = [json.loads(line) for line in (run_dir / "completions.jsonl").read_text().splitlines()]
  return [c for row in rows for c in row["completions"]]


@pytest.mark.long
def test_a_mixture_with_a_format_reward(tiny_config, tmp_path):
  mixture = {"gsm8k": {"rate": 0.5, "data_dir": str(WORDS)}, "sums": 0.5}
  config = small(
    tiny_config,
    task__name="mixture",
    task__mixture=json.dumps(mixture),
    task__max_prompt_tokens=100,
    task__format_pattern="[a-z].*[0-9]",
    task__format_reward=0.25,
    learner__steps=2,
    learner__prompts_per_step=4,
    learner__audit_every=0,
  )
  config.warm_start.steps, config.warm_start.rows = 3, 16
  with pytest.raises(ValueError, match="none of the 1[0-9] demonstrations .*fits in; raise it"):
    over_the_wire_alone(config, tmp_path / "refused")
  config.task.max_completion_tokens = 110
  over_the_wire(config, tmp_path / "run", samplers=1)
  rows = metrics.read(tmp_path / "run")
  [counts] = [row for row in rows if row["kind"] == metrics.TASK]
  assert counts["prompts_too_long"] > 0 and counts["heldout_prompts_too_long"] > 0
  lines = (WORDS / "train.jsonl").read_text().splitlines()
  assert counts["prompts_too_long"] == sum(len(json.loads(x)["question"]) > 100 for x in lines)
  rewards = [c["reward"] for c in completions(tmp_path / "run")]
  assert set(rewards) <= {0.0, 0.25, 1.0, 1.25} and 0.25 in rewards
  heldout = [row for row in rows if row["kind"] == metrics.HELDOUT]
  assert all(0 <= row["heldout/pass@1"] <= 1 for row in heldout)


def over_the_wire_alone(config, run_dir):
  """A learner that is refused before it waits for anybody."""
  from offpolicy_rl.roles import learner

  learner.run_learner(config, run_dir, learner.Serving("127.0.0.1:0"))


def test_a_verifier_that_fails_is_seen_and_loses_no_group(tiny_config, tmp_path):
  config = small(
    tiny_config, learner__steps=3, task__verifier="tests.tasks.own_verifier:fails_on_even"
  )
  config.task.failed_reward, config.task.judge_unfinished = "mean", True
  over_the_wire(config, tmp_path / "run", samplers=1)
  rows = train_rows(tmp_path / "run")
  assert len(rows) == 3 and sum(row["verifier_failures"] for row in rows) > 0
  found = completions(tmp_path / "run")
  # Each that failed got the mean of the others, which is what all of those got.
  groups = [found[i : i + 4] for i in range(0, len(found), 4)]
  for group in groups:
    odd = [c["reward"] for c in group if len(c["text"]) % 2]
    assert {c["reward"] for c in group} == ({1.0} if odd else {0.0})
  heldout = [row for row in metrics.read(tmp_path / "run") if row["kind"] == metrics.HELDOUT]
  assert any(row["heldout/verifier_failures"] for row in heldout)


@pytest.mark.parametrize("key", ["task.verifier", "environment.name"])
def test_a_sampler_without_the_judge_says_so(tiny_config, key):
  config_lib.override(tiny_config, [(key, "nowhere:to_be_found")])
  policy = build.make_policy(tiny_config, None)
  said = f"can't be judged here: {key.removeprefix('task.')}: got 'nowhere:to_be_found'"
  with (
    pytest.raises(sampler_role.RunMismatch, match=said),
    sampler_role._judging(tiny_config, policy),
  ):
    pass
