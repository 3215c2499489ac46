"""Values that follow from several keys."""

import pytest

from offpolicy_rl import config as config_lib


def test_updates_and_parts_of_a_batch(tiny_config):
  learner = tiny_config.learner
  learner.minibatches, learner.epochs, learner.microbatches = 4, 3, 2
  assert config_lib.updates_per_step(learner) == 12
  assert config_lib.batch_parts(learner) == 8


def test_sizes_of_the_run_hold_unless_the_objective_says_more(tiny_config):
  choices = config_lib.objective_choices(tiny_config)
  assert (choices.max_tokens, choices.group_size) == (3, 4)
  config_lib.override(tiny_config, [("objective.max_tokens", "2"), ("objective.beta", "0.3")])
  choices = config_lib.objective_choices(tiny_config)
  assert (choices.max_tokens, choices.beta) == (2, 0.3)
  presets = config_lib.presets(tiny_config)
  assert {preset.max_tokens for preset in presets} == {3}
  assert next(x for x in presets if x.name == "beta_shift").beta != 0.3


@pytest.mark.parametrize(
  ("key", "value", "on_policy"),
  [
    ("seed", "1", True),
    ("lag.max_lag", "1", False),
    ("lag.mode", "replay", False),
    ("sampler.int8_weights", "true", False),
    ("sampler.top_k", "5", False),
    ("sampler.temperature", "0.5", True),
    ("transport.weights_dtype", "bfloat16", False),
  ],
)
def test_a_run_is_on_policy_where_samplers_compute_what_the_learner_does(
  tiny_config, key, value, on_policy
):
  config_lib.override(tiny_config, [("lag.max_lag", "0"), (key, value)])
  setting = config_lib.reduction_setting(tiny_config)
  assert setting.on_policy == on_policy and setting.updates == 1
