"""The KV cache: a pool of pages, and attention of a row to the pages that are its own.

A row's tokens lie in the pages that its table lists, position p in page table[p // S] at p % S.
Rows may list the same pages: completions of a group share those of their prompt. Page 0 belongs to
nobody; a table is filled up with it, and what is not wanted is written there.

Attention visits pages in spans, as far as the longest row reaches (online softmax, Milakov &
Gimelshein, arXiv 1805.02867). A span that a row sees nothing of leaves its result as it is, to the
bit: what a row gets does not depend on how long others are.

Dimension suffixes as in `decoder`; N pages of S tokens, P pages in a table.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model.attention import softcap

_NEVER = -1e30  # score of what is not seen; finite, so that nothing becomes nan


class Pool(NamedTuple):
  """Keys and values of all layers."""

  k_LxNxSxKxC: jax.Array
  v_LxNxSxKxC: jax.Array


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=("pool", "tables_BxP"), meta_fields=("span",)
)
@dataclasses.dataclass(frozen=True)
class Cache:
  """What the rows of a forward pass read and extend."""

  pool: Pool
  tables_BxP: jax.Array  # int32, page numbers
  span: int = 1  # pages visited at a time; P is a multiple of it


class OfLayer(NamedTuple):
  """A cache as one layer sees it."""

  pool: Pool
  layer: jax.Array  # int32 []
  tables_BxP: jax.Array
  span: int


def empty(config, pages: int, page_tokens: int) -> Pool:
  """Pool of zeros."""
  shape = (config.num_layers, pages, page_tokens, config.num_kv_heads, config.head_dim)
  return Pool(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def contiguous(config, rows: int, tokens: int) -> Cache:
  """A cache of one page per row, for rows of at most `tokens` tokens."""
  return Cache(empty(config, rows + 1, tokens), 1 + jnp.arange(rows)[:, None])


def copy(pool: Pool, sources: jax.Array, targets: jax.Array) -> Pool:
  """Pages `sources` over pages `targets`, int32 [M] both."""
  return jax.tree.map(lambda x: x.at[:, targets].set(x[:, sources]), pool)


def extend(cache: OfLayer, k_BxTxKxC, v_BxTxKxC, positions_BxT) -> OfLayer:
  """With the keys and values of new tokens."""
  tables, size = cache.tables_BxP, cache.pool.k_LxNxSxKxC.shape[2]
  at = positions_BxT // size
  # Padding may lie beyond the table.
  page_BxT = jnp.take_along_axis(tables, jnp.minimum(at, tables.shape[1] - 1), axis=1)
  page_BxT = jnp.where(at < tables.shape[1], page_BxT, 0)
  at = (cache.layer, page_BxT, positions_BxT % size)
  k, v = cache.pool
  return cache._replace(pool=Pool(k.at[at].set(k_BxTxKxC), v.at[at].set(v_BxTxKxC)))


def attend(q_BxTxHxC, cache: OfLayer, positions_BxT, is_local, config):
  """Grouped-query attention of new tokens to all up to their own position -> [B, T, H, C].

  `is_local`: bool [] or None, whether this layer sees `config.sliding_window` tokens only.
  """
  rows, length, heads, channels = q_BxTxHxC.shape
  kv_heads, size = config.num_kv_heads, cache.pool.k_LxNxSxKxC.shape[2]
  scale = config.query_scale or config.head_dim**-0.5
  q = (q_BxTxHxC * scale).reshape(rows, length, kv_heads, heads // kv_heads, channels)
  tokens = cache.span * size

  def visit(i, found):
    """`found`: largest score, sum of exponentials [B, K, G, T], weighted values [..., C]."""
    top, total, values = found
    pages = jax.lax.dynamic_slice_in_dim(cache.tables_BxP, i * cache.span, cache.span, axis=1)
    k, v = (x[cache.layer, pages].reshape(rows, tokens, kv_heads, channels) for x in cache.pool)
    scores = jnp.einsum("btkgc,bskc->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = softcap(scores, config.attention_softcap)
    behind_BxTxS = positions_BxT[:, :, None] - (i * tokens + jnp.arange(tokens))[None, None]
    seen = behind_BxTxS >= 0
    if is_local is not None:
      seen &= ~is_local | (behind_BxTxS < config.sliding_window)
    seen = seen[:, None, None]
    scores = jnp.where(seen, scores, _NEVER)
    new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
    weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
    kept = jnp.exp(top - new_top)
    total = total * kept + jnp.sum(weights, axis=-1)
    added = jnp.einsum(
      "bkgts,bskc->bkgtc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return new_top, total, values * kept[..., None] + added

  shape = (rows, kv_heads, heads // kv_heads, length)
  nothing = (jnp.full(shape, _NEVER), jnp.zeros(shape), jnp.zeros((*shape, channels)))
  spans = jnp.minimum(jnp.max(positions_BxT) // tokens + 1, cache.tables_BxP.shape[1] // cache.span)
  _, total, values = jax.lax.fori_loop(0, spans, visit, nothing)
  # Padding past the end may see nothing; what is written for it must not be nan.
  attended = (values / jnp.maximum(total, 1e-30)[..., None]).astype(q_BxTxHxC.dtype)
  return attended.transpose(0, 3, 1, 2, 4).reshape(q_BxTxHxC.shape)
