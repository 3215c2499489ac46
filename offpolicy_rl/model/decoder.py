"""Decoder-only transformer in the forms of Llama 3, Qwen2.5, Qwen3 and Gemma 3.

RMSNorm, RoPE, grouped-query attention, a gated MLP or a mixture of experts, scanned layers; the
families differ in configuration only. x_BxTxD is an array [rows, tokens, width] (`types`).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from offpolicy_rl.model import int8, lora, mixture, names, paging, rope
from offpolicy_rl.model.architecture import DecoderConfig as DecoderConfig
from offpolicy_rl.model.attention import LayerView, attend, softcap
from offpolicy_rl.model.sharding import constrain

# Logical axes of every parameter, by the last part of its path; layers are stacked in front.
PARAM_AXES = {
  "embedding": ("vocab", "embed"),
  "unembedding": ("embed", "vocab"),
  "final_norm": (None,),
  **dict.fromkeys(("attention_norm", "mlp_norm", "q_norm", "k_norm"), (None, None)),
  **dict.fromkeys(("post_attention_norm", "post_mlp_norm"), (None, None)),
  "w_q": (None, "embed", "heads", None),
  **dict.fromkeys(("w_k", "w_v"), (None, "embed", "kv_heads", None)),
  "b_q": (None, "heads", None),
  **dict.fromkeys(("b_k", "b_v"), (None, "kv_heads", None)),
  "w_o": (None, "heads", None, "embed"),
  **dict.fromkeys(("w_gate", "w_up"), (None, "embed", "mlp")),
  "w_down": (None, "mlp", "embed"),
  "router": (None, "embed", None),
  **dict.fromkeys(("experts_gate", "experts_up"), (None, "expert", "embed", "mlp")),
  "experts_down": (None, "expert", "mlp", "embed"),
}
PARAM_AXES |= lora.param_axes(PARAM_AXES) | int8.param_axes(PARAM_AXES)
_ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}


def rms_norm(x: jax.Array, scale: jax.Array, config: DecoderConfig) -> jax.Array:
  """x / rms(x) * scale over the last axis (Zhang & Sennrich, arXiv 1910.07467), in float32."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_eps)
  scale = (config.norm_offset + scale).reshape((1,) * (x.ndim - 1) + scale.shape)
  return (x32 * inverse * scale).astype(x.dtype)


def _fan_in(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> nnx.Param:
  init = nnx.initializers.truncated_normal(fan_in**-0.5)
  return nnx.Param(init(rngs.params(), shape, jnp.float32))


class Block(nnx.Module):
  """Attention and MLP with pre-norm residuals."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    c = config
    self.config = config
    unit = (1.0 - c.norm_offset) * jnp.ones(c.width)  # a norm that scales by 1
    self.attention_norm = nnx.Param(unit)
    self.w_q = _fan_in(rngs, (c.width, c.num_heads, c.head_dim), c.width)
    self.w_k = _fan_in(rngs, (c.width, c.num_kv_heads, c.head_dim), c.width)
    self.w_v = _fan_in(rngs, (c.width, c.num_kv_heads, c.head_dim), c.width)
    self.w_o = _fan_in(rngs, (c.num_heads, c.head_dim, c.width), c.num_heads * c.head_dim)
    self.mlp_norm = nnx.Param(unit)
    if c.num_experts:
      wide = (c.num_experts, c.width, c.expert_width)
      self.router = _fan_in(rngs, (c.width, c.num_experts), c.width)
      self.experts_gate = _fan_in(rngs, wide, c.width)
      self.experts_up = _fan_in(rngs, wide, c.width)
      self.experts_down = _fan_in(rngs, (wide[0], wide[2], wide[1]), c.expert_width)
    else:
      self.w_gate = _fan_in(rngs, (c.width, c.mlp_width), c.width)
      self.w_up = _fan_in(rngs, (c.width, c.mlp_width), c.width)
      self.w_down = _fan_in(rngs, (c.mlp_width, c.width), c.mlp_width)
    if c.qkv_bias:
      self.b_q = nnx.Param(jnp.zeros((c.num_heads, c.head_dim)))
      self.b_k = nnx.Param(jnp.zeros((c.num_kv_heads, c.head_dim)))
      self.b_v = nnx.Param(jnp.zeros((c.num_kv_heads, c.head_dim)))
    if c.qk_norm:
      self.q_norm = nnx.Param((1.0 - c.norm_offset) * jnp.ones(c.head_dim))
      self.k_norm = nnx.Param((1.0 - c.norm_offset) * jnp.ones(c.head_dim))
    if c.post_norms:
      self.post_attention_norm = nnx.Param(unit)
      self.post_mlp_norm = nnx.Param(unit)
    for name in c.lora_targets:
      a, b = lora.shapes(name, getattr(self, name).shape, c.lora_rank)
      setattr(self, name + lora.A, _fan_in(rngs, a, math.prod(a[:-1])))
      setattr(self, name + lora.B, nnx.Param(jnp.zeros(b)))
    if c.int8_weights:
      for name, summed in int8.SUMMED_AXES.items():
        if hasattr(self, name):
          integers, scale = int8.quantize_matrix(getattr(self, name)[...], summed)
          setattr(self, name, nnx.Param(integers))
          setattr(self, name + int8.SCALE, nnx.Param(scale))

  def matrix(self, name: str) -> jax.Array:
    """A matrix of the block in the compute dtype."""
    w = getattr(self, name)[...]
    if not self.config.int8_weights:
      return w
    scale = getattr(self, name + int8.SCALE)[...]
    return w.astype(scale.dtype) * scale

  def adapted(self, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The product y of x with a matrix, plus that of its adapter if it has one."""
    if name not in self.config.lora_targets:
      return y
    a, b = getattr(self, name + lora.A)[...], getattr(self, name + lora.B)[...]
    return y + lora.product(x, a, b, self.config)

  def attention(
    self,
    x_BxTxD: jax.Array,
    positions_BxT: jax.Array,
    view: LayerView,
    cache: paging.LayerCache | None,
  ) -> tuple[jax.Array, paging.LayerCache | None]:
    """Returns the attention output [B, T, D] and the cache with these tokens."""
    c = self.config
    q_BxTxHxC = jnp.einsum("btd,dhc->bthc", x_BxTxD, self.matrix("w_q"))
    k = jnp.einsum("btd,dkc->btkc", x_BxTxD, self.matrix("w_k"))
    v = jnp.einsum("btd,dkc->btkc", x_BxTxD, self.matrix("w_v"))
    q_BxTxHxC = self.adapted("w_q", x_BxTxD, q_BxTxHxC)
    k, v = self.adapted("w_k", x_BxTxD, k), self.adapted("w_v", x_BxTxD, v)
    if c.qkv_bias:
      q_BxTxHxC = q_BxTxHxC + self.b_q[...][None, None]
      k, v = k + self.b_k[...][None, None], v + self.b_v[...][None, None]
    if c.qk_norm:
      q_BxTxHxC = rms_norm(q_BxTxHxC, self.q_norm[...], c)
      k = rms_norm(k, self.k_norm[...], c)
    q_BxTxHxC = rope.rotate(q_BxTxHxC, view.angle_BxTxR)
    k = rope.rotate(k, view.angle_BxTxR)
    q_BxTxHxC = constrain(q_BxTxHxC, "batch", None, "heads", None)
    if cache is None:
      out_BxTxHxC = attend(q_BxTxHxC, k, v, view, c)
    else:
      out_BxTxHxC, cache = paging.extend_and_attend(
        q_BxTxHxC, k, v, cache, positions_BxT, view.is_local, c
      )
    out_BxTxD = jnp.einsum("bthc,hcd->btd", out_BxTxHxC, self.matrix("w_o"))
    return self.adapted("w_o", out_BxTxHxC, out_BxTxD), cache

  def mlp(self, x_BxTxD: jax.Array) -> jax.Array:
    """Gated MLP: SwiGLU or GeGLU (Shazeer, arXiv 2002.05202); or a mixture of such."""
    c, activation = self.config, _ACTIVATIONS[self.config.activation]
    if c.num_experts:
      x_UxD = x_BxTxD.reshape(-1, c.width)
      chosen = mixture.route(x_UxD, self.router[...], c.experts_per_token, c.normalized_router)
      experts = map(self.matrix, ("experts_gate", "experts_up", "experts_down"))
      return mixture.apply(x_UxD, *chosen, *experts, activation).reshape(x_BxTxD.shape)
    gate = activation(self.adapted("w_gate", x_BxTxD, project(x_BxTxD, self.matrix("w_gate"))))
    up = self.adapted("w_up", x_BxTxD, project(x_BxTxD, self.matrix("w_up")))
    h_BxTxF = constrain(gate * up, "batch", None, "mlp")
    return self.adapted("w_down", h_BxTxF, project(h_BxTxF, self.matrix("w_down")))

  def load(self, x_BxTxD: jax.Array, view: LayerView) -> mixture.Load:
    """Router statistics of the normed tokens [B, T, D] of packed rows; padding does not count."""
    c, x_UxD = self.config, x_BxTxD.reshape(-1, self.config.width)
    assert view.segments_BxT is not None, "packed rows"
    _, chosen = mixture.route(x_UxD, self.router[...], c.experts_per_token, c.normalized_router)
    return mixture.load(x_UxD, self.router[...], chosen, view.segments_BxT.reshape(-1) > 0)

  def __call__(
    self,
    x_BxTxD: jax.Array,
    positions_BxT: jax.Array,
    view: LayerView,
    cache: paging.LayerCache | None,
  ) -> tuple[jax.Array, paging.LayerCache | None, mixture.Load | None]:
    """Returns x, the cache, and the router's load (None without experts or packing)."""
    c = self.config
    normed = rms_norm(x_BxTxD, self.attention_norm[...], c)
    attended, cache = self.attention(normed, positions_BxT, view, cache)
    if c.post_norms:
      attended = rms_norm(attended, self.post_attention_norm[...], c)
    x_BxTxD = x_BxTxD + attended
    normed = rms_norm(x_BxTxD, self.mlp_norm[...], c)
    changed = self.mlp(normed)
    counts = c.num_experts and view.segments_BxT is not None
    load = self.load(normed, view) if counts else None
    if c.post_norms:
      changed = rms_norm(changed, self.post_mlp_norm[...], c)
    return constrain(x_BxTxD + changed, "batch", None, None), cache, load


class Decoder(nnx.Module):
  """The policy network: tokens -> logits of the next token."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
    c = config
    self.config = config
    self.embedding = _fan_in(rngs, (c.vocab_size, c.width), c.width)

    @nnx.split_rngs(splits=c.num_layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stacked(rngs):  # all layers, their parameters stacked in front
      return Block(config, rngs)

    self.blocks = stacked(rngs)
    self.final_norm = nnx.Param((1.0 - c.norm_offset) * jnp.ones(c.width))
    if not c.tied_embeddings:
      self.unembedding = _fan_in(rngs, (c.width, c.vocab_size), c.width)

  def __call__(
    self, tokens_BxT: jax.Array, positions_BxT: jax.Array, cache: paging.Cache | None = None
  ) -> tuple[jax.Array, paging.Cache | None]:
    """Logits and the updated cache.

    Args:
      tokens_BxT: int32 token ids.
      positions_BxT: int32 place of each token in its row.
      cache: the state to extend, in which a token sees the positions up to its own; None for a
        causal pass over whole rows.

    Returns:
      float32 logits [B, T, V] of the token after each position, and the cache or None.
    """
    x_BxTxD, cache, _ = self.hidden(tokens_BxT, positions_BxT, cache)
    return self.logits(x_BxTxD), cache

  def hidden(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    cache: paging.Cache | None = None,
    packing: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, paging.Cache | None, mixture.Load | None]:
    """The last hidden states [B, T, D], the cache, and router loads.

    Arguments as for `__call__`; `packing`: int32 segments and ends [B, T] of packed rows
    (`types.PackedRows`), without a cache. Loads [L, ...] exist for packed rows and a mixture of
    experts, else None.
    """
    c = self.config
    x_BxTxD = constrain(self.embedding[...][tokens_BxT], "batch", None, None)
    if c.scaled_embeddings:
      x_BxTxD = x_BxTxD * c.width**0.5
    if cache is not None:
      everything, near = _views(c, positions_BxT, None, None)
    elif packing is None:
      behind = positions_BxT[:, :, None] - jnp.arange(tokens_BxT.shape[1])[None, None, :]
      everything, near = _views(c, positions_BxT, behind >= 0, behind)
    else:
      segments_BxT, ends_BxT = packing
      seen = _packed_view(positions_BxT, ends_BxT)
      everything, near = _views(c, positions_BxT, *seen, segments_BxT=segments_BxT)

    @nnx.scan(in_axes=(0, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    @_rematerialised(c.remat)
    def layer(block, carried, of_layer):
      (x_BxTxD, pool), (number, is_local) = carried, of_layer
      view = everything
      if is_local is not None:
        view = jax.tree.map(lambda a, b: jnp.where(is_local, a, b), near, everything)
        view = view._replace(is_local=is_local)
      here = cache and paging.LayerCache(pool, number, cache.tables_BxZ)
      x_BxTxD, here, load = block(x_BxTxD, positions_BxT, view, here)
      return (x_BxTxD, here and here.pool), load

    is_local_L = jnp.array(c.local_layers) if c.local_layers else None
    carried = (x_BxTxD, cache and cache.pool)
    (x_BxTxD, pool), loads = layer(self.blocks, carried, (jnp.arange(c.num_layers), is_local_L))
    x_BxTxD = rms_norm(x_BxTxD, self.final_norm[...], c)
    return x_BxTxD, cache and cache._replace(pool=pool), loads

  def logits(self, x_BxTxD: jax.Array) -> jax.Array:
    """Last hidden states -> float32 logits [B, T, V]."""
    output = getattr(self, output_name(self.config))[...]
    return constrain(logits(self.config, output, x_BxTxD), "batch", None, "vocab")


def output_name(config: DecoderConfig) -> str:
  """Name of the parameter that multiplies the last hidden states."""
  return "embedding" if config.tied_embeddings else "unembedding"


def logits(config: DecoderConfig, output: jax.Array, x_BxTxD: jax.Array) -> jax.Array:
  """`Decoder.logits` with the parameter `output_name` as an argument."""
  layout = "ud,vd->uv" if config.tied_embeddings else "ud,dv->uv"
  x_UxD = x_BxTxD.reshape(-1, config.width)
  logits_UxV = jnp.einsum(
    layout, x_UxD, output.astype(x_UxD.dtype), preferred_element_type=jnp.float32
  )
  return softcap(logits_UxV.reshape(*x_BxTxD.shape[:-1], -1), config.logit_softcap)


def project(x_BxTxD: jax.Array, w_DxF: jax.Array) -> jax.Array:
  """x @ w -> [B, T, F], as a product of two matrices.

  For `x @ w` with two axes of tokens, XLA on CPU transposes them element by element in the gradient
  of `w`, which costs a quarter of a training step.
  """
  x_UxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
  return (x_UxD @ w_DxF).reshape(*x_BxTxD.shape[:-1], -1)


def _rematerialised(name: str):
  kept = names.REMAT[name]
  if kept is None:
    return lambda layer: layer
  policy = getattr(jax.checkpoint_policies, kept)
  # Layers are scanned, so that their repetition can't be optimised away.
  return lambda layer: nnx.remat(layer, policy=policy, prevent_cse=False)


def _packed_view(positions_BxT, ends_BxT):
  """(visible, tokens behind) [B, T, T]: a token sees itself and what has not ended before it."""
  behind = positions_BxT[:, :, None] - positions_BxT[:, None, :]
  columns = jnp.arange(ends_BxT.shape[1])
  earlier = (columns[:, None] >= columns[None, :])[None]
  return earlier & (columns[None, :, None] < ends_BxT[:, None, :]), behind


def _views(
  config: DecoderConfig, positions_BxT, visible, behind, *, segments_BxT=None
) -> tuple[LayerView, LayerView | None]:
  """Views of layers that see everything before them, and of local ones if there are any.

  Args:
    visible: bool [B, T, S], who sees whom without a window; None with a cache.
    behind: int [B, T, S], by how many tokens one lies before the other.
  """
  c = config
  turns = rope.frequencies(c.rope_theta, c.head_dim, c.rope_scaling)
  everything = LayerView(visible, rope.angles(positions_BxT, turns), segments_BxT, None)
  if not c.local_layers:
    return everything, None
  turns = rope.frequencies(c.local_rope_theta, c.head_dim, c.local_rope_scaling)
  visible = visible if visible is None else visible & (behind < c.sliding_window)
  angles = rope.angles(positions_BxT, turns)
  return everything, everything._replace(visible_BxTxS=visible, angle_BxTxR=angles)
