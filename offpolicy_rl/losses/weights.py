"""Weights of tokens, float [N, M], from log-ratios of policies [N, M] that are 0 outside the mask.

  anchor_log_ratio    log pi / pi_a, of the policy to the anchor; rho = its exponential
  sampler_log_ratio   log pi / mu, of the policy to the sampler's
  mismatch            log pi_q / mu, of the proximal policy to the sampler's
  loss_mask           bool [N, M], True = counts

Keyword arguments are keys of `objective.`; `objective.weight` and `objective.correction` choose
from WEIGHTS and CORRECTIONS at the end of this file. No weight has a gradient. Those that depend on
other rows are in batch_weights.py.
"""

from math import inf

import jax.numpy as jnp
from jax import Array

from offpolicy_rl.losses import batch_weights, ratios


def truncate(
  anchor_log_ratio: Array,
  *,
  level: str = "token",
  weight_low: float = 0.0,
  weight_high: float = inf,
) -> Array:
  """C[weight_low, weight_high](rho); level "sequence": rho of the row: CISPO, arXiv 2506.13585."""
  return jnp.clip(_ratio(anchor_log_ratio, level), weight_low, weight_high)


def double_mask(
  anchor_log_ratio: Array, loss_mask: Array, *, weight_low: float = 0.0, weight_high: float = inf
) -> Array:
  """rho inside [weight_low, weight_high] in rows near the anchor, else 0: arXiv 2512.16144.

  Near: the row's geometric mean of rho is inside [0.1, 10] and the product at most 100.
  """
  geometric = ratios.exp(ratios.row_mean(anchor_log_ratio, loss_mask))
  near = (geometric >= 0.1) & (geometric <= 10) & (_ratio(anchor_log_ratio, "sequence") <= 100)
  return jnp.where(near, _inside(ratios.exp(anchor_log_ratio), weight_low, weight_high), 0.0)


def topr(
  anchor_log_ratio: Array,
  advantages: Array,
  unshaped_rewards: Array,
  *,
  level: str = "token",
  topr_sign: str = "advantage",
) -> Array:
  """1 in positive rows, min(rho, 1) in others: tapered off-policy REINFORCE, arXiv 2503.14286.

  topr_sign: a row is positive by its "advantage" or by its "reward", float [N].
  """
  sign = unshaped_rewards if topr_sign == "reward" else advantages
  return jnp.where(sign[:, None] > 0, 1.0, jnp.minimum(_ratio(anchor_log_ratio, level), 1.0))


def directional(
  anchor_log_ratio: Array, advantages: Array, *, clip_low: float = 0.2, clip_high: float = 0.2
) -> Array:
  """rho, but 0 where a step along A [N] leaves [1 - clip_low, 1 + clip_high]: arXiv 2512.01374."""
  ratio, a = ratios.exp(anchor_log_ratio), advantages[:, None]
  leaves = jnp.where(a > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
  return jnp.where(leaves & (a != 0), 0.0, ratio)


def gamma(
  anchor_log_ratio: Array,
  advantages: Array,
  *,
  gamma_power_high: float = 2.0,
  gamma_rate_high: float = 3.0,
  gamma_power_low: float = 3.0,
  gamma_rate_low: float = 2.0,
) -> Array:
  """e^l W^k e^(-l W) [N, 1], W = the row's product of rho; 1 at W = 1: VESPO, arXiv 2602.10693.

  k, l: gamma_power_high, gamma_rate_high in rows of A [N] >= 0, the others below.
  """
  positive = advantages[:, None] >= 0
  power = jnp.where(positive, gamma_power_high, gamma_power_low)
  rate = jnp.where(positive, gamma_rate_high, gamma_rate_low)
  log_product = ratios.row_sum(anchor_log_ratio)
  return jnp.exp(rate + power * log_product - rate * ratios.exp(log_product))


def variation_filter(
  anchor_log_ratio: Array, advantages: Array, loss_mask: Array, *, variation_max: float = 0.1
) -> Array:
  """rho, but 0 where A (rho - 1) > 0 in rows that have moved too far: VACO, arXiv 2603.01365.

  Too far: the row's mean of |rho - 1| / 2, which estimates a total variation, is above the bound.
  """
  ratio = ratios.exp(anchor_log_ratio)
  variation = ratios.row_mean(jnp.abs(ratio - 1) / 2, loss_mask)
  leaves = advantages[:, None] * anchor_log_ratio > 0
  return jnp.where(leaves & (variation > variation_max), 0.0, ratio)


def veto(
  anchor_log_ratio: Array, advantages: Array, loss_mask: Array, *, weight_low: float = 0.0
) -> Array:
  """1, but 0 behind a row's first rho below weight_low if A < 0: mu-GRPO, arXiv 2605.17570.

  Behind a token that the policy has all but given up it would not come to the rest of the row.
  """
  trigger = loss_mask & (ratios.exp(anchor_log_ratio) < weight_low)
  behind = jnp.cumsum(trigger, axis=-1) > trigger
  return jnp.where(behind & (advantages[:, None] < 0), 0.0, 1.0)


def token_truncate(
  mismatch: Array, *, correction_low: float = 0.0, correction_high: float = inf
) -> Array:
  """C[correction_low, correction_high](pi_q / mu): TIS, https://fengyao.notion.site/off-policy-rl"""
  return jnp.clip(ratios.exp(mismatch), correction_low, correction_high)


def token_mask(
  mismatch: Array, *, correction_low: float = 0.0, correction_high: float = inf
) -> Array:
  """pi_q / mu where it is inside the bounds, else 0: IcePop, arXiv 2510.18855."""
  return _inside(ratios.exp(mismatch), correction_low, correction_high)


def seq_truncate(mismatch: Array, *, correction_high: float = inf) -> Array:
  """min(product of pi_q / mu over the row, correction_high)."""
  return jnp.minimum(_ratio(mismatch, "sequence"), correction_high)


def seq_mask(mismatch: Array, *, correction_high: float = inf) -> Array:
  """Product of pi_q / mu over the row where it is at most correction_high, else 0: MIS."""
  return _inside(_ratio(mismatch, "sequence"), 0.0, correction_high)


def geo_mask(
  mismatch: Array, loss_mask: Array, *, correction_low: float = 0.0, correction_high: float = inf
) -> Array:
  """pi_q / mu in rows whose geometric mean is inside the bounds, else 0: NeMo-RL, OpenRLHF."""
  geometric = ratios.exp(ratios.row_mean(mismatch, loss_mask))
  inside = (geometric >= correction_low) & (geometric <= correction_high)
  return jnp.where(inside, ratios.exp(mismatch), 0.0)


def sequence_mask(
  sampler_log_ratio: Array, advantages: Array, loss_mask: Array, *, opsm_delta: float = inf
) -> Array:
  """0 in rows with A < 0 and mean(lb - lp) > opsm_delta, else 1 [N, 1]: OPSM, arXiv 2512.02556."""
  drift = -ratios.row_mean(sampler_log_ratio, loss_mask)
  return jnp.where((advantages[:, None] < 0) & (drift > opsm_delta), 0.0, 1.0)


WEIGHTS = {
  "truncate": truncate,
  "double_mask": double_mask,
  "topr": topr,
  "directional": directional,
  "gamma": gamma,
  "variation_filter": variation_filter,
  "veto": veto,
  "group_ratio_clip": batch_weights.group_ratio_clip,
  "second_moment": batch_weights.second_moment,
  "balanced_clip": batch_weights.balanced_clip,
}
CORRECTIONS = {
  "token_truncate": token_truncate,
  "token_mask": token_mask,
  "seq_truncate": seq_truncate,
  "seq_mask": seq_mask,
  "geo_mask": geo_mask,
}


def _ratio(log_ratio: Array, level: str) -> Array:
  """[N, M] ratios of tokens, or [N, M] with the row's product of them at each of its tokens."""
  if level == "sequence":
    log_ratio = jnp.broadcast_to(ratios.row_sum(log_ratio), log_ratio.shape)
  return ratios.exp(log_ratio)


def _inside(ratio: Array, low: float, high: float) -> Array:
  return jnp.where((ratio >= low) & (ratio <= high), ratio, 0.0)
