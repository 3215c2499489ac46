"""Low-rank adapters: a frozen matrix W works as W + (alpha / rank) A B, and only A, B are trained.

Hu et al., "LoRA", arXiv 2106.09685. An adapter of the parameter `w` is the pair `w_lora_a`
[layers, inputs of w, rank] and `w_lora_b` [layers, rank, outputs of w] beside it. B begins at 0, so
that fresh adapters change nothing.

A *full* tree has base and adapters in it; `base_config` is the configuration of the base alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from offpolicy_rl.model.architecture import DecoderConfig
from offpolicy_rl.model.names import LORA_INPUT_AXES

A, B = "_lora_a", "_lora_b"


def shapes(name: str, shape: tuple[int, ...], rank: int) -> tuple[tuple, tuple]:
  """Shapes of A and B of a layer's matrix `name` of this shape."""
  inputs = LORA_INPUT_AXES[name]
  return (*shape[:inputs], rank), (rank, *shape[inputs:])


def param_axes(axes: dict[str, tuple]) -> dict[str, tuple]:
  """Logical axes of adapters from those of the matrices (layers in front); ranks are not split."""
  adapters = {}
  for name, inputs in LORA_INPUT_AXES.items():
    layer, *matrix = axes[name]
    adapters[name + A] = (layer, *matrix[:inputs], None)
    adapters[name + B] = (layer, None, *matrix[inputs:])
  return adapters


def scale(config: DecoderConfig) -> float:
  """alpha / rank, the factor of A B."""
  return config.lora_alpha / config.lora_rank


def product(x: jax.Array, a: jax.Array, b: jax.Array, config: DecoderConfig) -> jax.Array:
  """The adapter's part of a layer's product: x [..., inputs], A, B -> [..., outputs]."""
  low = jnp.tensordot(x, a, axes=a.ndim - 1)
  return scale(config) * jnp.tensordot(low, b, axes=1)


def base_config(config: DecoderConfig) -> DecoderConfig:
  """The same decoder without adapters."""
  return dataclasses.replace(config, lora_rank=0, lora_alpha=0.0, lora_targets=())


def split(params: dict) -> tuple[dict, dict]:
  """A full tree -> (base, adapters); nothing is copied."""
  blocks = params["blocks"]
  adapters = {name: x for name, x in blocks.items() if name.endswith((A, B))}
  base = {name: x for name, x in blocks.items() if name not in adapters}
  return params | {"blocks": base}, {"blocks": adapters}


def join(base: dict, adapters: dict) -> dict:
  """Inverse of `split`; nothing is copied."""
  return base | {"blocks": base["blocks"] | adapters["blocks"]}


def trained(config: DecoderConfig, params: dict) -> dict:
  """The trained part of a full tree: the adapters, or everything where there are none."""
  return split(params)[1] if config.lora_rank else params


def merge(config: DecoderConfig, base: dict, adapters: dict) -> dict:
  """Parameters of the plain decoder that computes the same; the others are those of `base`.

  Args:
    config: with adapters.
    base: parameters of `base_config(config)` in any dtype, which the result keeps; sums in float32.
  """
  blocks, pairs = base["blocks"], adapters["blocks"]
  names, factor = config.lora_targets, scale(config)
  merged = {x: _merged(blocks[x], pairs[x + A], pairs[x + B], factor) for x in names}
  return base | {"blocks": blocks | merged}


@jax.jit
def _merged(w, a, b, factor):
  layers, rank = b.shape[:2]
  # In full precision: rounding the product to bfloat16 would lose small updates.
  a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
  product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  return (w + factor * product.reshape(w.shape)).astype(w.dtype)
