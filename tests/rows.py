"""Rows for the model, made by hand."""

import jax.numpy as jnp

from offpolicy_rl import types
from offpolicy_rl.model import paging


def cache_of_rows(config, rows: int, tokens: int) -> paging.Cache:
  """One page per row, for rows of at most `tokens` tokens."""
  return paging.Cache(paging.empty(config, rows + 1, tokens), 1 + jnp.arange(rows)[:, None])


def whole_rows(tokens) -> types.PackedRows:
  """Plain rows [B, T], every token but the first one scored: Q = T - 1."""
  tokens = jnp.asarray(tokens)
  columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  ones, ends = jnp.ones_like(columns), jnp.full_like(columns, tokens.shape[1])
  return types.PackedRows(tokens, columns, ones, ends, columns[:, :-1], tokens[:, 1:])
