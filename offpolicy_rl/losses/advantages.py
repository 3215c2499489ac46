"""Advantages from the rewards of a group: float [N] from rewards [N] and group_ids [N].

`objective.advantage` chooses from ADVANTAGES at the end of this file; keyword arguments are keys of
`objective.`. Completions without a loss token count, too: their rewards are real, unless no row of
the group has one.
"""

import jax
import jax.numpy as jnp
from jax import Array

from offpolicy_rl.losses import masked


def mean(rewards: Array, group_ids: Array) -> Array:
  """A = r - rbar: Kimi k1.5 (arXiv 2501.12599), Dr. GRPO (arXiv 2503.20783)."""
  centred = rewards - masked.group_mean(rewards, group_ids)
  return jnp.where(masked.group_varies(rewards, group_ids), centred, 0.0)


def relative(rewards: Array, group_ids: Array) -> Array:
  """A = (r - rbar) / rbar, 0 where rbar <= 0; for rewards of 0 and 1: MaxRL (arXiv 2602.02710)."""
  average = masked.group_mean(rewards, group_ids)
  scored = average > 0
  return jnp.where(scored, mean(rewards, group_ids) / jnp.where(scored, average, 1.0), 0.0)


def leave_one_out(rewards: Array, group_ids: Array) -> Array:
  """A = r - mean of others = G / (G - 1) (r - rbar): RLOO (2402.14740). Group of 1: 0."""
  size = masked.group_size(group_ids)
  return mean(rewards, group_ids) * size / jnp.maximum(size - 1, 1)


def std(rewards: Array, group_ids: Array, *, std_eps: float = 1e-4, std_ddof: int = 1) -> Array:
  """A = (r - rbar) / (s + std_eps), s over G - std_ddof degrees of freedom: GRPO (2402.03300)."""
  centred = mean(rewards, group_ids)
  size = masked.group_size(group_ids)
  variance = masked.group_mean(centred**2, group_ids) * size / jnp.maximum(size - std_ddof, 1)
  return _divided(centred, jnp.sqrt(variance) + std_eps)


def batch_std(rewards: Array, group_ids: Array, lengths: Array, *, std_eps: float = 1e-4) -> Array:
  """A = (r - rbar) / (s + std_eps), s over the batch's r - rbar: ScaleRL (arXiv 2510.13786)."""
  centred = mean(rewards, group_ids)
  variance = masked.masked_mean(centred**2, masked.has_tokens(lengths, group_ids))
  return _divided(centred, jnp.sqrt(variance) + std_eps)


def whitened(rewards: Array, group_ids: Array, lengths: Array) -> Array:
  """r - rbar brought to mean 0, variance 1 over the batch's tokens: REINFORCE++ (2501.03262)."""
  centred = mean(rewards, group_ids)
  count = jnp.maximum(jnp.sum(lengths), 1)
  centre = jnp.sum(lengths * centred) / count
  variance = jnp.sum(lengths * (centred - centre) ** 2) / jnp.maximum(count - 1, 1)
  return (centred - centre) * jax.lax.rsqrt(variance + 1e-8)


def vhat(rewards: Array, group_ids: Array, *, beta1: float = 1.0) -> Array:
  """A = r - beta1 log mean exp(r / beta1), own sample included: OAPL (arXiv 2602.19362).

  The largest reward of the group is subtracted inside the exponential, so any beta1 > 0 is safe.
  """
  top = masked.group_max(rewards, group_ids)
  value = beta1 * jnp.log1p(masked.group_mean(jnp.expm1((rewards - top) / beta1), group_ids))
  return rewards - top - value


def vhat_leave_one_out(rewards: Array, group_ids: Array, *, beta1: float = 1.0) -> Array:
  """Like `vhat`, but the mean excludes the row itself: PMD (arXiv 2602.05933). 0 in a group of one.

  Excluding a row that alone has the group's largest reward leaves the runner-up as the largest; it
  is then what is subtracted inside the exponential.
  """
  size = masked.group_size(group_ids)
  top = masked.group_max(rewards, group_ids)
  at_top = rewards == top
  only_top = at_top & (masked.group_sum(at_top.astype(rewards.dtype), group_ids) == 1)
  second = masked.group_max(jnp.where(at_top, -jnp.inf, rewards), group_ids)
  peak = jnp.where(only_top, jnp.where(size > 1, second, 0.0), top)  # of the others
  below = jnp.where(at_top, 0.0, jnp.expm1((rewards - second) / beta1))
  relative = jnp.expm1((rewards - top) / beta1)
  excess = jnp.where(
    only_top, masked.group_sum(below, group_ids), masked.group_sum(relative, group_ids) - relative
  )
  alone = size == 1
  value = peak + beta1 * jnp.log1p(jnp.where(alone, 0.0, excess / jnp.maximum(size - 1, 1)))
  return jnp.where(alone, 0.0, rewards - value)


def value(rewards: Array, values: Array) -> Array:
  """A = r - V*(x), values [N] = V* of the row's prompt: A*-PO (arXiv 2505.20686)."""
  return rewards - values


def none(rewards: Array) -> Array:
  """A = 0: the verifier's rewards teach nothing, a teacher does (functions.distillation)."""
  return jnp.zeros_like(rewards)


def overlong_penalty(lengths: Array, *, max_tokens: int, overlong_cache: int) -> Array:
  """DAPO's soft punishment (arXiv 2503.14476), float [N] in [-1, 0], to be added to the rewards.

  0 for lengths [N] up to max_tokens - overlong_cache, then falling linearly to -1.
  """
  return jnp.clip((max_tokens - overlong_cache - lengths) / overlong_cache, -1.0, 0.0)


ADVANTAGES = {
  "mean": mean,
  "relative": relative,
  "loo": leave_one_out,
  "std": std,
  "batch_std": batch_std,
  "whitened": whitened,
  "vhat": vhat,
  "vhat_loo": vhat_leave_one_out,
  "value": value,
  "none": none,
}


def _divided(x: Array, by: Array) -> Array:
  return x / jnp.where(by > 0, by, 1.0)
