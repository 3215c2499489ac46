"""Pairs of completions within a group, for losses that compare them. Groups must be complete.

`adjacent` and `extremes` return (partner [N], leads [N]): a pair counts at the row that leads it.
"""

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked


def adjacent(group_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The group's rows 0 and 1, 2 and 3, ... in the order of the batch; an odd last one is alone."""
  rows = jnp.arange(len(group_ids))
  groups = masked.renumbered(group_ids)
  order = jnp.argsort(groups, stable=True)
  place = jnp.zeros_like(rows).at[order].set(rows)
  rank = place - jax.ops.segment_min(place, groups, len(rows))[groups]
  following = order[jnp.minimum(place + 1, len(rows) - 1)]
  leads = (rank % 2 == 0) & (groups[following] == groups) & (following != rows)
  return jnp.where(leads, following, rows), leads


def extremes(rewards: jax.Array, group_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The group's best row leads, its worst is the partner; ties: the first; all equal: no pair."""
  rows = jnp.arange(len(group_ids))
  groups = masked.renumbered(group_ids)

  def first_of_largest(x: jax.Array) -> jax.Array:
    candidates = jnp.where(x == masked.group_max(x, groups), rows, len(rows))
    return jax.ops.segment_min(candidates, groups, len(rows))[groups]

  best, worst = first_of_largest(rewards), first_of_largest(-rewards)
  return worst, (rows == best) & (rewards > rewards[worst])


def row_weights(
  fn: str, rewards: jax.Array, group_ids: jax.Array, kept: jax.Array | bool = True
) -> jax.Array:
  """float [N]: 1 / pairs of the batch, or 1 / groups for "centred_squares"."""
  if fn == "centred_squares":
    size = masked.group_size(masked.renumbered(group_ids))
    count = jnp.sum(jnp.where(kept, 1.0 / size, 0.0))
  elif fn == "pair_squares":
    count = jnp.sum(adjacent(group_ids)[1] & kept)
  else:
    count = jnp.sum(extremes(rewards, group_ids)[1] & kept)
  return jnp.where(kept, jnp.full(group_ids.shape, 1.0) / jnp.maximum(count, 1), 0.0)
