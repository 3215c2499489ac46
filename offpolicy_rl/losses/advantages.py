"""Advantages from the rewards of a group. All take rewards [B] and group_ids [B], return [B].

Empty rows (cut out by the loss mask) still count here: their reward was really obtained.
"""

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked


def mean(rewards: jax.Array, group_ids: jax.Array) -> jax.Array:
  """A = r - mean(r), as in Kimi k1.5 (arXiv 2501.12599) and Dr. GRPO (arXiv 2503.20783)."""
  return rewards - masked.group_mean(rewards, group_ids)


def std(rewards: jax.Array, group_ids: jax.Array, *, eps: float) -> jax.Array:
  """A = (r - mean(r)) / (s + eps), s with G - 1 degrees of freedom: GRPO (arXiv 2402.03300)."""
  centred = mean(rewards, group_ids)
  size = masked.group_size(group_ids)
  variance = masked.group_mean(centred**2, group_ids) * size / jnp.maximum(size - 1, 1)
  return centred / (jnp.sqrt(variance) + eps)


def vhat(rewards: jax.Array, group_ids: jax.Array, *, beta1: float) -> jax.Array:
  """A = r - beta1 log mean exp(r / beta1), own sample included: OAPL (arXiv 2602.19362).

  The largest reward of the group is subtracted inside the exponential, so any beta1 > 0 is safe.
  """
  top = masked.group_max(rewards, group_ids)
  value = beta1 * jnp.log(masked.group_mean(jnp.exp((rewards - top) / beta1), group_ids))
  return rewards - top - value
