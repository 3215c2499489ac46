"""Weights of tokens, float [N, M], that depend on the group's other rows or on the whole batch.

Arrays, keyword arguments and gradients (none) are as in weights.py. `choices.GROUP_WEIGHTS` need
whole groups, `choices.BATCH_WEIGHTS` all rows of an update.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from offpolicy_rl.losses import masked, ratios

_STEP = 0.05  # of a bound of balanced_clip, as in the authors' code


def group_ratio_clip(
  anchor_log_ratio: Array,
  anchor_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  group_ids: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
) -> Array:
  """s = p / E[q] [N, 1], but 0 where PPO's clip of s to [1 - clip_low, 1 + clip_high] acts.

  p and q = geometric means of the probabilities of a row's tokens under the policy and the anchor;
  E[q] = sum q^2 / sum q over the rows of the group, the mean of q under q: GEPO, arXiv 2508.17850,
  as in the authors' code.
  As s is no ratio of two policies, it is not 1 where they are the same.
  """
  groups, valid = masked.renumbered(group_ids), jnp.any(loss_mask, -1)
  log_q = ratios.row_mean(jnp.where(loss_mask, anchor_logprobs, 0.0), loss_mask)[:, 0]
  top = masked.group_max(jnp.where(valid, log_q, -math.inf), groups)
  scaled = jnp.where(valid, jnp.exp(log_q - top), 0.0)
  total, squares = masked.group_sum(scaled, groups), masked.group_sum(scaled**2, groups)
  expected = jnp.where(total > 0, squares / jnp.where(total > 0, total, 1.0), 1.0)
  log_s = ratios.row_mean(anchor_log_ratio, loss_mask)[:, 0] + log_q - top - jnp.log(expected)
  s = ratios.exp(jnp.where(valid, log_s, 0.0))
  clipped = jnp.where(advantages > 0, s > 1 + clip_high, s < 1 - clip_low)
  return jnp.where(clipped & (advantages != 0), 0.0, s)[:, None]


def second_moment(
  anchor_log_ratio: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  moment_max: float = 0.04,
  moment_directional: bool = True,
) -> Array:
  """rho, but 0 at the tokens of largest squared log-ratio: M2PO, arXiv 2510.01161.

  As few as it takes for the mean square of the rest to be below the bound; equal ones together.
  moment_directional: only tokens that have moved along A count, in the mean, and are left out.
  """
  judged = loss_mask
  if moment_directional:
    judged = judged & (advantages[:, None] * anchor_log_ratio > 0)
  squares = anchor_log_ratio**2
  ascending = jnp.sort(jnp.where(judged, squares, math.inf), axis=None)
  means = jnp.cumsum(ascending) / jnp.arange(1, ascending.size + 1)
  lowest = jnp.min(jnp.where(means >= moment_max, ascending, math.inf))  # of those left out
  return jnp.where(judged & (squares >= lowest), 0.0, ratios.exp(anchor_log_ratio))


def balanced_clip(
  anchor_log_ratio: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  clip_low_end: float = 0.1,
  clip_high_end: float = 2.0,
  positive_share: float = 0.5,
) -> Array:
  """rho, but 0 where PPO's clip acts, with bounds that balance the signs: BAPO, arXiv 2510.18927.

  The lower bound rises from 1 - clip_low to 1 - clip_low_end, then the upper one from 1 + clip_high
  to 1 + clip_high_end, in steps of 0.05, until tokens with A > 0 have `positive_share` of the
  surrogate: P >= share (P + Q), P = sum min(rho, upper) A, Q = sum max(rho, lower) |A| over A < 0.
  """
  ratio, a = ratios.exp(anchor_log_ratio), advantages[:, None]
  lowers, uppers = _bounds((clip_low, clip_low_end), (clip_high, clip_high_end))

  def is_balanced(bounds: tuple[Array, Array]) -> Array:
    lower, upper = bounds
    positive = masked.masked_sum(jnp.minimum(ratio, upper) * jnp.maximum(a, 0.0), loss_mask)
    negative = masked.masked_sum(jnp.maximum(ratio, lower) * jnp.maximum(-a, 0.0), loss_mask)
    return positive >= positive_share * (positive + negative)

  balanced = jax.lax.map(is_balanced, (jnp.asarray(lowers), jnp.asarray(uppers)))
  chosen = jnp.where(jnp.any(balanced), jnp.argmax(balanced), len(lowers) - 1)
  clipped = jnp.where(
    a > 0, ratio > jnp.asarray(uppers)[chosen], ratio < jnp.asarray(lowers)[chosen]
  )
  return jnp.where(clipped & (a != 0), 0.0, ratio)


def _bounds(low: tuple[float, float], high: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
  """(lower, upper) bounds of the ratio in the order of the search; low and high: (from, to)."""
  count = lambda distance: max(math.ceil(distance / _STEP - 1e-9), 0) + 1
  lows = np.maximum(low[0] - _STEP * np.arange(count(low[0] - low[1])), min(low))
  highs = np.minimum(high[0] + _STEP * np.arange(count(high[1] - high[0])), max(high))
  lower = 1 - np.append(lows, np.full(len(highs) - 1, lows[-1]))
  upper = 1 + np.append(np.full(len(lows) - 1, highs[0]), highs)
  return lower, upper
