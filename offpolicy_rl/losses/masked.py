"""Every mean over tokens, rows and groups. Masks: True = counts, False = does not."""

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Sum of x where mask; values under the mask may be anything, NaN included."""
  return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def masked_mean(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Sum of x where mask / number of True; 0 where nothing is True."""
  count = jnp.sum(mask, axis=axis)
  return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def masked_max(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Largest x where mask; -inf where nothing is True."""
  return jnp.max(jnp.where(mask, x, -jnp.inf))


def row_is_valid(loss_mask: jax.Array) -> jax.Array:
  """bool [B]: rows that hold at least one token of loss_mask [B, T]."""
  return jnp.any(loss_mask, axis=-1)


def row_weights(loss_mask: jax.Array) -> jax.Array:
  """float [B]: 1 / number of valid rows on valid rows, 0 on empty ones."""
  valid = row_is_valid(loss_mask)
  return jnp.where(valid, 1.0 / jnp.maximum(jnp.sum(valid), 1), 0.0)


def token_weights(loss_mask: jax.Array, aggregation: str) -> jax.Array:
  """float [B, T]: what each token's loss is multiplied with before everything is summed.

  seq_sum:    1 / valid rows
  seq_mean:   1 / (valid rows * tokens of the row)
  token_mean: 1 / tokens of the whole batch
  """
  if aggregation == "token_mean":
    weight = jnp.full(loss_mask.shape[0], 1.0 / jnp.maximum(jnp.sum(loss_mask), 1))
  elif aggregation == "seq_mean":
    weight = row_weights(loss_mask) / jnp.maximum(jnp.sum(loss_mask, axis=-1), 1)
  elif aggregation == "seq_sum":
    weight = row_weights(loss_mask)
  else:
    raise ValueError(f"aggregation: {aggregation!r}, expected seq_sum, seq_mean or token_mean")
  return jnp.where(loss_mask, weight[:, None], 0.0)


def group_mean(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """float [B]: mean of x [B] over the rows with the same id, at each of those rows."""
  rows = x.shape[0]  # there are at most as many groups as rows
  total = jax.ops.segment_sum(x, group_ids, rows)
  count = jax.ops.segment_sum(jnp.ones_like(x), group_ids, rows)
  return (total / jnp.maximum(count, 1))[group_ids]


def group_size(group_ids: jax.Array) -> jax.Array:
  """float [B]: number of rows in each row's group."""
  ones = jnp.ones(group_ids.shape[0])
  return jax.ops.segment_sum(ones, group_ids, group_ids.shape[0])[group_ids]


def group_max(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """float [B]: largest x [B] among the rows with the same id."""
  return jax.ops.segment_max(x, group_ids, x.shape[0])[group_ids]
