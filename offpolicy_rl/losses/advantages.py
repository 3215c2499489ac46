"""Advantages from the rewards of a group. All take rewards [B] and group_ids [B], return [B].

Empty rows (cut out by the loss mask) still count here: their reward was really obtained.
"""

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked
from offpolicy_rl.losses.choices import Choices


def mean(rewards: jax.Array, group_ids: jax.Array) -> jax.Array:
  """A = r - rbar: Kimi k1.5 (arXiv 2501.12599), Dr. GRPO (arXiv 2503.20783)."""
  centred = rewards - masked.group_mean(rewards, group_ids)
  return jnp.where(masked.group_varies(rewards, group_ids), centred, 0.0)


def leave_one_out(rewards: jax.Array, group_ids: jax.Array) -> jax.Array:
  """A = r - mean of the others = G / (G - 1) (r - rbar): RLOO (arXiv 2402.14740). Alone: 0."""
  size = masked.group_size(group_ids)
  return mean(rewards, group_ids) * size / jnp.maximum(size - 1, 1)


def std(rewards: jax.Array, group_ids: jax.Array, *, eps: float, ddof: int) -> jax.Array:
  """A = (r - rbar) / (s + eps): GRPO (arXiv 2402.03300); s with G - ddof degrees of freedom."""
  centred = mean(rewards, group_ids)
  size = masked.group_size(group_ids)
  variance = masked.group_mean(centred**2, group_ids) * size / jnp.maximum(size - ddof, 1)
  return _divided(centred, jnp.sqrt(variance) + eps)


def batch_std(rewards: jax.Array, group_ids: jax.Array, *, eps: float) -> jax.Array:
  """A = (r - rbar) / (s + eps), s over the whole batch's r - rbar: ScaleRL (arXiv 2510.13786)."""
  centred = mean(rewards, group_ids)
  return _divided(centred, jnp.std(centred) + eps)


def whitened(rewards: jax.Array, group_ids: jax.Array, lengths: jax.Array) -> jax.Array:
  """r - rbar brought to mean 0, variance 1 over the batch's tokens: REINFORCE++ (2501.03262)."""
  centred = mean(rewards, group_ids)
  count = jnp.maximum(jnp.sum(lengths), 1)
  centre = jnp.sum(lengths * centred) / count
  variance = jnp.sum(lengths * (centred - centre) ** 2) / jnp.maximum(count - 1, 1)
  return (centred - centre) * jax.lax.rsqrt(variance + 1e-8)


def vhat(rewards: jax.Array, group_ids: jax.Array, *, beta1: jax.Array | float) -> jax.Array:
  """A = r - beta1 log mean exp(r / beta1), own sample included: OAPL (arXiv 2602.19362).

  The largest reward of the group is subtracted inside the exponential, so any beta1 > 0 is safe.
  """
  top = masked.group_max(rewards, group_ids)
  value = beta1 * jnp.log1p(masked.group_mean(jnp.expm1((rewards - top) / beta1), group_ids))
  return rewards - top - value


def vhat_leave_one_out(rewards: jax.Array, group_ids: jax.Array, *, beta1: float) -> jax.Array:
  """As `vhat`, the mean over the other samples of the group: PMD (arXiv 2602.05933). Alone: 0.

  Without the row itself the group's largest reward may be another: the runner-up takes its place,
  so that the sum over the others never cancels.
  """
  size = masked.group_size(group_ids)
  top = masked.group_max(rewards, group_ids)
  at_top = rewards == top
  only_top = at_top & (masked.group_sum(at_top.astype(rewards.dtype), group_ids) == 1)
  second = masked.group_max(jnp.where(at_top, -jnp.inf, rewards), group_ids)
  peak = jnp.where(only_top, jnp.where(size > 1, second, 0.0), top)  # of the others
  below = jnp.where(at_top, 0.0, jnp.expm1((rewards - second) / beta1))
  own = jnp.expm1((rewards - top) / beta1)
  excess = jnp.where(
    only_top, masked.group_sum(below, group_ids), masked.group_sum(own, group_ids) - own
  )
  alone = size == 1
  value = peak + beta1 * jnp.log1p(jnp.where(alone, 0.0, excess / jnp.maximum(size - 1, 1)))
  return jnp.where(alone, 0.0, rewards - value)


def overlong_penalty(lengths: jax.Array, *, max_tokens: int, cache: int) -> jax.Array:
  """DAPO's soft punishment (arXiv 2503.14476): 0 up to max_tokens - cache, then down to -1."""
  return jnp.clip((max_tokens - cache - lengths) / cache, -1.0, 0.0)


def shaped(choices: Choices, rewards: jax.Array, lengths: jax.Array) -> jax.Array:
  """Rewards [B] with the overlong penalty, if one was chosen."""
  if not choices.overlong_cache:
    return rewards
  return rewards + overlong_penalty(
    lengths, max_tokens=choices.max_tokens, cache=choices.overlong_cache
  )


def _divided(x: jax.Array, by: jax.Array) -> jax.Array:
  """x / by, where by = 0 means that x is 0 as well."""
  return x / jnp.where(by > 0, by, 1.0)


def of(choices: Choices, rewards, group_ids, lengths, values=None) -> jax.Array:
  """The chosen advantage [B] of shaped rewards, no pessimistic shift; lengths [B]: loss tokens.

  Raises:
    ValueError: advantage "value" without `values`.
  """
  kind = choices.advantage
  if kind == "value":
    if values is None:
      raise ValueError("values: got None, but objective.advantage = 'value' needs them")
    return rewards - values
  return {
    "mean": lambda: mean(rewards, group_ids),
    "loo": lambda: leave_one_out(rewards, group_ids),
    "std": lambda: std(rewards, group_ids, eps=choices.std_eps, ddof=choices.std_ddof),
    "batch_std": lambda: batch_std(rewards, group_ids, eps=choices.std_eps),
    "whitened": lambda: whitened(rewards, group_ids, lengths),
    "vhat": lambda: vhat(rewards, group_ids, beta1=choices.beta1),
    "vhat_loo": lambda: vhat_leave_one_out(rewards, group_ids, beta1=choices.beta1),
  }[kind]()
