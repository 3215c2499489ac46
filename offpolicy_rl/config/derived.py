"""Values derived from several keys. Imports no JAX."""

from ml_collections import config_dict

from offpolicy_rl import losses
from offpolicy_rl.losses import reductions
from offpolicy_rl.replay import lag
from offpolicy_rl.tasks import catalog

NO_ENVIRONMENT = "none"  # value of environment.name


def batch_parts(learner: config_dict.ConfigDict) -> int:
  """Number of parts of a batch: the micro-batches of all minibatches."""
  return learner.minibatches * learner.microbatches


def updates_per_step(learner: config_dict.ConfigDict) -> int:
  """Number of optimizer updates per step."""
  return learner.minibatches * learner.epochs


def objective_choices(config: config_dict.ConfigDict) -> losses.Choices:
  """The preset of the configuration, with the keys that it replaces.

  Raises:
    ValueError: an invalid value; names the key, its value and what was expected.
  """
  given = {key: value for key, value in config.objective.to_dict().items() if value is not None}
  return losses.choose(given.pop("name"), **_sizes(config) | given)


def environment_name(config: config_dict.ConfigDict) -> str:
  """The environment "module:class" that answers the policy; "" = a completion is one turn.

  Raises:
    TaskError: task.name or another key of its section is wrong.
  """
  name = config.environment.name or catalog.select(config.task).environment
  return "" if name == NO_ENVIRONMENT else name


def presets(config: config_dict.ConfigDict) -> list[losses.Choices]:
  """Every preset, with lengths and group size of this configuration."""
  return [losses.choose(name, **_sizes(config)) for name in losses.PRESETS]


def _sizes(config: config_dict.ConfigDict) -> dict[str, int]:
  return {"max_tokens": config.task.max_completion_tokens, "group_size": config.learner.group_size}


def reduction_setting(config: config_dict.ConfigDict) -> reductions.Setting:
  """Which ratios are 1 in this run; the sampler's only if it computes the same numbers."""
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
