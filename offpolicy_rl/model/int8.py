"""Matrices of the layers as 8-bit integers with a scale per output: for sampling, not for training.

w is held as q = round(w / s) with s = max |w| / 127 over what a product sums up, so that a matrix
takes a quarter of its float32 memory; it is multiplied out where a layer uses it. Embeddings stay
as they are. What is then sampled from differs from the learner's policy: see `mismatch/max`.
"""

import jax
import jax.numpy as jnp

SCALE = "_scale"
# Matrices of a block -> the axes that their product sums over, without the layers' in front.
SUMMED_AXES = {
  "w_q": (0,),
  "w_k": (0,),
  "w_v": (0,),
  "w_o": (0, 1),
  "w_gate": (0,),
  "w_up": (0,),
  "w_down": (0,),
  "experts_gate": (1,),
  "experts_up": (1,),
  "experts_down": (1,),
}


def param_axes(axes: dict[str, tuple]) -> dict[str, tuple]:
  """Logical axes of scales from those of the matrices."""
  return {
    name + SCALE: tuple(None if i - 1 in summed else x for i, x in enumerate(axes[name]))
    for name, summed in SUMMED_AXES.items()
  }


def pair(w: jax.Array, summed: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """(integers, scales of the same rank) of a matrix."""
  w32 = w.astype(jnp.float32)
  scale = jnp.max(jnp.abs(w32), axis=summed, keepdims=True) / 127
  scale = jnp.where(scale == 0, 1.0, scale)
  return jnp.round(w32 / scale).astype(jnp.int8), scale.astype(w.dtype)


@jax.jit
def quantize(params: dict) -> dict:
  """Parameters of a decoder -> those of the same one with `int8_weights`."""
  blocks = dict(params["blocks"])
  for name, summed in SUMMED_AXES.items():
    if name in blocks:
      blocks[name], blocks[name + SCALE] = pair(blocks[name], tuple(i + 1 for i in summed))
  return params | {"blocks": blocks}
