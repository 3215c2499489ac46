"""Refuses a wrong configuration before anything expensive starts. Imports no JAX.

`configs/base.py` lists every key, `config_keys` says which values make sense, and this file which
of them go together.
"""

import math

from ml_collections import config_dict

from offpolicy_rl import losses
from offpolicy_rl.config.keys import KEYS
from offpolicy_rl.config.text import ConfigError, flatten
from offpolicy_rl.losses import group_regime, reductions
from offpolicy_rl.replay import lag, packing
from offpolicy_rl.tasks import catalog
from offpolicy_rl.transport import bounds


def validate(config: config_dict.ConfigDict, *, trains: bool = True) -> None:
  """Raises ConfigError for the first wrong value; `trains`: groups for a learner are sampled."""
  values = flatten(config)
  _check_keys_and_types(values)
  for name, key in KEYS.items():
    value = values[name]
    if (isinstance(value, float) and not math.isfinite(value)) or not key.is_good(value):
      raise ConfigError(f"{name}: got {value!r}, expected {key.expected}")
  try:
    objective_choices(config)
    catalog.of(config.task)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  wire = _message_relations(config) if trains else []
  require([*_relations(config), *_slot_relations(config, trains), *wire])


def check_data(config: config_dict.ConfigDict) -> catalog.Selection:
  """The tasks, whose problems were read; ConfigError when they can't be had on this machine."""
  selection = catalog.of(config.task)
  try:
    selection.check()
  except catalog.TaskError as error:
    raise ConfigError(str(error)) from None
  return selection


def require(relations: list[tuple[bool, str]]) -> None:
  """Raises ConfigError for the first that does not hold."""
  for holds, message in relations:
    if not holds:
      raise ConfigError(message)


def _check_keys_and_types(values: dict) -> None:
  """A configuration may come from a file or over the wire, so nothing is taken for granted."""
  kinds = {name: key.kind for name, key in KEYS.items()}
  choices = {f"objective.{field.name}": field.type for field in losses.choices.OVERRIDABLE}
  for key in kinds.keys() | choices.keys():
    if key not in values:
      expected = KEYS[key].expected if key in KEYS else "a value"
      raise ConfigError(f"{key}: missing, expected {expected}")
  for key, value in values.items():
    if key not in kinds and key not in choices:
      raise ConfigError(f"{key[:100]!r}: unknown key")
    if value is None and key in choices:
      continue
    kind = kinds.get(key) or choices[key]
    if type(value) is not kind and not (kind is float and type(value) is int):
      raise ConfigError(f"{key}: got {value!r:.100}, expected {kind.__name__}")


def batch_parts(learner: config_dict.ConfigDict) -> int:
  """Parts that a batch is laid out in: those of one update, for each minibatch."""
  return learner.minibatches * learner.microbatches


def updates_per_step(learner: config_dict.ConfigDict) -> int:
  """Optimizer updates that a step makes of its batch."""
  return learner.minibatches * learner.epochs


def _objective_relations(c, rows_per_part: int) -> list[tuple[bool, str]]:
  """The same for what the objective asks of the rest."""
  objective = objective_choices(c)
  return [
    (
      not objective.couples_rows or rows_per_part % c.learner.group_size == 0,
      f"learner.microbatches: got {c.learner.microbatches}, expected a divisor of "
      f"learner.prompts_per_step / learner.minibatches = {c.learner.prompts_per_step} / "
      f"{c.learner.minibatches}: "
      f"objective.fn = {objective.fn} needs whole groups",
    ),
    (
      objective.advantage != "value",
      "objective.advantage: got 'value', expected another: the learner has no values V* of its "
      "prompts; objective.advantage=vhat estimates them from the current group",
    ),
  ]


def _layout_relations(c) -> list[tuple[bool, str]]:
  """How rows are filled."""
  layout, columns = c.learner.layout, c.learner.row_tokens
  longest = c.task.max_prompt_tokens + c.task.max_completion_tokens
  return [
    (
      columns == 0 or layout != packing.PADDED,
      f"learner.row_tokens: got {columns}, expected 0 with layout padded: a row is one completion",
    ),
    (
      columns == 0 or columns >= longest,
      f"learner.row_tokens: got {columns}, expected at least {longest}, the longest prompt and "
      "completion",
    ),
  ]


def objective_section() -> config_dict.ConfigDict:
  """Every choice of an objective, unset: the preset's value holds until one is given."""
  section = config_dict.ConfigDict()
  for field in losses.choices.OVERRIDABLE:
    section[field.name] = config_dict.placeholder(field.type)
  return section


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


def _tensor_relations(model: dict, key: str, tensor: int) -> list[tuple[bool, str]]:
  """What can't be split over so many devices."""
  kv_heads, expert_width = model["num_kv_heads"], model["expert_width"]
  got = f"{key}: got {tensor}, expected a divisor of"
  return [
    (
      kv_heads % tensor == 0 and model["mlp_width"] % tensor == 0,
      f"{got} model.num_kv_heads = {kv_heads} and of model.mlp_width = {model['mlp_width']}",
    ),
    (model["vocab_size"] % tensor == 0, f"{got} the vocabulary's {model['vocab_size']} ids"),
    (
      not model["num_experts"] or expert_width % tensor == 0,
      f"{got} {expert_width}, the width of the model's experts",
    ),
  ]


def architecture_relations(config: config_dict.ConfigDict, model: dict) -> list[tuple[bool, str]]:
  """Conditions between a decoder's fields and the meshes: (holds, what to say when it doesn't)."""
  heads, kv_heads, mesh = model["num_heads"], model["num_kv_heads"], config.mesh
  experts = model["num_experts"]
  return [
    (
      heads % kv_heads == 0,
      f"model.num_kv_heads: got {kv_heads}, expected a divisor of model.num_heads = {heads}",
    ),
    *_tensor_relations(model, "mesh.tensor", mesh.tensor),
    *_tensor_relations(model, "sampler.tensor", config.sampler.tensor),
    (
      model["width"] % mesh.fsdp == 0,
      f"mesh.fsdp: got {mesh.fsdp}, expected a divisor of model.width = {model['width']}",
    ),
    (
      (experts or 1) % mesh.expert == 0,
      f"mesh.expert: got {mesh.expert}, expected a divisor of the model's {experts} experts"
      if experts
      else f"mesh.expert: got {mesh.expert}, expected 1: the model has no experts",
    ),
  ]


def _relations(c) -> list[tuple[bool, str]]:
  """Conditions between keys: (holds, what to say when it does not)."""
  rows = c.learner.prompts_per_step * c.learner.group_size
  shards = c.mesh.data * c.mesh.fsdp * c.mesh.expert
  parts = batch_parts(c.learner)
  longest = c.task.max_prompt_tokens + c.task.max_completion_tokens
  vocab_size = catalog.of(c.task).vocabulary.size
  own = dict(c.model) | {"vocab_size": vocab_size, "num_experts": 0, "expert_width": 0}
  return [
    (
      bool(c.task.format_pattern) == (c.task.format_reward > 0),
      f"task.format_reward: got {c.task.format_reward} with task.format_pattern = "
      f"{c.task.format_pattern!r}, expected both or neither",
    ),
    *([] if c.model.checkpoint else architecture_relations(c, own)),
    (
      c.learner.prompts_per_step % c.learner.minibatches == 0,
      f"learner.minibatches: got {c.learner.minibatches}, expected a divisor of "
      f"learner.prompts_per_step = {c.learner.prompts_per_step}: groups stay whole",
    ),
    (
      rows % (parts * shards) == 0,
      "mesh.data, mesh.fsdp, mesh.expert, learner.minibatches, learner.microbatches: got "
      f"{c.mesh.data} x {c.mesh.fsdp} x {c.mesh.expert} x {c.learner.minibatches} x "
      f"{c.learner.microbatches}, expected a divisor of the {rows} rows of a batch "
      "(prompts_per_step x group_size)",
    ),
    *_objective_relations(c, rows // parts),
    *_layout_relations(c),
    (
      c.warm_start.rows % shards == 0,
      f"warm_start.rows: got {c.warm_start.rows}, expected a multiple of data x fsdp x "
      f"expert = {shards}",
    ),
    (
      c.lag.mode != lag.PERIODIC or c.lag.max_lag >= 1,
      f"lag.max_lag: got {c.lag.max_lag}, expected at least 1 in mode periodic",
    ),
    (
      (c.lag.mode == lag.REPLAY) == bool(c.lag.schedule),
      f"lag.schedule: got {c.lag.schedule!r}, expected a file in mode replay and '' in every other",
    ),
    (
      not c.sampler.cache_tokens or c.sampler.cache_tokens >= 2 * (longest + c.sampler.page_tokens),
      f"sampler.cache_tokens: got {c.sampler.cache_tokens}, expected 0 or at least "
      f"{2 * (longest + c.sampler.page_tokens)}: two of the longest rows, in whole pages",
    ),
    (
      c.sampler.weight_update == "between_groups" or c.lag.mode == lag.ASYNC,
      f"sampler.weight_update: got {c.sampler.weight_update}, expected between_groups with "
      f"lag.mode = {c.lag.mode}: its groups are of exactly one version",
    ),
    (
      c.transport.heartbeat_seconds * 2 <= c.transport.lease_seconds,
      f"transport.heartbeat_seconds: got {c.transport.heartbeat_seconds}, expected at most half "
      f"of transport.lease_seconds = {c.transport.lease_seconds}",
    ),
  ]


def _slot_relations(c, trains: bool) -> list[tuple[bool, str]]:
  """Whether the completions of one ticket have room."""
  slots, need = c.sampler.slots, max(c.evaluation.samples, c.learner.group_size if trains else 1)
  return [
    (
      slots >= need,
      f"sampler.slots: got {slots}, expected at least {need}, the completions of one ticket",
    )
  ]


def _message_relations(c) -> list[tuple[bool, str]]:
  """Whether a ticket and its group fit into messages of the wire."""
  completions = max(c.evaluation.samples, c.learner.group_size)
  prompt, longest = c.task.max_prompt_tokens, c.task.max_completion_tokens
  group = bounds.max_group_bytes(completions, longest)
  most = max(bounds.ticket_bytes(prompt, ""), group)
  return [
    (
      completions <= bounds.MAX_COMPLETIONS,
      f"learner.group_size, evaluation.samples: got {completions}, expected at most "
      f"{bounds.MAX_COMPLETIONS} completions of a ticket",
    ),
    (
      most <= c.transport.max_message_mb << 20,
      f"transport.max_message_mb: got {c.transport.max_message_mb}, expected at least "
      f"{(most >> 20) + 1}: a prompt of {prompt} tokens has to fit, and so have {completions} "
      f"completions of {longest} tokens with a version for each",
    ),
  ]


# What a resumed run may not change: the groups that it has, and those still out, rest on it.
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
# But these may: where files lie now, and how verifiers are run.
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

  Keys that a later release has added are as it says: a run of before has no value of them.
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
  """What is allowed but will probably disappoint: choice and consequence, one line each."""
  objective = objective_choices(config)
  found = catalog.warnings(catalog.of(config.task))
  truncation = {key: config.sampler[key] for key in ("top_k", "top_p", "min_p")}
  if truncation != {"top_k": 0, "top_p": 1.0, "min_p": 0.0}:
    found.append(
      f"sampler.top_k, top_p, min_p: got {', '.join(map(str, truncation.values()))}; samples come "
      "from a truncated distribution, the learner's log-probabilities are of the full one: every "
      "log-ratio has a bias (mismatch/max shows it)"
    )
  found.append(_inert_ratio(objective, reduction_setting(config)))
  if objective.fn == "regression" and objective.advantage in group_regime.BASELINES:
    found.append(
      group_regime.regime_warning(
        objective.advantage,
        config.learner.group_size,
        beta=objective.beta,
        beta1=objective.beta1,
        kappa=objective.kappa,
        dv=objective.shift,
      )
    )
  return [warning for warning in found if warning]


def _inert_ratio(objective: losses.Choices, setting: reductions.Setting) -> str | None:
  """What remains of an objective whose ratio to the proximal policy is always 1."""
  if setting.updates > 1 or objective.anchor != "proximal" or objective.proximal != "current":
    return None
  simple = reductions.reduced(objective, setting._replace(on_policy=False)).choices
  return (
    f"objective.name: {objective.name} with one update per batch: the policy is its own proximal "
    "policy, so a clip or mask of their ratio never acts and the gradient is that of "
    f"{reductions.in_words(simple)}; learner.epochs or learner.minibatches above 1 make more"
  )
