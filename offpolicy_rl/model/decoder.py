"""Decoder-only transformer: RMSNorm, RoPE, grouped-query attention, SwiGLU, scanned layers.

Dimension suffixes: B rows, T tokens, S cache slots, D width, H query heads, K key/value heads,
C channels per head, F MLP width, V vocabulary, L layers.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from offpolicy_rl.model.sharding import constrain


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture; one field per key of `config.model` plus the task's vocabulary size."""

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float
  norm_eps: float
  tied_embeddings: bool


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far."""

  k_LxBxSxKxC: jax.Array
  v_LxBxSxKxC: jax.Array


# Logical axes of every parameter, by the last part of its path; layers are stacked in front.
PARAM_AXES = {
  "embedding": ("vocab", "embed"),
  "unembedding": ("embed", "vocab"),
  "final_norm": (None,),
  "attention_norm": (None, None),
  "mlp_norm": (None, None),
  "w_q": (None, "embed", "heads", None),
  "w_k": (None, "embed", "kv_heads", None),
  "w_v": (None, "embed", "kv_heads", None),
  "w_o": (None, "heads", None, "embed"),
  "w_gate": (None, "embed", "mlp"),
  "w_up": (None, "embed", "mlp"),
  "w_down": (None, "mlp", "embed"),
}


def rms_norm(x_BxTxD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale (Zhang & Sennrich, arXiv 1910.07467), in float32."""
  x32 = x_BxTxD.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
  return (x32 * inverse * scale_D[None, None]).astype(x_BxTxD.dtype)


def rope(x_BxTxHxC: jax.Array, positions_BxT: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding, half-split layout (Su et al., arXiv 2104.09864)."""
  half = x_BxTxHxC.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BxT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x_BxTxHxC.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxC.dtype)


def _fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
  """Truncated normal with variance 1 / fan_in."""
  stddev = fan_in**-0.5
  return nnx.Param(nnx.initializers.truncated_normal(stddev)(rngs.params(), shape, jnp.float32))


class Block(nnx.Module):
  """Attention and MLP with pre-norm residuals."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    c = config
    self.config = config
    self.attention_norm = nnx.Param(jnp.ones(c.width))
    self.w_q = _fan_in(rngs, (c.width, c.num_heads, c.head_dim), c.width)
    self.w_k = _fan_in(rngs, (c.width, c.num_kv_heads, c.head_dim), c.width)
    self.w_v = _fan_in(rngs, (c.width, c.num_kv_heads, c.head_dim), c.width)
    self.w_o = _fan_in(rngs, (c.num_heads, c.head_dim, c.width), c.num_heads * c.head_dim)
    self.mlp_norm = nnx.Param(jnp.ones(c.width))
    self.w_gate = _fan_in(rngs, (c.width, c.mlp_width), c.width)
    self.w_up = _fan_in(rngs, (c.width, c.mlp_width), c.width)
    self.w_down = _fan_in(rngs, (c.mlp_width, c.width), c.mlp_width)

  def attention(self, x_BxTxD, positions_BxT, mask_Bx1xTxS, cache):
    """Returns the attention output [B, T, D] and the layer's (k, v), updated if cached."""
    theta = self.config.rope_theta
    q_BxTxHxC = rope(jnp.einsum("btd,dhc->bthc", x_BxTxD, self.w_q[...]), positions_BxT, theta)
    k = rope(jnp.einsum("btd,dkc->btkc", x_BxTxD, self.w_k[...]), positions_BxT, theta)
    v = jnp.einsum("btd,dkc->btkc", x_BxTxD, self.w_v[...])
    q_BxTxHxC = constrain(q_BxTxHxC, "batch", None, "heads", None)
    if cache is not None:
      rows = jnp.arange(x_BxTxD.shape[0])[:, None]
      k = cache[0].at[rows, positions_BxT].set(k)
      v = cache[1].at[rows, positions_BxT].set(v)
    out_BxTxHxC = jax.nn.dot_product_attention(q_BxTxHxC, k, v, mask=mask_Bx1xTxS)
    return jnp.einsum("bthc,hcd->btd", out_BxTxHxC, self.w_o[...]), (k, v)

  def mlp(self, x_BxTxD):
    """SwiGLU (Shazeer, arXiv 2002.05202)."""
    gate = jax.nn.silu(x_BxTxD @ self.w_gate[...])
    h_BxTxF = constrain(gate * (x_BxTxD @ self.w_up[...]), "batch", None, "mlp")
    return h_BxTxF @ self.w_down[...]

  def __call__(self, x_BxTxD, positions_BxT, mask_Bx1xTxS, cache):
    eps = self.config.norm_eps
    normed = rms_norm(x_BxTxD, self.attention_norm[...], eps)
    attended, cache = self.attention(normed, positions_BxT, mask_Bx1xTxS, cache)
    x_BxTxD = x_BxTxD + attended
    x_BxTxD = x_BxTxD + self.mlp(rms_norm(x_BxTxD, self.mlp_norm[...], eps))
    return constrain(x_BxTxD, "batch", None, None), cache


class Decoder(nnx.Module):
  """The policy network: tokens -> logits of the next token."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    c = config
    self.config = config
    self.embedding = _fan_in(rngs, (c.vocab_size, c.width), c.width)

    @nnx.split_rngs(splits=c.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs):
      return Block(config, rngs)

    self.blocks = stacked(rngs)
    self.final_norm = nnx.Param(jnp.ones(c.width))
    if not c.tied_embeddings:
      self.unembedding = _fan_in(rngs, (c.width, c.vocab_size), c.width)

  def __call__(self, tokens_BxT, positions_BxT, cache: Cache | None = None):
    """Logits and the updated cache.

    Args:
      tokens_BxT: int32 token ids.
      positions_BxT: int32 place of each token in its row; with a cache, also the slot that its
        key and value are written to.
      cache: None for a forward pass over whole rows (causal), else the state to extend; a token
        sees the slots up to its own.

    Returns:
      float32 logits [B, T, V] of the token after each position, and the cache or None.
    """
    x_BxTxD = constrain(self.embedding[...][tokens_BxT], "batch", None, None)
    x_BxTxD = x_BxTxD * self.config.width**0.5  # unit variance, as the matrix is 1/sqrt(D)
    slots = tokens_BxT.shape[1] if cache is None else cache.k_LxBxSxKxC.shape[2]
    visible = jnp.arange(slots)[None, None, :] <= positions_BxT[:, :, None]

    @nnx.scan(in_axes=(0, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def layer(block, x_BxTxD, layer_cache):
      x_BxTxD, kv = block(x_BxTxD, positions_BxT, visible[:, None], layer_cache)
      return x_BxTxD, (kv if layer_cache is not None else None)

    x_BxTxD, new_cache = layer(self.blocks, x_BxTxD, None if cache is None else tuple(cache))
    x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], self.config.norm_eps)
    if self.config.tied_embeddings:
      logits_BxTxV = jnp.einsum("btd,vd->btv", x_BxTxD, self.embedding[...])
    else:
      logits_BxTxV = jnp.einsum("btd,dv->btv", x_BxTxD, self.unembedding[...])
    logits_BxTxV = constrain(logits_BxTxV.astype(jnp.float32), "batch", None, "vocab")
    return logits_BxTxV, None if new_cache is None else Cache(*new_cache)


def empty_cache(config: DecoderConfig, rows: int, slots: int, dtype=jnp.float32) -> Cache:
  """Cache of zeros for `rows` rows of at most `slots` tokens."""
  shape = (config.num_layers, rows, slots, config.num_kv_heads, config.head_dim)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
