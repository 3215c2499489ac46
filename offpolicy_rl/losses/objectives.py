"""An objective: a preset's functions put together. (loss, metrics) = objective(LossInputs).

Every function, including yours, gets the arrays (ARRAYS) and the keys of `objective.` that its
parameters name.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import (
  advantages,
  diagnostics,
  functions,
  masked,
  pairs,
  presets,
  ratios,
  weights,
)
from offpolicy_rl.losses.choices import ARGUMENTS, OVERRIDABLE, PAIRWISE, WEIGHTED, Choices
from offpolicy_rl.losses.inputs import LossInputs, Prepared

# The arrays that a loss can name: the inputs, with the overlong penalty in `rewards` and without in
# `unshaped_rewards`; the advantages of Prepared; log-probabilities [N, M] of `objective.anchor` and
# the log-ratios u [N] to it; weights [N, M] of `objective.weight`, `.correction`, `.opsm_delta`.
ARRAYS = (
  *LossInputs._fields,
  "unshaped_rewards",
  "unshifted_advantages",
  "advantages",
  "anchor_logprobs",
  "log_ratios",
  "weights",
)
_KEYS = frozenset(field.name for field in OVERRIDABLE)


@dataclasses.dataclass(frozen=True)
class Objective:
  """Computes (loss, metrics) from the LossInputs of a batch.

  For micro-batches: call `prepare` once on the batch, then sum `loss` over slices of its rows. They
  must not split groups if `choices.couples_rows`.
  """

  choices: Choices

  def __call__(self, inputs: LossInputs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (loss, metrics) of a batch, both as scalars.

    Raises:
      ValueError: arrays whose shapes do not belong together.
    """
    inputs.check()
    prepared = self.prepare(inputs)
    return self.loss(inputs, prepared), self.metrics(inputs, prepared)

  def prepare(self, inputs: LossInputs) -> Prepared:
    """Computes what the loss needs of the whole batch; does not read the policy's logprobs."""
    choices, groups = self.choices, inputs.group_ids
    lengths = masked.lengths(inputs.loss_mask)
    rewards = inputs.rewards
    if choices.overlong_cache:
      rewards = rewards + _call(advantages.overlong_penalty, {"lengths": lengths}, choices)
    arrays = {"rewards": rewards, "group_ids": groups, "lengths": lengths, "values": inputs.values}
    advantage = _call(advantages.ADVANTAGES[choices.advantage], arrays, choices)
    kept = masked.has_tokens(lengths, groups)
    if choices.drop_zero_variance:
      kept &= masked.group_varies(inputs.rewards, groups)
    if choices.fn in PAIRWISE:
      row_weights = pairs.row_weights(choices.fn, rewards, groups, kept)
    else:
      row_weights = masked.row_weights(
        jnp.where(kept, lengths, 0), choices.aggregation, groups, choices.max_tokens
      )
    shifted = advantage + choices.kappa * choices.beta + choices.shift
    return Prepared(rewards, advantage, shifted, row_weights)

  def loss(self, inputs: LossInputs, prepared: Prepared) -> jax.Array:
    """The share that these rows have in the loss of the batch; shares of all rows add up to it."""
    choices, inputs = self.choices, _bounded(inputs)
    arrays = inputs._asdict() | prepared._asdict() | {"unshaped_rewards": inputs.rewards}
    arrays["anchor_logprobs"] = _required(arrays, f"{choices.anchor}_logprobs")
    arrays["log_ratios"] = _call(functions.row_log_ratio, arrays, choices)
    arrays["weights"] = _token_weights(choices, arrays)
    per_row = _call(find(choices.fn), arrays, choices)
    if per_row.shape != prepared.row_weights.shape:
      raise ValueError(
        f"objective.fn: {choices.fn} returned shape {per_row.shape}, expected one loss per row, "
        f"{prepared.row_weights.shape}"
      )
    if choices.kl_coef > 0:
      per_row += choices.kl_coef * _call(functions.reference_kl, arrays, choices)
    return jnp.sum(prepared.row_weights * per_row)

  def metrics(self, inputs: LossInputs, prepared: Prepared) -> dict[str, jax.Array]:
    """Computes scalars about a batch, see diagnostics.py; they carry no gradient."""
    return diagnostics.metrics(self.choices, _bounded(inputs), prepared)


def objective(name: str | Choices, **overrides: Any) -> Objective:
  """A preset, or your own choices, as an objective; overrides replace single keys.

  Raises:
    ValueError: unknown preset, key or function, or an invalid value.
  """
  choices = presets.choose(name, **overrides)
  find(choices.fn)
  return Objective(choices)


def find(fn: str) -> Callable[..., jax.Array]:
  """The loss named in functions.LOSSES, or your own ("module:function").

  Raises:
    ValueError: no such module or function, or a parameter that names neither an array nor a key.
  """
  if fn in functions.LOSSES:
    return functions.LOSSES[fn]
  module, _, name = fn.partition(":")
  try:
    function = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"objective.fn: got {fn!r}: {error}") from None
  if not callable(function):
    raise ValueError(f"objective.fn: got {fn!r}, which is {function!r:.60}, expected a function")
  for parameter in _parameters(function):
    if parameter.name not in _KEYS.union(ARRAYS) and parameter.default is parameter.empty:
      raise ValueError(
        f"objective.fn: got {fn!r}, whose parameter {parameter.name!r} is neither a key of "
        f"objective nor one of the arrays {', '.join(ARRAYS)}"
      )
  return function


def _parameters(function: Callable) -> list[inspect.Parameter]:
  by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  return [p for p in inspect.signature(function).parameters.values() if p.kind in by_name]


def _call(
  function: Callable[..., jax.Array], arrays: dict[str, Any], choices: Choices
) -> jax.Array:
  given = {}
  for parameter in _parameters(function):
    name = parameter.name
    if name in _KEYS and name not in arrays:
      given[name] = getattr(choices, name)
    elif parameter.default is parameter.empty:
      given[name] = _required(arrays, name)
    elif name in arrays:
      given[name] = arrays[name]
  return function(**given)


def _required(arrays: dict[str, Any], name: str) -> jax.Array:
  if arrays[name] is None:
    raise ValueError(f"{name}: got None, but this objective needs it")
  return arrays[name]


def _token_weights(choices: Choices, arrays: dict[str, Any]) -> jax.Array | float:
  """Product of the chosen weights, float [N, M] or [N, 1]; 1.0 without any."""
  if choices.fn in ARGUMENTS["fn"] and choices.fn not in WEIGHTED:
    return 1.0
  product = 1.0
  log_ratio = lambda x, y: jax.lax.stop_gradient(
    ratios.log_ratio(_required(arrays, x), _required(arrays, y), arrays["loss_mask"])
  )
  if choices.correction != "none":
    mismatch = {"mismatch": log_ratio("proximal_logprobs", "sampler_logprobs")}
    product *= _call(weights.CORRECTIONS[choices.correction], arrays | mismatch, choices)
  if choices.weight != "none":
    anchor = {"anchor_log_ratio": log_ratio("policy_logprobs", "anchor_logprobs")}
    product *= _call(weights.WEIGHTS[choices.weight], arrays | anchor, choices)
  if choices.opsm_delta < float("inf"):
    sampler = {"sampler_log_ratio": log_ratio("policy_logprobs", "sampler_logprobs")}
    product *= _call(weights.sequence_mask, arrays | sampler, choices)
  return product


def _bounded(inputs: LossInputs) -> LossInputs:
  """The inputs with all log-probabilities clamped."""
  logprobs = {name: x for name, x in inputs._asdict().items() if name.endswith("_logprobs")}
  return inputs._replace(**{n: ratios.bounded(x) for n, x in logprobs.items() if x is not None})
