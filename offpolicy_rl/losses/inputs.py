"""The arrays of a batch, as an objective takes them."""

from typing import NamedTuple

import jax


class LossInputs(NamedTuple):
  """B rows, T tokens; groups may have any size, rows may be empty.

  Log-probabilities are natural logarithms; values outside the loss mask may be anything.
  """

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
  """Numbers of a whole batch without the policy's; given them, losses add up over rows."""

  rewards: jax.Array  # float [B], with the overlong penalty if there is one
  unshifted_advantages: jax.Array  # float [B], A
  advantages: jax.Array  # float [B], A + kappa beta + shift
  row_weights: jax.Array  # float [B], 0 = the row does not count
