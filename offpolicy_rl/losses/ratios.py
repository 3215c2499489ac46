"""Ratios between policies, finite in float32 with their gradients. Arrays are [N, M]."""

import math

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked

# Bounds that keep float32 finite: squared ratios (as in a gradient norm) and 0 * logprob.
MAX_LOG_RATIO = 20.0
MIN_LOGPROB = -1e4


def log_ratio(numerator: jax.Array, denominator: jax.Array, loss_mask: jax.Array) -> jax.Array:
  """lp - la where the loss mask is True, 0 elsewhere."""
  return jnp.where(loss_mask, numerator - denominator, 0.0)


def bounded(logprobs: jax.Array) -> jax.Array:
  """Clamps log-probabilities at MIN_LOGPROB; clamped ones, such as -inf, have no gradient."""
  return jnp.maximum(logprobs, MIN_LOGPROB)


def exp(log_ratio: jax.Array) -> jax.Array:
  """e^x, continued linearly beyond MAX_LOG_RATIO so that value and gradient stay finite."""
  beyond = jnp.maximum(log_ratio - MAX_LOG_RATIO, 0.0)
  return jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO)) * (1 + beyond)


def clip(ratio: jax.Array, low: float, high: float) -> jax.Array:
  """C[low, high] with the full gradient at the edges, where jnp.clip has half of it."""
  return jnp.where(ratio < low, low, jnp.where(ratio > high, high, ratio))


def binary_kl(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """KL(Bernoulli(mu) || Bernoulli(pi)) in nats, lp = log pi and la = log mu [N, M]; >= 0.

  It is the part of a token's KL that its own probability shows: all other tokens count as one.
  Infinite where pi = 1 and mu < 1. Complements 1 - e^x are computed without cancellation.
  """
  policy, anchor = jnp.minimum(numerator, 0.0), jnp.minimum(denominator, 0.0)
  rest = -jnp.expm1(anchor)  # 1 - mu
  others = jnp.where(rest > 0, rest * (_log_complement(anchor) - _log_complement(policy)), 0.0)
  return jnp.maximum(jnp.exp(anchor) * (anchor - policy) + others, 0.0)


def _log_complement(x: jax.Array) -> jax.Array:
  """log(1 - e^x) for x <= 0."""
  near = x > -math.log(2.0)  # e^x > 1/2
  complement = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
  return jnp.where(near, complement, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def row_sum(x: jax.Array) -> jax.Array:
  """[N, M] -> [N, 1]: sum over each row's tokens."""
  return jnp.sum(x, axis=-1, keepdims=True)


def row_mean(x: jax.Array, loss_mask: jax.Array) -> jax.Array:
  """[N, M] -> [N, 1]: mean over the row's loss tokens; x is 0 elsewhere."""
  return row_sum(x) / jnp.maximum(row_sum(loss_mask), 1)


def proximal_logprobs(
  kind: str,
  policy_logprobs: jax.Array,
  sampler_logprobs: jax.Array,
  versions: jax.Array | None,
  current_version: jax.Array | int | None,
) -> jax.Array:
  """lq [N, M], without gradient.

  current: lq = lp.
  loglinear: lq = lb + alpha (lp - lb), alpha = C[0, 1]((v - 1 - v_t) / (v - v_t)) for the current
    version v and that of the token v_t. AReaL's approximation, which saves a forward pass.

  Args:
    kind: "current" or "loglinear".
    policy_logprobs: float [N, M], of the policy before the step's first update.
    sampler_logprobs: float [N, M].
    versions: int [N, M], policy version that sampled each token.
    current_version: int scalar.
  """
  policy, sampler = bounded(jax.lax.stop_gradient(policy_logprobs)), bounded(sampler_logprobs)
  if kind == "current":
    return policy
  assert versions is not None and current_version is not None, "loglinear needs both"
  behind = (current_version - versions).astype(policy.dtype)
  alpha = jnp.clip((behind - 1) / jnp.where(behind == 0, 1, behind), 0, 1)
  alpha = jnp.where(behind == 0, 0.0, alpha)
  return sampler + alpha * (policy - sampler)


def effective_sample_size(log_ratios: jax.Array, valid: jax.Array) -> jax.Array:
  """(sum w)^2 / (n sum w^2) of w = e^u, u = log_ratios [N] where valid [N]; in (0, 1]."""
  scaled = jnp.where(valid, jnp.exp(log_ratios - masked.masked_max(log_ratios, valid)), 0.0)
  count = jnp.maximum(jnp.sum(valid), 1)
  return jnp.sum(scaled) ** 2 / jnp.maximum(jnp.sum(scaled**2), 1e-30) / count
