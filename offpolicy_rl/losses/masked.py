"""Every mean over tokens, rows and groups. Masks: True = counts, False = does not."""

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Sum of x where mask is True; x may be NaN elsewhere."""
  return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Mean of x where mask is True; 0 where it is nowhere True."""
  count = jnp.sum(mask, axis=axis)
  return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def masked_max(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Largest x where mask is True; -inf where it is nowhere True."""
  return jnp.max(jnp.where(mask, x, -jnp.inf))


def row_sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """Sums [N] of several [N, M] arrays of one dtype, in one pass over their inputs. No gradient.

  Separate sums would read the inputs once each on CPU.
  """
  arrays = jax.lax.stop_gradient(arrays)  # lax.reduce has no gradient rule
  zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
  add = lambda left, right: tuple(a + b for a, b in zip(left, right, strict=True))
  return jax.lax.reduce(arrays, zeros, add, (1,))


def lengths(loss_mask: jax.Array) -> jax.Array:
  """int [N]: number of loss tokens of each row."""
  return jnp.sum(loss_mask, axis=-1)


def row_weights(
  tokens: jax.Array, aggregation: str, group_ids: jax.Array, max_tokens: int = 0
) -> jax.Array:
  """float [N]: the factor of each row's summed token loss; 0 for empty rows.

  tokens: int [N], `lengths`.

  seq_sum:     1 / valid rows
  seq_mean:    1 / (valid rows * tokens of the row)
  token_mean:  1 / tokens of the whole batch
  constant:    1 / (valid rows * max_tokens)
  prompt_mean: 1 / (groups with a valid row * tokens of the row's group)
  """
  valid = tokens > 0
  rows = jnp.maximum(jnp.sum(valid), 1)
  if aggregation == "seq_sum":
    weight = 1.0 / rows
  elif aggregation == "seq_mean":
    weight = 1.0 / (rows * jnp.maximum(tokens, 1))
  elif aggregation == "token_mean":
    weight = 1.0 / jnp.maximum(jnp.sum(tokens), 1)
  elif aggregation == "constant":
    weight = 1.0 / (rows * max_tokens)
  else:
    in_group = group_sum(tokens.astype(float), group_ids)
    groups = jnp.maximum(number_of_groups(valid, group_ids), 1)
    weight = 1.0 / (groups * jnp.maximum(in_group, 1))
  return jnp.where(valid, weight, 0.0)


def number_of_groups(valid: jax.Array, group_ids: jax.Array) -> jax.Array:
  """Number of groups with at least one valid row, valid [N]."""
  return jnp.sum(jax.ops.segment_max(valid.astype(jnp.int32), group_ids, len(valid)) > 0)


def group_sum(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """float [N]: sum of x [N] over the rows with the same id, at each of those rows."""
  return jax.ops.segment_sum(x, group_ids, x.shape[0])[group_ids]


def group_mean(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """float [N]: mean of x [N] over the rows with the same id, at each of those rows."""
  return group_sum(x, group_ids) / jnp.maximum(group_size(group_ids), 1)


def group_size(group_ids: jax.Array) -> jax.Array:
  """float [N]: number of rows in each row's group."""
  return group_sum(jnp.ones(group_ids.shape[0]), group_ids)


def group_max(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """float [N]: largest x [N] over the rows with the same id, at each of those rows."""
  return jax.ops.segment_max(x, group_ids, x.shape[0])[group_ids]


def group_varies(x: jax.Array, group_ids: jax.Array) -> jax.Array:
  """bool [N]: whether the values of x [N] differ within the row's group."""
  return group_max(x, group_ids) > -group_max(-x, group_ids)


def has_tokens(tokens: jax.Array, group_ids: jax.Array) -> jax.Array:
  """bool [N]: whether the row's group has a loss token; a group that was left out has none.

  tokens: int [N], `lengths`.
  """
  return group_max(tokens, group_ids) > 0


def renumbered(group_ids: jax.Array) -> jax.Array:
  """int [N]: ids in [0, N) for the same groups; ids in a slice of a batch may be larger."""
  return jnp.unique(group_ids, return_inverse=True, size=len(group_ids))[1]
