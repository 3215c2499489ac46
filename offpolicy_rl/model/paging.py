"""The KV cache: a pool of pages, and attention of each row to its pages.

A row's tokens lie in the pages that its table lists, position p in page table[p // S] at p % S,
S being the tokens of a page. Rows may list the same pages: completions of a group share those of
their prompt. Page 0 belongs to no row; tables are filled up with it, and padding is written there.

Attention visits one page of a block of rows at a time, as far as the longest row of the block
reaches (online softmax, Milakov & Gimelshein, arXiv 1805.02867); rows are sorted by length before.
A page of which a row sees nothing leaves its result as it is, to the bit: a row's result does not
depend on the number and length of the other rows.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model.architecture import DecoderConfig
from offpolicy_rl.model.attention import PAGED, PAGED_INTERPRETED, softcap

_BLOCKS = 4  # of rows; more follow the rows' lengths more closely, fewer are larger products
_NEVER = -1e30  # score of what is not seen; finite, so that nothing becomes nan


class Pool(NamedTuple):
  """Keys and values of all layers."""

  k_LxYxKxSxC: jax.Array
  v_LxYxKxSxC: jax.Array


class Cache(NamedTuple):
  """The cache that the rows of a forward pass read and extend."""

  pool: Pool
  tables_BxZ: jax.Array  # int32, page numbers


class LayerCache(NamedTuple):
  """A cache as one layer sees it."""

  pool: Pool
  layer: jax.Array  # int32 []
  tables_BxZ: jax.Array


def empty(config: DecoderConfig, pages: int, page_tokens: int) -> Pool:
  """Pool of zeros."""
  shape = (config.num_layers, pages, config.num_kv_heads, page_tokens, config.head_dim)
  return Pool(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def copy(pool: Pool, sources: jax.Array, targets: jax.Array) -> Pool:
  """The pool with pages `sources` copied over pages `targets`, int32 arrays of one length."""
  return jax.tree.map(lambda x: x.at[:, targets].set(x[:, sources]), pool)


def extend(
  cache: LayerCache, k_BxTxKxC: jax.Array, v_BxTxKxC: jax.Array, positions_BxT: jax.Array
) -> LayerCache:
  """The cache with the keys and values of new tokens."""
  tables, size = cache.tables_BxZ, cache.pool.k_LxYxKxSxC.shape[3]
  at = positions_BxT // size
  # Padding may lie beyond the table.
  page_BxT = jnp.take_along_axis(tables, jnp.minimum(at, tables.shape[1] - 1), axis=1)
  page_BxT = jnp.where(at < tables.shape[1], page_BxT, 0)
  # One row [C] per head and token keeps the order of the pool's axes: to write [K, C] at once, a
  # TPU copies the pool into another order and back, layer by layer.
  heads_K = jnp.arange(k_BxTxKxC.shape[2])[None, None]
  at = (cache.layer, page_BxT[..., None], heads_K, (positions_BxT % size)[..., None])
  k, v = cache.pool
  return cache._replace(pool=Pool(k.at[at].set(k_BxTxKxC), v.at[at].set(v_BxTxKxC)))


def extend_and_attend(
  q_BxTxHxC: jax.Array,
  k_BxTxKxC: jax.Array,
  v_BxTxKxC: jax.Array,
  cache: LayerCache,
  positions_BxT: jax.Array,
  is_local: jax.Array | None,
  config: DecoderConfig,
) -> tuple[jax.Array, LayerCache]:
  """The results of `attend` after `extend`, and the cache; one kernel where configured."""
  if config.attention in (PAGED, PAGED_INTERPRETED) and q_BxTxHxC.shape[1] == 1:
    # The import registers TPU kernels: only where they are used.
    from offpolicy_rl.model import paged_kernel

    one = (x[:, 0] for x in (q_BxTxHxC, k_BxTxKxC, v_BxTxKxC))
    attended, *pool = paged_kernel.extend_and_attend(
      *one, cache, positions_BxT[:, 0], is_local, config
    )
    return attended[:, None], cache._replace(pool=Pool(*pool))
  cache = extend(cache, k_BxTxKxC, v_BxTxKxC, positions_BxT)
  return attend(q_BxTxHxC, cache, positions_BxT, is_local, config), cache


def attend(
  q_BxTxHxC: jax.Array,
  cache: LayerCache,
  positions_BxT: jax.Array,
  is_local: jax.Array | None,
  config: DecoderConfig,
) -> jax.Array:
  """Grouped-query attention of new tokens to all up to their own position -> [B, T, H, C].

  `is_local`: bool [] or None, whether this layer sees `config.sliding_window` tokens only.
  """
  rows, length, heads, channels = q_BxTxHxC.shape
  kv_heads, size = config.num_kv_heads, cache.pool.k_LxYxKxSxC.shape[3]
  scale = config.query_scale or config.head_dim**-0.5
  q = (q_BxTxHxC * scale).reshape(rows, length, kv_heads, heads // kv_heads, channels)
  # Longest rows first: page i is visited for the first blocks of rows, those that have so many.
  reach_B = jnp.minimum(jnp.max(positions_BxT, axis=1) // size + 1, cache.tables_BxZ.shape[1])
  order_B = jnp.argsort(-reach_B)
  block = math.ceil(rows / _BLOCKS)
  padded = lambda x: jnp.pad(x[order_B], [(0, -rows % block)] + [(0, 0)] * (x.ndim - 1))
  q, positions, tables = map(padded, (q, positions_BxT, cache.tables_BxZ))
  shape = (q.shape[0], kv_heads, heads // kv_heads, length)
  nothing = _Softmax(jnp.full(shape, _NEVER), jnp.zeros(shape), jnp.zeros((*shape, channels)))

  def visit(page, number, softmax: _Softmax) -> _Softmax:
    block_of = lambda x: jax.lax.dynamic_slice_in_dim(x, number * block, block)
    at = jax.lax.dynamic_index_in_dim(block_of(tables), page, axis=1, keepdims=False)
    behind_BxTxS = block_of(positions)[:, :, None] - (page * size + jnp.arange(size))[None, None]
    seen = behind_BxTxS >= 0
    if is_local is not None:
      seen &= ~is_local | (behind_BxTxS < config.sliding_window)
    k_BxKxSxC, v_BxKxSxC = (x[cache.layer, at] for x in cache.pool)
    before = jax.tree.map(block_of, softmax)
    after = _seeing(block_of(q), k_BxKxSxC, v_BxKxSxC, seen, before, config)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * block)
    return jax.tree.map(lambda x, new: write(x, new, axis=0), softmax, after)

  def visit_rows(page, softmax: _Softmax) -> _Softmax:
    blocks = (jnp.sum(reach_B > page) + block - 1) // block
    return jax.lax.fori_loop(0, blocks, functools.partial(visit, page), softmax)

  softmax = jax.lax.fori_loop(0, reach_B[order_B[0]], visit_rows, nothing)
  # Padding past the end may see nothing; its result must not be nan.
  attended = (softmax.values / jnp.maximum(softmax.total, 1e-30)[..., None]).astype(q_BxTxHxC.dtype)
  attended = attended[jnp.argsort(order_B)]
  return attended.transpose(0, 3, 1, 2, 4).reshape(q_BxTxHxC.shape)


class _Softmax(NamedTuple):
  top: jax.Array  # [B, K, J, T], the largest score
  total: jax.Array  # [B, K, J, T], sum of exp(score - top)
  values: jax.Array  # [B, K, J, T, C], weighted by these


def _seeing(q_BxTxKxJxC, k_BxKxSxC, v_BxKxSxC, seen_BxTxS, before: _Softmax, config) -> _Softmax:
  scores = jnp.einsum(
    "btkjc,bksc->bkjts", q_BxTxKxJxC, k_BxKxSxC, preferred_element_type=jnp.float32
  )
  seen = seen_BxTxS[:, None, None]
  scores = jnp.where(seen, softcap(scores, config.attention_softcap), _NEVER)
  top = jnp.maximum(before.top, jnp.max(scores, axis=-1))
  weights = jnp.where(seen, jnp.exp(scores - top[..., None]), 0.0)
  kept = jnp.exp(before.top - top)
  added = jnp.einsum(
    "bkjts,bksc->bkjtc",
    weights.astype(v_BxKxSxC.dtype),
    v_BxKxSxC,
    preferred_element_type=jnp.float32,
  )
  total = before.total * kept + jnp.sum(weights, axis=-1)
  return _Softmax(top, total, before.values * kept[..., None] + added)
