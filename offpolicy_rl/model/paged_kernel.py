"""Decoding's attention to the paged cache as one fused kernel of the TPU.

A program per row copies the pages that the row sees from the pool, where they lie, into two buffers
in turn: while one block of pages is worked on, the next is on its way, that of the next row too.
Pages out of reach or before a window cost nothing. All heads go through one product per block: a
query head's scores with other key heads are masked, which costs less than to part the heads.

Why not JAX's own kernels: `paged_attention` knows no window and copies the pages of one head at a
time, `ragged_paged_attention` wants keys and values interleaved in one array, a window that is the
same for all layers, and asks the machine that compiles which TPU it has.

Dimension suffixes as in `paging`; X = keys of a block, of all its pages and heads.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from offpolicy_rl.model import sharding
from offpolicy_rl.model.attention import PAGED_INTERPRETED, softcap

_BLOCK_BYTES = 2**19  # of keys, and of values, that are copied at a time: what hides the latency
_NEVER = -1e30  # score of what is not seen; finite, so that nothing becomes nan
_LANES, _TILE = 128, 16  # other channels or page sizes would have the pool in another layout
_PAGE_BYTES = 2**20  # of keys; two pages of keys and of values are held, with scores beside them
_TABLE_BYTES = 2**19  # they lie in the scalar memory, which has 1 MiB


def fits(config, *, page_tokens: int, table_entries: int, shards: int) -> bool:
  """Whether the kernel takes a cache like this; if not, plain XLA has to do.

  Args:
    table_entries: of all rows.
    shards: over which key heads are split.
  """
  tokens = config.num_kv_heads // shards * page_tokens
  page_bytes = tokens * config.head_dim * jnp.dtype(config.compute_dtype).itemsize
  whole = config.head_dim % _LANES == 0 and page_tokens % _TILE == 0
  return whole and page_bytes <= _PAGE_BYTES and 4 * table_entries <= _TABLE_BYTES


def attend(q_BxHxC, cache, position_B, is_local, config):
  """As `paging.attend`, of one new token per row -> [B, H, C].

  Args:
    cache: `paging.OfLayer`.
  """
  window = jnp.maximum(position_B - config.sliding_window + 1, 0)
  first_B = jnp.zeros_like(position_B) if is_local is None else jnp.where(is_local, window, 0)
  scaled = q_BxHxC * (config.query_scale or config.head_dim**-0.5)
  arrays = (cache.layer[None], cache.tables_BxP, first_B, position_B, scaled, *cache.pool)
  kernel = functools.partial(_call, config)
  if jax.sharding.get_abstract_mesh().empty:
    return kernel(*arrays)
  rows, heads = sharding.spec("batch"), sharding.spec("batch", "heads", None)
  pool = sharding.spec(None, None, "kv_heads", None, None)
  specs = (sharding.spec(None), sharding.spec("batch", None), rows, rows, heads, pool, pool)
  return jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)


def _call(config, layer_1, tables_BxP, first_B, last_B, q_BxHxC, k_LxNxKxSxC, v_LxNxKxSxC):
  """On one device. A row sees the tokens from `first` to `last`."""
  from jax.experimental.pallas import tpu as pltpu  # registers TPU kernels: only where it is used

  rows, heads, channels = q_BxHxC.shape
  kv_heads, size = k_LxNxKxSxC.shape[2:4]
  page = (kv_heads, size, channels)
  block = max(1, _BLOCK_BYTES // (math.prod(page) * k_LxNxKxSxC.dtype.itemsize))
  block = min(block, tables_BxP.shape[1])
  cores = 2 - rows % 2  # some TPU have two
  row = lambda core, at, *_: (core * (rows // cores) + at, 0, 0)
  buffer = pltpu.VMEM((2, block, *page), k_LxNxKxSxC.dtype)
  return pl.pallas_call(
    functools.partial(_row, pages=tables_BxP.shape[1], cap=config.attention_softcap),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=(cores, rows // cores),
      in_specs=[
        pl.BlockSpec((None, heads, channels), row),
        pl.BlockSpec(memory_space=pl.ANY),
        pl.BlockSpec(memory_space=pl.ANY),
      ],
      out_specs=pl.BlockSpec((None, heads, channels), row),
      scratch_shapes=[
        buffer, buffer, pltpu.SMEM((1,), jnp.int32), pltpu.SemaphoreType.DMA((2, 2)),
      ],
    ),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    out_shape=jax.ShapeDtypeStruct(q_BxHxC.shape, q_BxHxC.dtype),
    interpret=pltpu.InterpretParams() if config.attention == PAGED_INTERPRETED else False,
    name="paged_attention",
  )(layer_1, tables_BxP.reshape(-1), first_B, last_B, q_BxHxC, k_LxNxKxSxC, v_LxNxKxSxC)  # fmt: skip


def _row(
  layer, tables, first, last, q, k_pool, v_pool, out, k_buffer, v_buffer, turn, arrived, *,
  pages: int, cap: float,
):  # fmt: skip
  """The program of one row."""
  from jax.experimental.pallas import tpu as pltpu

  div, rem = jax.lax.div, jax.lax.rem  # of what is not negative; // asks which TPU is here
  _, block, kv_heads, size, channels = k_buffer.shape
  rows = pl.num_programs(1)
  at = pl.program_id(1)
  row = pl.program_id(0) * rows + at

  def reach(row):
    """First page that is seen, and the one after the last; at least one."""
    end = jnp.minimum(div(last[row], size) + 1, pages)
    return jnp.minimum(div(first[row], size), end - 1), end

  def copies(row, number, side, act):
    """Starts or awaits those of a row's block."""
    begin, end = reach(row)
    begin += number * block

    def of_page(i, _):
      source = (layer[0], tables[row * pages + begin + i])
      for kind, (pool, buffer) in enumerate(((k_pool, k_buffer), (v_pool, v_buffer))):
        target = buffer.at[side, i]
        act(pltpu.make_async_copy(pool.at[source], target, arrived.at[side, kind]))

    jax.lax.fori_loop(0, jnp.minimum(block, end - begin), of_page, None)

  start = functools.partial(copies, act=lambda copy: copy.start())
  wait = functools.partial(copies, act=lambda copy: copy.wait())

  @pl.when(at == 0)
  def _():
    # Where no page was copied to yet: weights of 0 make 0 of anything but nan.
    v_buffer[...] = jnp.zeros_like(v_buffer)
    turn[0] = 0
    start(row, 0, 0)

  begin, end = reach(row)
  blocks = div(end - begin + block - 1, block)
  heads = q.shape[0]
  shape = (heads, block * kv_heads * size)
  key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  query_head = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  own = rem(div(key, size), kv_heads) == div(query_head, heads // kv_heads)
  token = div(key, kv_heads * size) * size + rem(key, size)
  before = turn[0]

  def visit(number, found):
    side = rem(before + number, 2)
    done = number + 1 == blocks

    @pl.when(~done | (at + 1 < rows))
    def _():
      start(jnp.where(done, row + 1, row), jnp.where(done, 0, number + 1), 1 - side)

    wait(row, number, side)
    position = token + (begin + number * block) * size
    until = jnp.minimum(last[row], pages * size - 1)
    seen = own & (position >= first[row]) & (position <= until)
    flat = (block * kv_heads * size, channels)
    return _seeing(q[...], k_buffer[side].reshape(flat), v_buffer[side].reshape(flat), seen, found, cap)

  nothing = (jnp.full((heads, 1), _NEVER), jnp.zeros((heads, 1)), jnp.zeros((heads, channels)))
  _, total, values = jax.lax.fori_loop(0, blocks, visit, nothing)
  turn[0] = rem(before + blocks, 2)
  out[...] = (values / jnp.maximum(total, 1e-30)).astype(out.dtype)


def _seeing(q_HxC, k_XxC, v_XxC, seen_HxX, found, cap: float):
  """(largest score, sum of exp(score - it), values weighted by these), with another block's."""
  top, total, values = found
  scores = jax.lax.dot_general(
    q_HxC, k_XxC, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  scores = jnp.where(seen_HxX, softcap(scores, cap), _NEVER)
  higher = jnp.maximum(top, jnp.max(scores, axis=1, keepdims=True))
  weights = jnp.where(seen_HxX, jnp.exp(scores - higher), 0.0)
  kept = jnp.exp(top - higher)
  added = jnp.dot(weights.astype(v_XxC.dtype), v_XxC, preferred_element_type=jnp.float32)
  return higher, total * kept + jnp.sum(weights, axis=1, keepdims=True), values * kept + added
