"""From the configuration to parts: what a replay must have in common with the run it follows."""

import json

import jax
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.model import policy
from offpolicy_rl.replay import admission, schedule
from offpolicy_rl.roles import build, build_learner
from offpolicy_rl.system import memory


def _record(config, tmp_path, attempts: list[int]) -> None:
  """Makes a configuration one that replays a run of two steps."""
  learner = config.learner
  learner.steps, learner.prompts_per_step, learner.max_refills = 2, 2, 2
  groups = {"versions": [0, 0], "digests": ["a", "b"], "attempts": attempts}
  rows = [{"config": json.loads(config_lib.to_json(config))}]
  rows += [{"step": step} | groups for step in range(2)]
  path = tmp_path / schedule.FILE
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config.lag.mode, config.lag.schedule = "replay", str(path)


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("steps", 3, "learner.steps: got 3, but .* recorded only 2"),
    ("prompts_per_step", 1, "learner.prompts_per_step: got 1, but .* recorded 2 groups"),
    ("max_refills", 1, "learner.max_refills: got 1, but .* recorded 2"),
  ],
)
def test_a_replay_follows_the_run_it_is_of(tiny_config, tmp_path, key, value, message):
  learner = tiny_config.learner
  _record(tiny_config, tmp_path, attempts=[0, 2])
  assert build_learner.lag_control(tiny_config).recorded.attempts == [[0, 2]] * 2
  learner[key] = value
  with pytest.raises(schedule.ScheduleError, match=message):
    build_learner.lag_control(tiny_config)


def test_a_run_without_steps_can_be_repeated(tiny_config, tmp_path):
  _record(tiny_config, tmp_path, attempts=[0, 0])
  path, tiny_config.learner.steps = tmp_path / schedule.FILE, 0
  path.write_text(path.read_text().splitlines(keepends=True)[0])
  assert build_learner.lag_control(tiny_config).is_needed(0, 0)


def test_a_replay_that_asks_for_more_prompts_than_a_group_has_is_refused(tiny_config, tmp_path):
  most = 2 + admission.SPARES
  _record(tiny_config, tmp_path, attempts=[0, most])
  build_learner.lag_control(tiny_config)
  _record(tiny_config, tmp_path, attempts=[0, most + 1])
  with pytest.raises(schedule.ScheduleError, match=f"got {most + 1} attempts, expected at most"):
    build_learner.lag_control(tiny_config)


def test_a_lag_whose_weights_have_no_room_is_refused(tiny_config, monkeypatch):
  model = build.make_policy(tiny_config, None).model
  each = sum(x.size for x in jax.tree.leaves(policy.shapes(model))) * 4
  monkeypatch.setattr(memory, "total_bytes", lambda: 6 * each)
  tiny_config.lag.mode, tiny_config.learner.steps = "fixed", 100
  store = lambda: build_learner.make_store(tiny_config, model, None, "session")
  tiny_config.lag.max_lag = 5
  store()
  tiny_config.lag.max_lag = 6
  with pytest.raises(config_lib.ConfigError, match="lag.max_lag: got 6 .* 7 versions .* at most"):
    store()
  tiny_config.lag.kept_versions = 2
  store()
