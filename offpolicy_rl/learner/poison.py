"""Groups whose numbers make a loss or a gradient infinite or not a number.

Values are bounded where groups come in, but an objective can still overflow on some that are within
the bounds. Such an update changes nothing; the groups that are to blame are searched by halves, and
the step is made without them. All of it depends on policy and batch only and runs in every process
of a learner alike, so a resumed or repeated run leaves out the same.
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
  """The batch as if it had only the groups of kept, bool [groups]: no other token counts."""
  rows = kept[batch.group_ids]
  tokens = batch.loss_mask & rows[..., None]
  return batch._replace(
    loss_mask=tokens,
    sampler_logprobs=jnp.where(tokens, batch.sampler_logprobs, 0.0),
    rewards=jnp.where(rows, batch.rewards, 0.0),
    verdicts=jnp.where(rows, batch.verdicts, 0.0),
  )


@functools.partial(jax.jit, static_argnums=0)
def _is_finite(
  choices: step.StepChoices, state: TrainState, batch: types.Batch, kept, reference_params
) -> jax.Array:
  """True if an update on these groups would have a finite loss and gradient; makes none."""
  _, metrics = step.train_step(choices, state, only(batch, kept), reference_params)
  return metrics["updates_skipped"] == 0


def culprits(is_finite: Callable[[list[int]], bool], groups: list[int]) -> list[int]:
  """The groups that have to go for the rest to be finite; all together are not.

  Where neither half is to blame alone, both are.
  """
  if len(groups) == 1:
    return groups
  middle = len(groups) // 2
  halves = [half for half in (groups[:middle], groups[middle:]) if not is_finite(half)]
  found = [group for half in halves for group in culprits(is_finite, half)]
  return found or groups


class PoisonFilter:
  """Finds the groups that poison a batch, and leaves them out."""

  def __init__(self, choices: step.StepChoices, groups: int, reference_params: Params | None):
    """`groups`: in every batch. Compiles nothing before it is needed."""
    self._choices, self._groups, self._reference = choices, groups, reference_params

  def find(self, state: TrainState, batch: types.Batch) -> list[int]:
    """Numbers of the groups to blame; all of them when the policy itself may be."""
    finite = lambda kept: bool(
      _is_finite(self._choices, state, batch, self._kept(kept), self._reference)
    )
    return culprits(finite, list(range(self._groups)))

  def without(self, batch: types.Batch, left_out: list[int]) -> types.Batch:
    """The batch, on the same devices, as if these groups were not there."""
    shardings = jax.tree.map(lambda x: x.sharding, batch)
    kept = [group for group in range(self._groups) if group not in left_out]
    return jax.jit(only, out_shardings=shardings)(batch, self._kept(kept))

  def _kept(self, groups: list[int]) -> np.ndarray:
    kept = np.zeros(self._groups, bool)
    kept[groups] = True
    return kept
