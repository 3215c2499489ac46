"""Matrices of the layers as 8-bit integers with a scale per output; for sampling, not for training.

w is stored as q = round(w / s) with s = max |w| / 127 over the axes that a product sums, in a
quarter of its float32 memory, and multiplied out where a layer uses it. Embeddings stay as they
are. The sampler's policy then differs from the learner's: see `mismatch/max`.
"""

import jax
import jax.numpy as jnp

SCALE = "_scale"
# Matrices of a block -> the axes that their product sums over, without the layers' in front.
SUMMED_AXES = (
  dict.fromkeys(("w_q", "w_k", "w_v"), (0,))
  | {"w_o": (0, 1)}
  | dict.fromkeys(("w_gate", "w_up", "w_down"), (0,))
  | dict.fromkeys(("experts_gate", "experts_up", "experts_down"), (1,))
)


def param_axes(axes: dict[str, tuple]) -> dict[str, tuple]:
  """Logical axes of the scales, from those of the matrices."""
  return {
    name + SCALE: tuple(None if i - 1 in summed else x for i, x in enumerate(axes[name]))
    for name, summed in SUMMED_AXES.items()
  }


def quantize_matrix(w: jax.Array, summed: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """(integers, scales of the same rank) of a matrix."""
  w32 = w.astype(jnp.float32)
  scale = jnp.max(jnp.abs(w32), axis=summed, keepdims=True) / 127
  scale = jnp.where(scale == 0, 1.0, scale)
  return jnp.round(w32 / scale).astype(jnp.int8), scale.astype(w.dtype)


@jax.jit
def quantize(params: dict) -> dict:
  """Parameters of a decoder -> parameters of the same decoder with `int8_weights`."""
  blocks = dict(params["blocks"])
  for name, summed in SUMMED_AXES.items():
    if name in blocks:
      blocks[name], blocks[name + SCALE] = quantize_matrix(
        blocks[name], tuple(i + 1 for i in summed)
      )
  return params | {"blocks": blocks}
