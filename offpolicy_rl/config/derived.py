"""Values that follow from several keys. Imports no JAX."""

from ml_collections import config_dict

from offpolicy_rl import losses
from offpolicy_rl.losses import reductions
from offpolicy_rl.replay import lag


def batch_parts(learner: config_dict.ConfigDict) -> int:
  """Parts that a batch is laid out in: the micro-batches of all minibatches."""
  return learner.minibatches * learner.microbatches


def updates_per_step(learner: config_dict.ConfigDict) -> int:
  """Optimizer updates that a step makes of its batch."""
  return learner.minibatches * learner.epochs


def objective_choices(config: config_dict.ConfigDict) -> losses.Choices:
  """The preset that the configuration names, with the choices that it replaces.

  Raises:
    ValueError: a choice that makes no sense; names the key, its value and what was expected.
  """
  given = {key: value for key, value in config.objective.to_dict().items() if value is not None}
  return losses.choose(given.pop("name"), **_sizes(config) | given)


def presets(config: config_dict.ConfigDict) -> list[losses.Choices]:
  """Every preset with the lengths and group size of this configuration, and nothing else of it."""
  return [losses.choose(name, **_sizes(config)) for name in losses.PRESETS]


def _sizes(config: config_dict.ConfigDict) -> dict[str, int]:
  return {"max_tokens": config.task.max_completion_tokens, "group_size": config.learner.group_size}


def reduction_setting(config: config_dict.ConfigDict) -> reductions.Setting:
  """Which ratios are 1 in this run; the sampler's only where it computes what the learner does."""
  sampler = config.sampler
  same_numbers = (
    config.transport.weights_dtype == "float32"
    and not sampler.int8_weights
    and (sampler.top_k, sampler.top_p, sampler.min_p) == (0, 1.0, 0.0)
  )
  return reductions.Setting(
    updates=updates_per_step(config.learner),
    on_policy=same_numbers and config.lag.max_lag == 0 and config.lag.mode != lag.REPLAY,
  )
