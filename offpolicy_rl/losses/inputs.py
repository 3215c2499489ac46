"""What an objective sees. B rows, T tokens; groups may have any size, rows may be empty."""

from typing import NamedTuple

import jax


class LossInputs(NamedTuple):
  """Arrays only. Log-probs are natural logarithms; values outside the loss mask may be anything."""

  policy_logprobs: jax.Array  # float [B, T], differentiated
  sampler_logprobs: jax.Array  # float [B, T], as recorded when sampling
  loss_mask: jax.Array  # bool [B, T], True = contributes
  rewards: jax.Array  # float [B]
  group_ids: jax.Array  # int [B], in [0, B)
  reference_logprobs: jax.Array | None = None  # float [B, T]
  proximal_logprobs: jax.Array | None = None  # float [B, T]
  versions: jax.Array | None = None  # int [B, T], policy version that sampled each token
  values: jax.Array | None = None  # float [B], V* of the row's prompt (A*-PO)


class Prepared(NamedTuple):
  """What depends on the whole batch and not on the policy. Given it, losses add up over rows."""

  rewards: jax.Array  # float [B], with the overlong penalty if there is one
  advantages: jax.Array  # float [B], without pessimistic shift
  row_weights: jax.Array  # float [B], 0 = the row does not count
  beta: jax.Array  # float [B], the temperature; the same value in every row


def required(inputs: LossInputs, field: str) -> jax.Array:
  """That field of the inputs; a missing one is an error, never zeros."""
  found = getattr(inputs, field)
  if found is None:
    raise ValueError(f"{field}: got None, but this objective needs them")
  return found
