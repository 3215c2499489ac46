"""Refuses a wrong configuration before anything expensive starts. Imports no JAX.

`configs/base.py` says what each key may be, and this file which values go together.
"""

import itertools
from collections.abc import Iterator

from ml_collections import config_dict

from offpolicy_rl import losses
from offpolicy_rl.config import keys
from offpolicy_rl.config.text import ConfigError, flatten
from offpolicy_rl.losses import group_regime, reductions
from offpolicy_rl.model import names
from offpolicy_rl.replay import lag, packing
from offpolicy_rl.tasks import catalog
from offpolicy_rl.transport import bounds


def validate(config: config_dict.ConfigDict, *, trains: bool = True) -> None:
  """Raises ConfigError for the first wrong value; `trains`: groups for a learner are sampled."""
  _check_keys(flatten(config))
  try:
    objective_choices(config)
    catalog.of(config.task)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  if not config.model.checkpoint:
    vocab_size = catalog.of(config.task).vocabulary.size
    fresh = {"vocab_size": vocab_size, "num_experts": 0, "expert_width": 0}
    check_architecture(config, dict(config.model) | fresh)
  relations = (_task, _rows, _objective, _layout, _lag, _sampler, _transport)
  problems = itertools.chain(*(relation(config) for relation in relations))
  _raise_first(itertools.chain(problems, _one_ticket(config, trains)))


def _raise_first(problems: Iterator[str]) -> None:
  for problem in problems:
    raise ConfigError(problem)


def check_data(config: config_dict.ConfigDict) -> catalog.Selection:
  """The tasks, whose problems were read; ConfigError when they can't be had on this machine."""
  selection = catalog.of(config.task)
  try:
    selection.check()
  except catalog.TaskError as error:
    raise ConfigError(str(error)) from None
  return selection


def _check_keys(values: dict) -> None:
  """Refuses what is no key, no value, or not allowed: a configuration may come over the wire."""
  known = keys.all_keys()
  for name, key in known.items():
    if name not in values:
      raise ConfigError(f"{name}: missing, expected {key.expected}")
  for name, value in values.items():
    if name not in known:
      raise ConfigError(f"{name[:100]!r}: unknown key")
    key = known[name]
    if value is None and key.default is None:
      continue
    if not key.has_type(value):
      raise ConfigError(f"{name}: got {value!r:.100}, expected {key.kind.__name__}")
    if not key.is_good(value):
      raise ConfigError(f"{name}: got {value!r}, expected {key.expected}")


def batch_parts(learner: config_dict.ConfigDict) -> int:
  """Parts that a batch is laid out in: those of one update, for each minibatch."""
  return learner.minibatches * learner.microbatches


def updates_per_step(learner: config_dict.ConfigDict) -> int:
  """Optimizer updates that a step makes of its batch."""
  return learner.minibatches * learner.epochs


def objective_choices(config: config_dict.ConfigDict) -> losses.Choices:
  """The preset named by the configuration with the choices that it replaces.

  Raises:
    ValueError: a choice that makes no sense; names the key, its value and what was expected.
  """
  given = config.objective.to_dict()
  known = {"max_tokens": config.task.max_completion_tokens, "group_size": config.learner.group_size}
  given |= {key: value for key, value in known.items() if given[key] is None}
  return losses.choose(**given)


def presets(config: config_dict.ConfigDict) -> list[losses.Choices]:
  """Every preset as this configuration would use it: its lengths and group size, nothing else."""
  known = {"max_tokens": config.task.max_completion_tokens, "group_size": config.learner.group_size}
  return [losses.choose(name, **known) for name in losses.PRESETS]


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


def check_architecture(config: config_dict.ConfigDict, model: dict) -> None:
  """Raises ConfigError when a decoder can't be split as the configuration says.

  Args:
    model: the fields of a `DecoderConfig`.
  """
  _raise_first(_architecture(config, model))


def _architecture(c, model: dict) -> Iterator[str]:
  heads, kv_heads, experts = model["num_heads"], model["num_kv_heads"], model["num_experts"]
  if heads % kv_heads:
    yield f"model.num_kv_heads: got {kv_heads}, expected a divisor of model.num_heads = {heads}"
  mlp_width, vocab_size, expert_width = (
    model[key] for key in ("mlp_width", "vocab_size", "expert_width")
  )
  for key, tensor in (("mesh.tensor", c.mesh.tensor), ("sampler.tensor", c.sampler.tensor)):
    divisor = f"{key}: got {tensor}, expected a divisor of"
    if kv_heads % tensor or mlp_width % tensor:
      yield f"{divisor} model.num_kv_heads = {kv_heads} and of model.mlp_width = {mlp_width}"
    if vocab_size % tensor:
      yield f"{divisor} the vocabulary's {vocab_size} ids"
    if experts and expert_width % tensor:
      yield f"{divisor} {expert_width}, the width of the model's experts"
  if model["width"] % c.mesh.fsdp:
    yield f"mesh.fsdp: got {c.mesh.fsdp}, expected a divisor of model.width = {model['width']}"
  if not experts and c.mesh.expert > 1:
    yield f"mesh.expert: got {c.mesh.expert}, expected 1: the model has no experts"
  if experts % c.mesh.expert:
    yield f"mesh.expert: got {c.mesh.expert}, expected a divisor of the model's {experts} experts"


def _task(c) -> Iterator[str]:
  if bool(c.task.format_pattern) != (c.task.format_reward > 0):
    yield (
      f"task.format_reward: got {c.task.format_reward} with task.format_pattern = "
      f"{c.task.format_pattern!r}, expected both or neither"
    )


def _rows(c) -> Iterator[str]:
  prompts, minibatches, mesh = c.learner.prompts_per_step, c.learner.minibatches, c.mesh
  if prompts % minibatches:
    yield (
      f"learner.minibatches: got {minibatches}, expected a divisor of "
      f"learner.prompts_per_step = {prompts}: groups stay whole"
    )
  rows, shards = prompts * c.learner.group_size, names.batch_shards(mesh)
  if rows % (batch_parts(c.learner) * shards):
    yield (
      "mesh.data, mesh.fsdp, mesh.expert, learner.minibatches, learner.microbatches: got "
      f"{mesh.data} x {mesh.fsdp} x {mesh.expert} x {minibatches} x {c.learner.microbatches}, "
      f"expected a divisor of the {rows} rows of a batch (prompts_per_step x group_size)"
    )
  if c.warm_start.rows % shards:
    yield (
      f"warm_start.rows: got {c.warm_start.rows}, expected a multiple of data x fsdp x "
      f"expert = {shards}"
    )


def _objective(c) -> Iterator[str]:
  objective, learner = objective_choices(c), c.learner
  rows = learner.prompts_per_step * learner.group_size // batch_parts(learner)
  if objective.couples_rows and rows % learner.group_size:
    yield (
      f"learner.microbatches: got {learner.microbatches}, expected a divisor of "
      f"learner.prompts_per_step / learner.minibatches = {learner.prompts_per_step} / "
      f"{learner.minibatches}: objective.fn = {objective.fn} needs whole groups"
    )
  if objective.advantage == "value":
    yield (
      "objective.advantage: got 'value', expected another: the learner has no values V* of its "
      "prompts; objective.advantage=vhat estimates them from the current group"
    )


def _longest(c) -> int:
  """Tokens of the longest prompt and completion."""
  return c.task.max_prompt_tokens + c.task.max_completion_tokens


def _layout(c) -> Iterator[str]:
  columns = c.learner.row_tokens
  if columns and c.learner.layout == packing.PADDED:
    yield (
      f"learner.row_tokens: got {columns}, expected 0 with layout padded: a row is one completion"
    )
  if columns and columns < _longest(c):
    yield (
      f"learner.row_tokens: got {columns}, expected at least {_longest(c)}, the longest prompt and "
      "completion"
    )


def _lag(c) -> Iterator[str]:
  if c.lag.mode == lag.PERIODIC and c.lag.max_lag < 1:
    yield f"lag.max_lag: got {c.lag.max_lag}, expected at least 1 in mode periodic"
  if (c.lag.mode == lag.REPLAY) != bool(c.lag.schedule):
    yield (
      f"lag.schedule: got {c.lag.schedule!r}, expected a file in mode replay and '' in every other"
    )


def _sampler(c) -> Iterator[str]:
  least = 2 * (_longest(c) + c.sampler.page_tokens)
  if 0 < c.sampler.cache_tokens < least:
    yield (
      f"sampler.cache_tokens: got {c.sampler.cache_tokens}, expected 0 or at least {least}: two of "
      "the longest rows, in whole pages"
    )
  if c.sampler.weight_update != "between_groups" and c.lag.mode != lag.ASYNC:
    yield (
      f"sampler.weight_update: got {c.sampler.weight_update}, expected between_groups with "
      f"lag.mode = {c.lag.mode}: its groups are of exactly one version"
    )


def _transport(c) -> Iterator[str]:
  if c.transport.heartbeat_seconds * 2 > c.transport.lease_seconds:
    yield (
      f"transport.heartbeat_seconds: got {c.transport.heartbeat_seconds}, expected at most half "
      f"of transport.lease_seconds = {c.transport.lease_seconds}"
    )


def _one_ticket(c, trains: bool) -> Iterator[str]:
  """A ticket's completions need room in an engine and, when they train, in a message."""
  completions = max(c.evaluation.samples, c.learner.group_size if trains else 1)
  if c.sampler.slots < completions:
    yield (
      f"sampler.slots: got {c.sampler.slots}, expected at least {completions}, the completions of "
      "one ticket"
    )
  if trains and completions > bounds.MAX_COMPLETIONS:
    yield (
      f"learner.group_size, evaluation.samples: got {completions}, expected at most "
      f"{bounds.MAX_COMPLETIONS} completions of a ticket"
    )
  prompt, longest = c.task.max_prompt_tokens, c.task.max_completion_tokens
  most = max(bounds.ticket_bytes(prompt, ""), bounds.max_group_bytes(completions, longest))
  if trains and most > c.transport.max_message_mb << 20:
    yield (
      f"transport.max_message_mb: got {c.transport.max_message_mb}, expected at least "
      f"{(most >> 20) + 1}: a prompt of {prompt} tokens has to fit, and so have {completions} "
      f"completions of {longest} tokens with a version for each"
    )


# What a resumed run may not change: its groups, and those still being sampled, rest on it.
_FROZEN = (
  "seed",
  "task.",
  "model.",
  "lag.",
  "learner.prompts_per_step",
  "learner.group_size",
  "learner.max_refills",
  "sampler.temperature",
  "sampler.top_k",
  "sampler.top_p",
  "sampler.min_p",
  "sampler.stop",
  "sampler.slots",
  "evaluation.problems",
  "evaluation.samples",
  "transport.weights_dtype",
)
# Except where files lie now, and how verifiers are run.
_FREE = (
  "task.data_dir",
  "task.train_file",
  "task.heldout_file",
  "task.verifier_processes",
  "task.verifier_seconds",
  "task.verifier_memory_mb",
)


def check_resume(saved: config_dict.ConfigDict, now: config_dict.ConfigDict) -> None:
  """Raises ConfigError for the first key that a resumed run must keep and does not.

  Keys that a later release has added may have any value.
  """
  before = flatten(saved)
  for key, value in flatten(now).items():
    must_stay = key in before and key.startswith(_FROZEN) and key not in _FREE
    if must_stay and value != before[key]:
      raise ConfigError(
        f"{key}: got {value!r}, expected {before[key]!r} as the run to resume; its groups were "
        "sampled with that (choose another --run_dir for a new run)"
      )


def warnings(config: config_dict.ConfigDict) -> list[str]:
  """Choices that are allowed but will probably disappoint, a line each with the consequence."""
  objective = objective_choices(config)
  lines = catalog.warnings(catalog.of(config.task))
  truncation = {key: config.sampler[key] for key in ("top_k", "top_p", "min_p")}
  if truncation != {"top_k": 0, "top_p": 1.0, "min_p": 0.0}:
    lines.append(
      f"sampler.top_k, top_p, min_p: got {', '.join(map(str, truncation.values()))}; samples come "
      "from a truncated distribution, the learner's log-probabilities are of the full one: every "
      "log-ratio has a bias (mismatch/max shows it)"
    )
  lines.append(_inert_ratio(objective, reduction_setting(config)))
  if objective.fn == "regression" and objective.advantage in group_regime.BASELINES:
    lines.append(
      group_regime.regime_warning(
        objective.advantage,
        config.learner.group_size,
        beta=objective.beta,
        beta1=objective.beta1,
        kappa=objective.kappa,
        dv=objective.shift,
      )
    )
  return [warning for warning in lines if warning]


def _inert_ratio(objective: losses.Choices, setting: reductions.Setting) -> str | None:
  """A warning when the objective's ratio to the proximal policy is always 1."""
  if setting.updates > 1 or objective.anchor != "proximal" or objective.proximal != "current":
    return None
  simple = reductions.reduced(objective, setting._replace(on_policy=False)).choices
  return (
    f"objective.name: {objective.name} with one update per batch: the policy is its own proximal "
    "policy, so a clip or mask of their ratio never acts and the gradient is that of "
    f"{reductions.in_words(simple)}; learner.epochs or learner.minibatches above 1 make more"
  )
