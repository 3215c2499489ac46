"""Finds groups whose values make a loss or gradient infinite or NaN.

Values are checked when groups arrive, but an objective may overflow even so. Such an update changes
nothing; bisection finds the groups that cause it, and the step is made without them. All of this
depends only on policy and batch, and every process does it, so a resumed or repeated run leaves out
the same groups.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.learner import step
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.model.policy import Params


def only(batch: types.Batch, kept: jax.Array) -> types.Batch:
  """The batch with only the groups of `kept`, bool [groups]; masks the tokens of the others."""
  rows = kept[batch.group_ids]
  tokens, candidates = batch.loss_mask & rows[..., None], batch.candidate_logprobs
  if candidates is not None:
    candidates = jnp.where(tokens[..., None], candidates, 0.0)
  return batch._replace(
    loss_mask=tokens,
    sampler_logprobs=jnp.where(tokens, batch.sampler_logprobs, 0.0),
    rewards=jnp.where(rows, batch.rewards, 0.0),
    verdicts=jnp.where(rows, batch.verdicts, 0.0),
    candidate_logprobs=candidates,
  )


@functools.partial(jax.jit, static_argnums=0)
def _is_finite(
  choices: step.StepChoices, state: TrainState, batch: types.Batch, kept, reference_params
) -> jax.Array:
  _, metrics = step.train_step(choices, state, only(batch, kept), reference_params)
  return metrics["updates_skipped"] == 0


def culprits(is_finite: Callable[[list[int]], bool], groups: list[int]) -> list[int]:
  """Finds the groups to leave out so that the rest is finite, which all together are not.

  If both halves are finite alone, all groups are returned.
  """
  if len(groups) == 1:
    return groups
  middle = len(groups) // 2
  halves = [half for half in (groups[:middle], groups[middle:]) if not is_finite(half)]
  return [group for half in halves for group in culprits(is_finite, half)] or groups


class PoisonFilter:
  """Finds the groups that poison a batch, and removes them."""

  def __init__(self, choices: step.StepChoices, groups: int, reference_params: Params | None):
    """`groups`: number in every batch. Compiles only when needed."""
    self._choices, self._groups, self._reference = choices, groups, reference_params

  def find(self, state: TrainState, batch: types.Batch) -> list[int]:
    """Returns the numbers of the poisonous groups; all of them if the policy may be to blame."""
    finite = lambda kept: bool(
      _is_finite(self._choices, state, batch, self._kept(kept), self._reference)
    )
    return culprits(finite, list(range(self._groups)))

  def without(self, batch: types.Batch, left_out: list[int]) -> types.Batch:
    """Removes groups from a batch, on the same devices."""
    shardings = jax.tree.map(lambda x: x.sharding, batch)
    kept = [group for group in range(self._groups) if group not in left_out]
    return jax.jit(only, out_shardings=shardings)(batch, self._kept(kept))

  def _kept(self, groups: list[int]) -> np.ndarray:
    kept = np.zeros(self._groups, bool)
    kept[groups] = True
    return kept
