"""The arrays of a batch, as an objective takes them."""

from typing import NamedTuple

import jax


class LossInputs(NamedTuple):
  """N completions of M tokens; groups may have any size, completions may be empty.

  Log-probabilities, in fields whose names end in `_logprobs` and in no others, are natural
  logarithms; values outside the loss mask are ignored.
  """

  policy_logprobs: jax.Array  # float [N, M], differentiated
  sampler_logprobs: jax.Array  # float [N, M], as recorded when sampling
  loss_mask: jax.Array  # bool [N, M], True = contributes
  rewards: jax.Array  # float [N]
  group_ids: jax.Array  # int [N], in [0, N)
  reference_logprobs: jax.Array | None = None  # float [N, M]
  proximal_logprobs: jax.Array | None = None  # float [N, M]
  versions: jax.Array | None = None  # int [N, M], policy version that sampled each token
  values: jax.Array | None = None  # float [N], V* of the completion's prompt (A*-PO)
  # float [N, M, I], of the sampler's I likeliest tokens: the policy's and the sampler's
  candidate_logprobs: jax.Array | None = None  # differentiated
  sampler_candidate_logprobs: jax.Array | None = None
  teacher_logprobs: jax.Array | None = None  # float [N, M]

  def check(self) -> None:
    """Compares shapes, which are known while a program is traced, too.

    Raises:
      ValueError: an array has another shape than `policy_logprobs`, [N, M], asks for.
    """
    shape = self.policy_logprobs.shape
    if len(shape) != 2:
      raise ValueError(f"policy_logprobs: got shape {shape}, expected [completions, tokens]")
    for name, array in self._asdict().items():
      if array is None:
        continue
      expected = shape[:1] if name in _OF_ROWS else shape
      got = array.shape[:2] if name.endswith("candidate_logprobs") else array.shape
      if got != expected:
        raise ValueError(
          f"{name}: got shape {array.shape}, expected {expected} beside policy_logprobs {shape}"
        )


_OF_ROWS = ("rewards", "group_ids", "values")


class Prepared(NamedTuple):
  """Numbers of a batch that do not depend on the policy; given them, losses add up over rows."""

  rewards: jax.Array  # float [N], with the overlong penalty if there is one
  unshifted_advantages: jax.Array  # float [N], A
  advantages: jax.Array  # float [N], A + kappa beta + shift
  row_weights: jax.Array  # float [N], 0 = the row does not count
