"""Checks a configuration before anything expensive starts. Imports no JAX.

`configs/base.py` says which values each key may have, this file which values go together.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from offpolicy_rl import losses, types
from offpolicy_rl.config import keys
from offpolicy_rl.config.derived import (
  batch_parts,
  environments,
  objective_choices,
  reduction_setting,
  selection,
)
from offpolicy_rl.config.text import ConfigError, flatten
from offpolicy_rl.losses import group_regime, reductions
from offpolicy_rl.model import names
from offpolicy_rl.replay import lag, packing
from offpolicy_rl.tasks import catalog, judge, thoughts
from offpolicy_rl.transport import bounds

Problems = Iterator[str]  # "KEY: what was expected", for values that do not go together


def validate(config: config_dict.ConfigDict, *, trains: bool = True) -> None:
  """Raises ConfigError for the first wrong value; `trains`: for training, not only evaluation."""
  check_keys(config)
  try:
    objective = objective_choices(config)
    vocab_size = catalog.select(config.task).vocabulary.size
  except ValueError as error:
    raise ConfigError(str(error)) from None
  _check_members(config.task)
  if objective.advantage == "value":
    raise ConfigError(
      "objective.advantage: got 'value', expected another: the learner has no values V* of its "
      "prompts; objective.advantage=vhat estimates them from the current group"
    )
  if not config.model.checkpoint:
    fresh = {"vocab_size": vocab_size, "num_experts": 0, "expert_width": 0}
    check_architecture(config, dict(config.model) | fresh)
  _raise_first(flatten(config), _relations(config, trains))


def _raise_first(values: Mapping[str, Any], problems: Problems) -> None:
  for problem in problems:
    together, _, expected = problem.partition(": ")
    got = ", ".join(repr(values[key]) for key in together.split(", "))
    raise ConfigError(f"{together}: got {got}, expected {expected}")


def check_data(config: config_dict.ConfigDict) -> catalog.Selection:
  """Returns the tasks; raises ConfigError if their problems can't be read on this machine."""
  chosen = selection(config)
  try:
    chosen.check()
  except catalog.TaskError as error:
    raise ConfigError(str(error)) from None
  return chosen


def check_keys(config: config_dict.ConfigDict) -> None:
  """Checks keys, types and values, as a configuration may come from the network."""
  values, known = flatten(config), keys.all_keys()
  for name in values:
    if name not in known:
      raise ConfigError(f"{name[:100]!r}: unknown key")
  for name, key in known.items():
    if name not in values:
      raise ConfigError(f"{name}: missing, expected {key.expected}")
    value = values[name]
    if value is None and key.default is None:
      continue
    if not key.has_type(value):
      raise ConfigError(f"{name}: got {value!r:.100}, expected {key.kind.__name__}")
    if key.kind is int and value > keys.MAX_INTEGER:
      raise ConfigError(f"{name}: got {value!r:.100}, expected at most {keys.MAX_INTEGER}")
    if not key.is_good(value):
      raise ConfigError(f"{name}: got {value!r}, expected {key.expected}")


def _check_members(task) -> None:
  """Refuses values that a member of a mixture has for a key and that the key does not allow."""
  if task.name != catalog.MIXTURE:
    return
  for name, entry in catalog.json_object("task.mixture", task.mixture).items():
    for key, value in entry.items() if isinstance(entry, dict) else ():
      known = keys.all_keys().get(f"task.{key}")  # none for the rate
      if known is not None and not known.is_good(value):
        raise ConfigError(
          f"task.mixture: {name}: {key}: got {value!r:.100}, expected {known.expected}"
        )


def check_architecture(
  config: config_dict.ConfigDict, model: Mapping[str, Any], *, samples: bool = True
) -> None:
  """Raises ConfigError if a decoder (fields of `DecoderConfig`) can't be split as configured.

  `samples`: samplers have it, too.
  """
  values = flatten(config) | {f"model.{name}": value for name, value in model.items()}
  if not samples:
    values |= {"sampler.tensor": 1, "sampler.top_logprobs": 0}
  _raise_first(values, _architecture(values))


def _architecture(values: Mapping[str, Any]) -> Problems:
  heads, kv_heads, experts = (
    values[f"model.num_{name}"] for name in ("heads", "kv_heads", "experts")
  )
  mlp_width, expert_width = values["model.mlp_width"], values["model.expert_width"]
  width, vocab_size = values["model.width"], values["model.vocab_size"]
  if heads % kv_heads:
    yield f"model.num_kv_heads: a divisor of model.num_heads = {heads}"
  for key in ("mesh.tensor", "sampler.tensor"):
    if kv_heads % values[key] or mlp_width % values[key]:
      both = f"model.num_kv_heads = {kv_heads} and of model.mlp_width = {mlp_width}"
      yield f"{key}: a divisor of {both}"
    if vocab_size % values[key]:
      yield f"{key}: a divisor of the vocabulary's {vocab_size} ids"
    if experts and expert_width % values[key]:
      yield f"{key}: a divisor of {expert_width}, the width of the model's experts"
  if values["sampler.top_logprobs"] > vocab_size:
    yield f"sampler.top_logprobs: at most {vocab_size}, the ids of the vocabulary"
  if width % values["mesh.fsdp"]:
    yield f"mesh.fsdp: a divisor of model.width = {width}"
  if not experts and values["mesh.expert"] > 1:
    yield "mesh.expert: 1: the model has no experts"
  if experts % values["mesh.expert"]:
    yield f"mesh.expert: a divisor of the model's {experts} experts"


def _relations(c, trains: bool) -> Problems:
  if bool(c.task.format_pattern) != (c.task.format_reward > 0):
    yield "task.format_pattern, task.format_reward: a pattern and a reward above 0, or neither"
  yield from _rows(c)
  yield from _turns(c)
  yield from _judge(c)
  yield from _lag(c)
  yield from _cache_and_leases(c)
  completions = max(c.evaluation.samples, c.learner.group_size if trains else 1)
  if c.sampler.slots < completions:
    yield f"sampler.slots: at least {completions}, the completions of one ticket"
  if trains:
    yield from _messages(c)
    yield from _candidates(c)
    yield from _teacher(c)


def _teacher(c) -> Problems:
  objective = objective_choices(c)
  if objective.needs_teacher and not c.teacher.checkpoint:
    yield f"teacher.checkpoint: a directory: objective.name = {objective.name} needs a teacher"
  if objective.advantage == "none" and c.learner.max_refills:
    yield "learner.max_refills: 0 with objective.advantage = none: no group is without signal"


def _candidates(c) -> Problems:
  objective = objective_choices(c)
  if objective.needs_candidates and not c.sampler.top_logprobs:
    yield (
      f"sampler.top_logprobs: at least 1: objective.fn = {objective.fn} needs the sampler's "
      "likeliest tokens; the paper takes 128"
    )


def _rows(c) -> Problems:
  prompts, shards = c.learner.prompts_per_step, names.batch_shards(c.mesh)
  if prompts % c.learner.minibatches:
    yield f"learner.minibatches: a divisor of learner.prompts_per_step = {prompts}: whole groups"
  rows = prompts * c.learner.group_size
  if rows % (batch_parts(c.learner) * shards):
    yield (
      "mesh.data, mesh.fsdp, mesh.expert, learner.minibatches, learner.microbatches: a product "
      f"that divides the {rows} rows of a batch (prompts_per_step x group_size)"
    )
  objective = objective_choices(c)
  if objective.couples_batch and c.learner.microbatches > 1:
    yield f"learner.microbatches: 1: objective.weight = {objective.weight} needs the whole batch"
  if objective.couples_rows and prompts % batch_parts(c.learner):
    yield (
      "learner.microbatches: a divisor of learner.prompts_per_step / learner.minibatches = "
      f"{prompts} / {c.learner.minibatches}: objective.fn = {objective.fn} with objective.weight = "
      f"{objective.weight} needs whole groups"
    )
  if c.warm_start.rows % shards:
    yield f"warm_start.rows: a multiple of data x fsdp x expert = {shards}"
  columns, longest = c.learner.row_tokens, _longest(c)
  if columns and c.learner.layout == packing.PADDED:
    yield "learner.row_tokens: 0 with layout padded: a row is one completion"
  if 0 < columns < longest:
    yield f"learner.row_tokens: at least {longest}, the longest prompt and completion"


def _turns(c) -> Problems:
  mixed, played = c.task.name == catalog.MIXTURE, environments(c)
  if mixed and c.environment.name not in ("", catalog.NO_ENVIRONMENT):
    yield f"environment.name: '' or none with task.name = {catalog.MIXTURE}: members name theirs"
  tools = json.loads(c.environment.tools or "null")
  if mixed and tools is not None and not (isinstance(tools, dict) and tools.keys() <= set(played)):
    names = ", ".join(played) or "none"
    yield f"environment.tools: '' or an object, environment -> schemas, of the mixture's: {names}"
  if not mixed and isinstance(tools, dict):
    yield f"environment.tools: a list of schemas unless task.name = {catalog.MIXTURE}"
  if not played:
    return
  if c.task.format_pattern and not selection(c).judged:
    yield "task.format_pattern: '' with an environment, which judges the turns"
  if c.task.verifier:
    yield "task.verifier: '' with an environment, which judges the turns"
  if 0 < c.environment.episodes < c.sampler.slots:
    yield f"environment.episodes: 0 or at least sampler.slots = {c.sampler.slots}"
  if c.environment.history == thoughts.REWRITE and not (c.model.checkpoint and c.task.chat):
    yield "environment.history: refuse or keep without a chat template, which would write it"
  if c.environment.history == thoughts.REWRITE and c.warm_start.steps:
    yield "warm_start.steps: 0 with environment.history = rewrite: prompts end before the answer"


def _judge(c) -> Problems:
  try:
    judge.rubric(c.judge.rubric)
  except ValueError as error:
    yield f"judge.rubric: {error}"
  if not c.judge.url:
    if c.judge.rubric:
      yield "judge.url: the address of a server that grades by judge.rubric"
    return
  if not c.judge.model:
    yield "judge.model: the name that the server at judge.url knows it by"
  if not c.judge.rubric:
    yield "judge.rubric: what it grades by"


def _longest(c) -> int:
  return c.task.max_prompt_tokens + c.task.max_completion_tokens


def _lag(c) -> Problems:
  if c.lag.mode == lag.PERIODIC and c.lag.max_lag < 1:
    yield "lag.max_lag: at least 1 in mode periodic"
  if (c.lag.mode == lag.REPLAY) != bool(c.lag.schedule):
    yield "lag.schedule: a file in mode replay and '' in every other"
  if c.lag.kept_versions and c.lag.mode != lag.FIXED:
    yield f"lag.kept_versions: 0 with lag.mode = {c.lag.mode}, which keeps few"
  if c.sampler.weight_update != types.BETWEEN_GROUPS and c.lag.mode != lag.ASYNC:
    yield (
      f"sampler.weight_update: {types.BETWEEN_GROUPS} with lag.mode = {c.lag.mode}: its groups are "
      "of exactly one version"
    )


def _cache_and_leases(c) -> Problems:
  least = 2 * (_longest(c) + c.sampler.page_tokens)
  if 0 < c.sampler.cache_tokens < least:
    yield f"sampler.cache_tokens: 0 or at least {least}: two of the longest rows, in whole pages"
  lease = c.transport.lease_seconds
  if c.transport.heartbeat_seconds * 2 > lease:
    yield f"transport.heartbeat_seconds: at most half of transport.lease_seconds = {lease}"


def _messages(c) -> Problems:
  for key, completions in (
    ("learner.group_size", c.learner.group_size),
    ("evaluation.samples", c.evaluation.samples),
  ):
    if completions > bounds.MAX_COMPLETIONS:
      yield f"{key}: at most {bounds.MAX_COMPLETIONS} completions of a ticket"
  completions = max(c.learner.group_size, c.evaluation.samples)
  prompt, longest = c.task.max_prompt_tokens, c.task.max_completion_tokens
  group = bounds.max_group_bytes(completions, longest, c.sampler.top_logprobs)
  most = max(bounds.ticket_bytes(prompt, ""), group)
  if most > c.transport.max_message_mb << 20:
    yield (
      f"transport.max_message_mb: at least {(most >> 20) + 1}: a prompt of {prompt} tokens must "
      f"fit, and so must {completions} completions of {longest} tokens with a version and "
      f"{c.sampler.top_logprobs} candidates for each"
    )


# Keys that a resumed run may not change, as its groups depend on them.
_FROZEN = re.compile(
  r"seed|task\.|model\.|lag\.|environment\.(name|tools|history|max_turns|max_turn_tokens)|learner\.(prompts_per_step|group_size|max_refills)|"
  r"sampler\.(temperature|top_k|top_p|min_p|top_logprobs|stop|slots|int8_weights)|evaluation\.(problems|samples)|judge\.(model|rubric)|"
  r"transport\.weights_dtype"
)
# Except paths, and how verifiers are run.
_FREE = re.compile(
  r"task\.(data_dir|train_file|heldout_file|verifier_(processes|seconds|memory_mb))"
)


def check_resume(saved: config_dict.ConfigDict, now: config_dict.ConfigDict) -> None:
  """Raises ConfigError for the first key that a resumed run must not change but does.

  Keys that a later release has added may have any value.
  """
  before = flatten(saved)
  for key, value in flatten(now).items():
    must_stay = key in before and _FROZEN.match(key) and not _FREE.match(key)
    if must_stay and value != before[key]:
      raise ConfigError(
        f"{key}: got {value!r}, expected {before[key]!r} as the run to resume; its groups were "
        "sampled with that (choose another --run_dir for a new run)"
      )


def warnings(config: config_dict.ConfigDict) -> list[str]:
  """Warnings about values that are allowed but probably not wanted, a line each."""
  objective = objective_choices(config)
  lines: list[str | None] = [*catalog.warnings(catalog.select(config.task))]
  truncation = {key: config.sampler[key] for key in ("top_k", "top_p", "min_p")}
  if truncation != {"top_k": 0, "top_p": 1.0, "min_p": 0.0}:
    lines.append(
      f"sampler.top_k, top_p, min_p: got {', '.join(map(str, truncation.values()))}; samples come "
      "from a truncated distribution, but the learner's log-probabilities are of the full one, so "
      "every log-ratio is biased (see mismatch/max)"
    )
  lines += _unused_keys(config, objective)
  lines.append(_inert_ratio(objective, reduction_setting(config)))
  if objective.fn == "optimal_baseline" and not config.learner.ess_target:
    lines.append(
      f"learner.ess_target: got {config.learner.ess_target!r}, so the step size is fixed: "
      f"objective.name = {objective.name} is meant with one that falls with the effective sample "
      "size, learner.ess_target = 1"
    )
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


def _unused_keys(config: config_dict.ConfigDict, objective: losses.Choices) -> list[str]:
  """A warning for each key of the objective that is set but has no effect."""
  sizes = {"name", "group_size", "max_tokens", "whole_groups"}
  unused = set(config.objective) - objective.used() - sizes
  return [
    f"objective.{key}: got {config.objective[key]!r}, which has no effect: objective.fn = "
    f"{objective.fn} and the other functions of {objective.name} do not take it"
    for key in sorted(unused)
    if config.objective[key] is not None
  ]


def _inert_ratio(objective: losses.Choices, setting: reductions.Setting) -> str | None:
  """A warning if the objective's ratio to the proximal policy is always 1."""
  if setting.updates > 1 or objective.anchor != "proximal" or objective.proximal != "current":
    return None
  simple = reductions.reduced(objective, setting._replace(on_policy=False)).choices
  return (
    f"objective.name: {objective.name} with one update per batch: the policy is its own proximal "
    "policy, so a clip or mask of their ratio never acts and the gradient is that of "
    f"{reductions.in_words(simple)}; learner.epochs or learner.minibatches above 1 make more"
  )
