"""Rows for the model, made by hand."""

import jax.numpy as jnp

from offpolicy_rl import types


def whole_rows(tokens) -> types.PackedRows:
  """Plain rows [R, L], every token but the first one scored: S = L - 1."""
  tokens = jnp.asarray(tokens)
  columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  ones = jnp.ones_like(columns)
  return types.PackedRows(tokens, columns, ones, 0 * ones, columns[:, :-1], tokens[:, 1:])
