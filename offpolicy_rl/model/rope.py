"""Rotary position embeddings, half-split layout (Su et al., arXiv 2104.09864), with scalings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
  """A slowdown of the rotations of a model trained on short rows, for long ones.

  "linear" (Chen et al., arXiv 2306.15595): all by `factor`. "llama3" (Llama 3, arXiv 2407.21783):
  those with wavelengths beyond original_length / low by `factor`, those below original_length /
  high not at all, and smoothly in between.
  """

  kind: str  # "linear" | "llama3"
  factor: float
  low: float = 1.0
  high: float = 4.0
  original_length: int = 8192  # tokens


def frequencies(theta: float, head_dim: int, scaling: Scaling | None) -> np.ndarray:
  """Radians per position of each rotation: float32 [R]."""
  plain = theta ** (-np.arange(head_dim // 2) / (head_dim // 2))
  if scaling is None:
    return plain.astype(np.float32)
  slowed = plain / scaling.factor
  if scaling.kind == "linear":
    return slowed.astype(np.float32)
  turns = scaling.original_length * plain / (2 * math.pi)  # within the original length
  keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
  return (keep * plain + (1 - keep) * slowed).astype(np.float32)


def angles(positions_BxT: jax.Array, frequencies_R: np.ndarray) -> jax.Array:
  """Angle of each rotation at each position: float32 [B, T, R]."""
  return positions_BxT[:, :, None].astype(jnp.float32) * frequencies_R[None, None, :]


def rotate(x_BxTxHxC: jax.Array, angle_BxTxR: jax.Array) -> jax.Array:
  """Turns channels (i, i + R) of every head by angle i, in float32."""
  cos, sin = jnp.cos(angle_BxTxR)[:, :, None], jnp.sin(angle_BxTxR)[:, :, None]
  a, b = jnp.split(x_BxTxHxC.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxHxC.dtype)
