"""Attention kernels for each platform; all give the same result.

plain    everywhere: the scores [H, T, S] of a row exist at once
cudnn    GPU, bfloat16: cuDNN's fused kernel
splash   TPU: a fused kernel that skips blocks nobody sees. Not for rows that branch, where
         completions share a prompt or a context goes back: what tokens see is no partition
paged    TPU, decoding from a cache: a fused kernel that reads each row's pages (`paged_kernel`);
         everything else with that cache is plain XLA
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model import sharding
from offpolicy_rl.model.architecture import DecoderConfig

PLAIN, CUDNN, SPLASH = "plain", "cudnn", "splash"
PAGED = "paged"
# The same kernels on CPU, slowly, for tests.
SPLASH_INTERPRETED, PAGED_INTERPRETED = "splash_interpreted", "paged_interpreted"
_BLOCK_SIZES = str.split(  # of the splash kernel, forward and backward
  "block_q block_kv block_kv_compute block_q_dkv block_kv_dkv block_kv_dkv_compute block_q_dq "
  "block_kv_dq"
)
_LANES = 128  # columns and channels are padded to a multiple of this for the TPU
_TILE = 16  # tokens; pages or channels of other sizes have a TPU keep the cache in another order
_PAGE_BYTES = 2**20  # of keys; the kernel holds two pages of keys and of values
_TABLE_BYTES = 2**19  # of pages of all rows, in scalar memory, which has 1 MiB


class LayerView(NamedTuple):
  """The tokens that a layer's tokens see, and the angles by which their heads turn."""

  visible_BxTxS: jax.Array | None  # bool; None with a cache, where `paging.attend` decides
  angle_BxTxR: jax.Array
  segments_BxT: jax.Array | None  # of packed rows (`types.PackedRows`)
  is_local: jax.Array | None  # bool, where some layers see a window only


def training_kernel(platform: str, *, compute_dtype: str, head_dim: int, branches: bool) -> str:
  """The kernel for training on a mesh of this platform ("cpu", "gpu", "tpu").

  `branches`: rows have tokens that later ones of their segment do not see.
  """
  if platform == "tpu" and not branches:
    return SPLASH
  fits = head_dim % 8 == 0 and head_dim <= 128  # what cuDNN takes on every GPU that it runs on
  if platform in ("gpu", "cuda") and compute_dtype == "bfloat16" and fits:
    return CUDNN
  return PLAIN


def decoding_kernel(
  platform: str, config: DecoderConfig, *, page_tokens: int, table_entries: int, shards: int
) -> str:
  """The kernel for decoding from a cache on a mesh of this platform.

  Args:
    config: `decoder.DecoderConfig`.
    table_entries: page numbers of all rows.
    shards: number of parts that the key heads are split into.
  """
  heads, itemsize = config.num_kv_heads // shards, jnp.dtype(config.compute_dtype).itemsize
  fits = (
    config.head_dim % _LANES == 0
    and page_tokens % _TILE == 0
    and heads * page_tokens * config.head_dim * itemsize <= _PAGE_BYTES
    and 4 * table_entries <= _TABLE_BYTES
  )
  return PAGED if platform == "tpu" and fits else PLAIN


def softcap(x: jax.Array, cap: float) -> jax.Array:
  """cap * tanh(x / cap) (Gemma 2, arXiv 2408.00118); x where cap = 0."""
  return cap * jnp.tanh(x / cap) if cap else x


def attend(
  q_BxTxHxC: jax.Array,
  k_BxSxKxC: jax.Array,
  v_BxSxKxC: jax.Array,
  view: LayerView,
  config: DecoderConfig,
) -> jax.Array:
  """Grouped-query attention -> [B, T, H, C]; `view` has no segments if there is a cache."""
  if config.attention in (SPLASH, SPLASH_INTERPRETED) and view.segments_BxT is not None:
    return _splash(q_BxTxHxC, k_BxSxKxC, v_BxSxKxC, view, config)
  visible = view.visible_BxTxS
  assert visible is not None, "with a cache: paging.attend"
  scale = config.query_scale or config.head_dim**-0.5
  if config.attention_softcap:
    return _capped(q_BxTxHxC, k_BxSxKxC, v_BxSxKxC, visible, config, scale)
  if config.attention == CUDNN and view.segments_BxT is not None:
    return _even(q_BxTxHxC, k_BxSxKxC, v_BxSxKxC, visible, scale, "cudnn")
  return jax.nn.dot_product_attention(
    q_BxTxHxC, k_BxSxKxC, v_BxSxKxC, mask=visible[:, None], scale=scale, implementation="xla"
  )


def _even(
  q_BxTxHxC,
  k_BxTxKxC,
  v_BxTxKxC,
  visible_BxTxT,
  scale: float,
  implementation: Literal["xla", "cudnn"],
):
  """Attention on an even number of columns, which cuDNN requires."""
  length = q_BxTxHxC.shape[1]
  one = (0, length % 2)
  q, k, v = (jnp.pad(x, ((0, 0), one, (0, 0), (0, 0))) for x in (q_BxTxHxC, k_BxTxKxC, v_BxTxKxC))
  # The added token sees everything, so its softmax is defined; nobody sees it.
  mask = jnp.pad(visible_BxTxT, ((0, 0), one, (0, 0)), constant_values=True)
  mask = jnp.pad(mask, ((0, 0), (0, 0), one))[:, None]
  attended = jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, implementation=implementation
  )
  return attended[:, :length]


def _capped(q_BxTxHxC, k_BxSxKxC, v_BxSxKxC, visible_BxTxS, config, scale: float):
  rows, length, heads, channels = q_BxTxHxC.shape
  kv_heads = k_BxSxKxC.shape[2]
  q_BxTxKxJxC = q_BxTxHxC.reshape(rows, length, kv_heads, heads // kv_heads, channels)
  scores = jnp.einsum("btkjc,bskc->bkjts", q_BxTxKxJxC, k_BxSxKxC) * scale
  scores = softcap(scores.astype(jnp.float32), config.attention_softcap)
  scores = jnp.where(visible_BxTxS[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores).astype(v_BxSxKxC.dtype)
  return jnp.einsum("bkjts,bskc->btkjc", weights, v_BxSxKxC).reshape(q_BxTxHxC.shape)


def _splash(q_BxTxHxC, k_BxTxKxC, v_BxTxKxC, view, config):
  length, channels = q_BxTxHxC.shape[1], q_BxTxHxC.shape[3]
  scale = config.query_scale or config.head_dim**-0.5
  by_head = [_padded(x.swapaxes(1, 2)) for x in (q_BxTxHxC * scale, k_BxTxKxC, v_BxTxKxC)]
  segments = jnp.pad(view.segments_BxT, ((0, 0), (0, -length % _LANES)))
  everything = functools.partial(_kernel, config, 0)
  if view.is_local is None:
    attended = _by_shard(everything, *by_head, segments)
  else:
    near = functools.partial(_kernel, config, config.sliding_window)
    attended = _by_shard(
      lambda *arrays: jax.lax.cond(arrays[-1], near, everything, *arrays[:-1]),
      *by_head,
      segments,
      view.is_local,
    )
  return attended[:, :, :length, :channels].swapaxes(1, 2)


def _padded(x_BxHxTxC):
  """Zeros up to whole lanes: they add nothing to scores, and their outputs are cut off."""
  length, channels = x_BxHxTxC.shape[2:]
  return jnp.pad(x_BxHxTxC, ((0, 0), (0, 0), (0, -length % _LANES), (0, -channels % _LANES)))


def _by_shard(kernel, q, k, v, segments, *more):
  """Runs a Pallas kernel on each device's rows and heads; the compiler can't split it."""
  if jax.sharding.get_abstract_mesh().empty:
    return kernel(q, k, v, segments, *more)
  heads = sharding.spec("batch", "heads", None, None)
  kv_heads = sharding.spec("batch", "kv_heads", None, None)
  rows, scalars = sharding.spec("batch", None), [sharding.spec() for _ in more]
  specs = (heads, kv_heads, kv_heads, rows, *scalars)
  split = jax.shard_map(kernel, in_specs=specs, out_specs=heads, check_vma=False)
  return split(q, k, v, segments, *more)


def _kernel(config, window: int, q_BxHxTxC, k_BxKxTxC, v_BxKxTxC, segments_BxT):
  """`window`: tokens that a token sees, itself included; 0 = all before it."""
  # The import registers TPU kernels: only where they are used.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  heads, length = q_BxHxTxC.shape[1:3]
  shape = (length, length)
  mask = masks.LocalMask(shape, (window - 1, 0), 0) if window else masks.CausalMask(shape)
  block = next(size for size in (512, 256, _LANES) if length % size == 0)
  sizes: dict[str, Any] = dict.fromkeys(_BLOCK_SIZES, block)
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(**sizes),
    attn_logits_soft_cap=config.attention_softcap or None,
    head_shards=1,
    q_seq_shards=1,
    interpret=config.attention == SPLASH_INTERPRETED,
  )
  one_row = lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(ids, ids))
  return jax.vmap(one_row)(q_BxHxTxC, k_BxKxTxC, v_BxKxTxC, segments_BxT)
