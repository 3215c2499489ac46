"""Values derived from several keys. Imports no JAX."""

import json

from ml_collections import config_dict

from offpolicy_rl import losses
from offpolicy_rl.losses import reductions
from offpolicy_rl.replay import lag
from offpolicy_rl.tasks import catalog


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


def selection(config: config_dict.ConfigDict) -> catalog.Selection:
  """The tasks of a run, each with the environment that it is played in, if any.

  Raises:
    TaskError: task.name or another key of its section is wrong.
  """
  chosen, name = catalog.select(config.task), config.environment.name
  if name == catalog.NO_ENVIRONMENT:
    return chosen.played_in("")
  return chosen.played_in(name) if name and not chosen.mixed else chosen


def environments(config: config_dict.ConfigDict) -> dict[str, str]:
  """{"module:class": the key that names it} of the run's environments.

  {} if every completion has one turn. TaskError as for `selection`.
  """
  chosen = selection(config)
  key = "task.mixture: {}: environment" if chosen.mixed else "environment.name"
  return {task.environment: key.format(task.name) for task in chosen.tasks if task.environment}


def tools(config: config_dict.ConfigDict) -> dict[str, list[dict]]:
  """{environment: JSON schemas of its tools, for the chat template}, as environment.tools says.

  Of a mixture's environments; {"": schemas} of any other run.
  """
  given = json.loads(config.environment.tools or "{}")
  if isinstance(given, list):
    return {"": given}
  return {name: given[name] for name in environments(config) if name in given}


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
