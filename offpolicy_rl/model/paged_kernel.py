"""Decoding's attention to the paged cache as one fused TPU kernel.

A program per row copies the pages that the row sees from the pool into two buffers in turn: while
one block of pages is worked on, the next one is on its way, also that of the next row. Pages out of
reach or before a window cost nothing. The new token's keys and values are written into the last
page in passing: XLA would read, change and write them one head of one row at a time. All heads go
through one product per block, and scores with other key heads are masked, which costs less than
separating the heads.

JAX's own kernels do not fit: `paged_attention` has no window and copies the pages of one head at a
time; `ragged_paged_attention` wants keys and values interleaved in one array and the same window in
all layers, and asks the machine that compiles which TPU it has.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from offpolicy_rl.model import sharding
from offpolicy_rl.model.architecture import DecoderConfig
from offpolicy_rl.model.attention import PAGED_INTERPRETED, softcap

_BLOCK_BYTES = 2**19  # of keys, and of values, per copy: enough to hide the latency
_NEVER = -1e30  # score of what is not seen; finite, so that nothing becomes nan
_TILE = 16  # tokens that are written at a time, however small the dtype


def extend_and_attend(
  q_BxHxC: jax.Array,
  k_BxKxC: jax.Array,
  v_BxKxC: jax.Array,
  cache: Any,
  position_B: jax.Array,
  is_local: jax.Array | None,
  config: DecoderConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`paging.extend_and_attend` for one new token per row, which must have room in the row's table.

  Args:
    cache: `paging.LayerCache`.

  Returns:
    The attended values [B, H, C], and the pool's keys and values with the new ones.
  """
  window = jnp.maximum(position_B - config.sliding_window + 1, 0)
  first_B = jnp.zeros_like(position_B) if is_local is None else jnp.where(is_local, window, 0)
  scaled = q_BxHxC * (config.query_scale or config.head_dim**-0.5)
  scalars = (cache.layer[None], cache.tables_BxZ, first_B, position_B)
  arrays = (*scalars, scaled, k_BxKxC, v_BxKxC, *cache.pool)
  kernel = functools.partial(_call, config)
  if jax.sharding.get_abstract_mesh().empty:
    return kernel(*arrays)
  spec = sharding.spec
  rows, heads, pool = spec("batch"), spec("batch", "heads", None), (None, None, "kv_heads")
  new, pool = spec("batch", "kv_heads", None), spec(*pool, None, None)
  specs = (spec(None), spec("batch", None), rows, rows, heads, new, new, pool, pool)
  out = (heads, pool, pool)
  return jax.shard_map(kernel, in_specs=specs, out_specs=out, check_vma=False)(*arrays)


def _call(config, layer_1, tables_BxZ, first_B, last_B, q_BxHxC, k_BxKxC, v_BxKxC, *pool):
  """Runs on one device. A row sees the tokens from `first` to `last`, the last of them new."""
  rows, pages = tables_BxZ.shape
  page, dtype = pool[0].shape[2:], pool[0].dtype
  block = min(pages, max(1, _BLOCK_BYTES // (math.prod(page) * dtype.itemsize)))
  cores = 2 - rows % 2  # some TPU have two
  of_row = lambda x: pl.BlockSpec(
    (None, *x.shape[1:]), lambda core, at, *_: (core * (rows // cores) + at, 0, 0)
  )
  where_it_lies = pl.BlockSpec(memory_space=pl.ANY)
  buffer = pltpu.VMEM((2, block, *page), dtype)
  written = pltpu.VMEM((page[0], min(_TILE, page[1]), page[2]), dtype)
  return pl.pallas_call(
    functools.partial(_row, cap=config.attention_softcap),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=(cores, rows // cores),
      in_specs=[*map(of_row, (q_BxHxC, k_BxKxC, v_BxKxC)), where_it_lies, where_it_lies],
      out_specs=[of_row(q_BxHxC), where_it_lies, where_it_lies],
      scratch_shapes=[
        (buffer, buffer),
        (written, written),
        pltpu.SMEM((1,), jnp.int32),
        pltpu.SemaphoreType.DMA((2, 2)),
        pltpu.SemaphoreType.DMA((2,)),
      ],
    ),
    # Tables hold pages of the pool; to check each copy takes longer than to begin it.
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), disable_bounds_checks=True
    ),
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q_BxHxC, *pool)],
    input_output_aliases={7: 1, 8: 2},
    interpret=pltpu.InterpretParams() if config.attention == PAGED_INTERPRETED else False,
    name="paged_attention",
  )(layer_1, tables_BxZ.reshape(-1), first_B, last_B, q_BxHxC, k_BxKxC, v_BxKxC, *pool)


class _Refs(NamedTuple):
  layer: jax.Array  # [1]
  tables: jax.Array  # [B * Z]
  first: jax.Array  # [B], tokens
  last: jax.Array  # [B]
  q: jax.Array  # [H, C], of the row
  k: jax.Array  # [K, C], new
  v: jax.Array
  k_given: jax.Array  # the pool, which is also a result
  v_given: jax.Array
  out: jax.Array  # [H, C]
  k_pool: jax.Array  # [L, Y, K, S, C]
  v_pool: jax.Array
  buffers: tuple  # of keys, of values: [2, pages of a block, K, S, C]
  tiles: tuple  # the same, [K, tokens, C]: the least that can be written
  turn: jax.Array  # [1], which buffer the row begins with
  arrived: jax.Array  # semaphores [2, 2]
  gone: jax.Array  # [2]


# For arguments >= 0; // asks which TPU this machine has.
_div, _rem = jax.lax.div, jax.lax.rem


def _start(copy):
  copy.start()


def _wait(copy):
  copy.wait()


def _reach(r: _Refs, row):
  """(first page that a row sees, the page after the last one)."""
  size = r.buffers[0].shape[3]
  return _div(r.first[row], size), _div(r.last[row], size) + 1


def _page_number(r: _Refs, row, at):
  return r.tables[row * (r.tables.shape[0] // r.last.shape[0]) + at]


def _copy_block(r: _Refs, row, *, number, side, act):
  block = r.buffers[0].shape[1]
  begin, end = _reach(r, row)
  begin += number * block

  def copy_page(i, _):
    source = (r.layer[0], _page_number(r, row, begin + i))
    for kind, pool in enumerate((r.k_pool, r.v_pool)):
      target = r.buffers[kind].at[side, i]
      act(pltpu.make_async_copy(pool.at[source], target, r.arrived.at[side, kind]))

  jax.lax.fori_loop(0, jnp.minimum(block, end - begin), copy_page, None)


def _tile(r: _Refs, row):
  """The tokens of the last page among which the new one is."""
  tokens = r.tiles[0].shape[1]
  at = _div(_rem(r.last[row], r.buffers[0].shape[3]), tokens)
  return pl.ds(pl.multiple_of(at * tokens, tokens), tokens)


def _write_tile(r: _Refs, row, act):
  page = _page_number(r, row, _reach(r, row)[1] - 1)
  for kind, pool in enumerate((r.k_pool, r.v_pool)):
    target = pool.at[r.layer[0], page, :, _tile(r, row)]
    act(pltpu.make_async_copy(r.tiles[kind], target, r.gone.at[kind]))


def _insert(r: _Refs, row, *, at, rows, side):
  """Puts the new token into the last page of a row's last block and into the pool."""
  begin, end = _reach(r, row)
  where = (side, _rem(end - 1 - begin, r.buffers[0].shape[1]), slice(None), _tile(r, row))
  pl.when(at > 0)(lambda: _write_tile(r, row - 1, _wait))
  for buffer, tile, new in zip(r.buffers, r.tiles, (r.k, r.v), strict=True):
    here = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1) == _rem(r.last[row], tile.shape[1])
    tile[...] = jnp.where(here, new[...][:, None], buffer[where])
    buffer[where] = tile[...]
  _write_tile(r, row, _start)
  pl.when(at == rows - 1)(lambda: _write_tile(r, row, _wait))


def _row(*refs, cap: float):
  r = _Refs(*refs)
  _, block, kv_heads, size, channels = r.buffers[0].shape
  rows, at = pl.num_programs(1), pl.program_id(1)
  row = pl.program_id(0) * rows + at

  @pl.when(at == 0)
  def _():
    # Zeros where no page was copied to yet: a weight of 0 removes anything but nan.
    r.buffers[1][...] = jnp.zeros_like(r.buffers[1])
    r.turn[0] = 0
    _copy_block(r, row, number=0, side=0, act=_start)

  begin, end = _reach(r, row)
  blocks = _div(end - begin + block - 1, block)
  heads = r.q.shape[0]
  shape = (heads, block * kv_heads * size)
  key, query_head = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 0))
  same_head = _rem(_div(key, size), kv_heads) == _div(query_head, heads // kv_heads)
  token = _div(key, kv_heads * size) * size + _rem(key, size)
  before = r.turn[0]

  def visit(number, carried):
    """Starts copying the next block, and takes this one into the running softmax."""
    side = _rem(before + number, 2)
    done = number + 1 == blocks
    after = (jnp.where(done, row + 1, row), jnp.where(done, 0, number + 1))

    @pl.when(~done | (at + 1 < rows))
    def _():
      _copy_block(r, after[0], number=after[1], side=1 - side, act=_start)

    _copy_block(r, row, number=number, side=side, act=_wait)
    pl.when(done)(lambda: _insert(r, row, at=at, rows=rows, side=side))
    position = token + (begin + number * block) * size
    seen = same_head & (position >= r.first[row]) & (position <= r.last[row])
    k, v = (x[side].reshape(block * kv_heads * size, channels) for x in r.buffers)
    return _seeing((r.q[...], k, v), seen, carried, cap=cap)

  nothing = (jnp.full((heads, 1), _NEVER), jnp.zeros((heads, 1)), jnp.zeros((heads, channels)))
  _, total, values = jax.lax.fori_loop(0, blocks, visit, nothing)
  r.turn[0] = _rem(before + blocks, 2)
  r.out[...] = (values / total).astype(r.out.dtype)


def _seeing(arrays, seen_HxX, carried, *, cap: float):
  """(largest score, sum of exp(score - it), values weighted by these) with one more block."""
  (q_HxC, k_XxC, v_XxC), (top, total, values) = arrays, carried
  scores = jax.lax.dot_general(
    q_HxC, k_XxC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  scores = jnp.where(seen_HxX, softcap(scores, cap), _NEVER)
  higher = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
  weights = jnp.where(seen_HxX, jnp.exp(scores - higher), 0.0)
  kept = jnp.exp(top - higher)
  added = jnp.dot(weights.astype(v_XxC.dtype), v_XxC, preferred_element_type=jnp.float32)
  return higher, total * kept + jnp.sum(weights, axis=1, keepdims=True), values * kept + added
