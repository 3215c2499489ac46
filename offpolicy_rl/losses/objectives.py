"""An objective: choices made callable. (loss, metrics) = objective(LossInputs)."""

import dataclasses

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import advantages, diagnostics, functions, masked, pairs, presets, ratios
from offpolicy_rl.losses.choices import PAIRWISE, Choices
from offpolicy_rl.losses.inputs import LossInputs, Prepared, required


@dataclasses.dataclass(frozen=True)
class Objective:
  """Call it with LossInputs of a whole batch for (loss, metrics).

  For micro-batches: `prepare` once on the whole batch, then sum `loss` over slices of rows (of
  whole groups where `choices.couples_rows`).
  """

  choices: Choices

  def __call__(self, inputs: LossInputs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a whole batch."""
    prepared = self.prepare(inputs)
    return self.loss(inputs, prepared), self.metrics(inputs, prepared)

  def prepare(self, inputs: LossInputs) -> Prepared:
    """Advantages, row weights and beta of a whole batch; the policy's log-probs are not read."""
    choices, groups = self.choices, inputs.group_ids
    lengths = masked.lengths(inputs.loss_mask)
    rewards = advantages.shaped(choices, inputs.rewards, lengths)
    advantage = advantages.of(choices, rewards, groups, lengths, inputs.values)
    beta = jnp.full(advantage.shape, choices.beta, advantage.dtype)
    kept = jnp.ones(groups.shape, bool)
    if choices.drop_zero_variance:
      kept = masked.group_varies(inputs.rewards, groups)
    if choices.fn in PAIRWISE:
      weights = pairs.row_weights(choices.fn, rewards, groups, kept)
    else:
      weights = masked.row_weights(
        jnp.where(kept, lengths, 0), choices.aggregation, groups, choices.max_tokens
      )
    return Prepared(rewards, advantage, weights, beta)

  def loss(self, inputs: LossInputs, prepared: Prepared) -> jax.Array:
    """The rows' share of the batch's loss: adds up over any split into rows."""
    choices, inputs = self.choices, _bounded(inputs)
    per_row = functions.find(choices.fn)(choices, inputs, prepared)
    if per_row.shape != prepared.row_weights.shape:
      raise ValueError(
        f"objective.fn: {choices.fn} returned shape {per_row.shape}, expected one loss per row, "
        f"{prepared.row_weights.shape}"
      )
    if choices.kl_coef > 0:
      reference = required(inputs, "reference_logprobs")
      gap = ratios.gap(inputs.policy_logprobs, reference, inputs.loss_mask)
      per_row += choices.kl_coef * masked.masked_sum(
        functions.reference_kl(gap, choices.kl), inputs.loss_mask, -1
      )
    return jnp.sum(prepared.row_weights * per_row)

  def metrics(self, inputs: LossInputs, prepared: Prepared) -> dict[str, jax.Array]:
    """Scalars about a whole batch; no gradient is meant to flow through them."""
    return diagnostics.of(self.choices, _bounded(inputs), prepared)


def _bounded(inputs: LossInputs) -> LossInputs:
  names = [name for name in LossInputs._fields if name.endswith("_logprobs")]
  return inputs._replace(**{name: ratios.bounded(getattr(inputs, name)) for name in names})


def objective(name: str | Choices, **overrides) -> Objective:
  """A preset, or choices of your own, as an objective; overrides replace single choices.

  Raises:
    ValueError: unknown preset or choice, or a value that makes no sense.
  """
  found = Objective(presets.choose(name, **overrides))
  functions.find(found.choices.fn)
  return found
