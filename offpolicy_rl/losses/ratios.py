"""Ratios between policies, and the weights that are made of them. All arrays are [B, T].

`gap` is a log-ratio per token, lp - la, zero outside the loss mask.
"""

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked
from offpolicy_rl.losses.choices import Choices


def gap(numerator: jax.Array, denominator: jax.Array, loss_mask: jax.Array) -> jax.Array:
  """lp - la on the loss mask, 0 elsewhere (whatever is stored there)."""
  return jnp.where(loss_mask, numerator - denominator, 0.0)


# Beyond these float32 overflows: the square of a ratio, as in the norm of a gradient; and 0 * -inf
# is NaN. No estimate is worth such a weight.
MOST_LOG_RATIO = 20.0
LEAST_LOGPROB = -1e4


def bounded(logprobs: jax.Array | None) -> jax.Array | None:
  """Log-probabilities of at least LEAST_LOGPROB; what is below, -inf included, has no gradient."""
  return None if logprobs is None else jnp.maximum(logprobs, LEAST_LOGPROB)


def of(log_ratio: jax.Array) -> jax.Array:
  """exp, finite in float32 with its gradient: past e^MOST_LOG_RATIO it goes on as its tangent."""
  beyond = jnp.maximum(log_ratio - MOST_LOG_RATIO, 0.0)
  return jnp.exp(jnp.minimum(log_ratio, MOST_LOG_RATIO)) * (1 + beyond)


def clipped(ratio: jax.Array, low: float, high: float) -> jax.Array:
  """C[low, high]; on the edge the gradient is whole (jnp.clip's is half)."""
  return jnp.where(ratio < low, low, jnp.where(ratio > high, high, ratio))


def row_sum(x: jax.Array) -> jax.Array:
  """[B, T] -> [B, 1]: sum over the row's tokens, e.g. the log-ratio of whole completions."""
  return jnp.sum(x, axis=-1, keepdims=True)


def row_mean(x: jax.Array, loss_mask: jax.Array) -> jax.Array:
  """[B, T] -> [B, 1]: mean over the row's loss tokens."""
  return row_sum(x) / jnp.maximum(row_sum(loss_mask), 1)


def proximal_logprobs(kind: str, policy, sampler, versions, current_version) -> jax.Array:
  """lq [B, T] where nobody computed it.

  `policy`: log-probs of the policy before the step's first update. current: lq = sg(those).
  loglinear: lb + alpha (lp - lb) with alpha = C[0, 1]((v - 1 - v_token) / (v - v_token)) for the
    current version v: AReaL's approximation, which saves a forward pass.
  """
  policy, sampler = bounded(jax.lax.stop_gradient(policy)), bounded(sampler)
  if kind == "current":
    return policy
  behind = (current_version - versions).astype(policy.dtype)
  alpha = jnp.clip((behind - 1) / jnp.where(behind == 0, 1, behind), 0, 1)
  alpha = jnp.where(behind == 0, 0.0, alpha)
  return sampler + alpha * (policy - sampler)


def correction_weights(choices: Choices, proximal, sampler, loss_mask) -> jax.Array:
  """Stop-gradient weights for the mismatch pi_q / mu, bounds [a, b] = correction_low, _high.

  token_truncate: C[a, b](pi_q / mu) per token: TIS (a = 0), https://fengyao.notion.site/off-policy-rl
  token_mask: the ratio inside [a, b], else 0: IcePop, AReaL's behaviour mask
  seq_truncate: min(product over the row, b)
  seq_mask: the product where it is <= b, else 0: MIS
  geo_mask: token ratios in rows whose geometric mean is inside [a, b], else 0
  """
  low, high = choices.correction_low, choices.correction_high
  log_ratio = jax.lax.stop_gradient(gap(proximal, sampler, loss_mask))
  ratio = of(log_ratio)
  if choices.correction == "token_truncate":
    return jnp.clip(ratio, low, high)
  if choices.correction == "token_mask":
    return jnp.where((ratio >= low) & (ratio <= high), ratio, 0.0)
  product = of(row_sum(log_ratio))
  if choices.correction == "seq_truncate":
    return jnp.minimum(product, high) * jnp.ones_like(ratio)
  if choices.correction == "seq_mask":
    return jnp.where(product <= high, product, 0.0) * jnp.ones_like(ratio)
  geometric = of(row_mean(log_ratio, loss_mask))
  return jnp.where((geometric >= low) & (geometric <= high), ratio, 0.0)


def gradient_weights(choices: Choices, log_ratio, loss_mask, advantages, rewards) -> jax.Array:
  """Stop-gradient weight of -A lp from the ratio rho = exp(log_ratio) to the anchor.

  none: 1
  truncate: C[weight_low, weight_high](rho)
  double_mask: rho inside [weight_low, weight_high], in rows whose geometric mean is inside
    [0.1, 10] and whose product is at most 100, else 0
  topr: 1 on positives, min(rho, 1) on negatives (Tapered Off-Policy REINFORCE, arXiv 2503.14286)
  directional: rho, but 0 where a step along A leaves [1 - clip_low, 1 + clip_high] (MiniRL)

  `level` "sequence" takes the ratio of whole completions for truncate and topr.
  """
  if choices.weight == "none":
    return jnp.ones_like(log_ratio)
  log_ratio = jax.lax.stop_gradient(log_ratio)
  summed = row_sum(log_ratio)
  if choices.level == "sequence" and choices.weight in ("truncate", "topr"):
    log_ratio = jnp.broadcast_to(summed, log_ratio.shape)
  ratio = of(log_ratio)
  low, high = choices.weight_low, choices.weight_high
  if choices.weight == "truncate":
    return jnp.clip(ratio, low, high)
  if choices.weight == "double_mask":
    geometric = of(row_mean(log_ratio, loss_mask))
    rows = (geometric >= 0.1) & (geometric <= 10) & (of(summed) <= 100)
    return jnp.where(rows & (ratio >= low) & (ratio <= high), ratio, 0.0)
  if choices.weight == "topr":
    sign = rewards[:, None] if choices.topr_sign == "reward" else advantages
    return jnp.where(sign > 0, 1.0, jnp.minimum(ratio, 1.0))
  leaves = jnp.where(advantages > 0, ratio > 1 + choices.clip_high, ratio < 1 - choices.clip_low)
  return jnp.where(leaves & (advantages != 0), 0.0, ratio)


def kept_rows(choices: Choices, log_ratio, loss_mask, advantages) -> jax.Array:
  """[B, 1]: 0 for rows with A < 0 and mean(lb - lp) > opsm_delta (OPSM, DeepSeek-V3.2), else 1."""
  drift = -row_mean(jax.lax.stop_gradient(log_ratio), loss_mask)
  return jnp.where((advantages < 0) & (drift > choices.opsm_delta), 0.0, 1.0)


def effective_sample_size(log_ratios: jax.Array, valid: jax.Array) -> jax.Array:
  """(sum w)^2 / (n sum w^2) of w = e^u, u = log_ratios [B] where valid [B]; in (0, 1]."""
  scaled = jnp.where(valid, jnp.exp(log_ratios - masked.masked_max(log_ratios, valid)), 0.0)
  count = jnp.maximum(jnp.sum(valid), 1)
  return jnp.sum(scaled) ** 2 / jnp.maximum(jnp.sum(scaled**2), 1e-30) / count
