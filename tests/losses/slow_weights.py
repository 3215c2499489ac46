"""Every weight of a token in slow float64 numpy, for slow_reference.py; symbols as there.

`b` is a slow_reference.Batch, `a` the advantage of each row with its shift. No weight has a
gradient.
"""

import math

import numpy as np


def gaps_to(b, n, other):
  return np.array([b.lp[n, t] - other[n, t] for t in b.tokens[n]])


def clip(value, low, high):
  return min(max(value, low), high)


def correction(c, b, n, t):
  """Weight for pi_q / mu."""
  token = math.exp(b.lq[n, t] - b.lb[n, t])
  gaps = [b.lq[n, s] - b.lb[n, s] for s in b.tokens[n]]
  product, geometric = math.exp(sum(gaps)), math.exp(np.mean(gaps))
  inside = lambda value: c.correction_low <= value <= c.correction_high
  return {
    "none": 1.0,
    "token_truncate": clip(token, c.correction_low, c.correction_high),
    "token_mask": token if inside(token) else 0.0,
    "seq_truncate": min(product, c.correction_high),
    "seq_mask": product if product <= c.correction_high else 0.0,
    "geo_mask": token if inside(geometric) else 0.0,
  }[c.correction]


def kept_by_opsm(c, b, n, a):
  """0 where A < 0 and mean(lb - lp) > delta."""
  return 0.0 if a[n] < 0 and np.mean(-gaps_to(b, n, b.lb)) > c.opsm_delta else 1.0


def token(b, n, t):
  """rho."""
  return math.exp(b.lp[n, t] - b.la[n, t])


def product(b, n):
  """W."""
  return math.exp(sum(gaps_to(b, n, b.la)))


def none(c, b, n, t, a):
  return 1.0


def truncate(c, b, n, t, a):
  ratio = product(b, n) if c.level == "sequence" else token(b, n, t)
  return clip(ratio, c.weight_low, c.weight_high)


def topr(c, b, n, t, a):
  positive = b.raw[n] > 0 if c.topr_sign == "reward" else a[n] > 0
  ratio = product(b, n) if c.level == "sequence" else token(b, n, t)
  return 1.0 if positive else min(ratio, 1.0)


def double_mask(c, b, n, t, a):
  rho = token(b, n, t)
  row_is_kept = 0.1 <= math.exp(np.mean(gaps_to(b, n, b.la))) <= 10 and product(b, n) <= 100
  return rho if row_is_kept and c.weight_low <= rho <= c.weight_high else 0.0


def outside(c, value, a):
  """Whether PPO's clip of the value acts."""
  return (a > 0 and value > 1 + c.clip_high) or (a < 0 and value < 1 - c.clip_low)


def directional(c, b, n, t, a):
  rho = token(b, n, t)
  return 0.0 if outside(c, rho, a[n]) else rho


def gamma(c, b, n, t, a):
  k, rate = c.gamma_power_low, c.gamma_rate_low
  if a[n] >= 0:
    k, rate = c.gamma_power_high, c.gamma_rate_high
  return (product(b, n) ** k * math.exp(-rate * product(b, n))) / math.exp(-rate)


def variation_filter(c, b, n, t, a):
  rho = token(b, n, t)
  variation = np.mean([abs(token(b, n, s) - 1) for s in b.tokens[n]]) / 2
  return 0.0 if variation > c.variation_max and a[n] * (rho - 1) > 0 else rho


def veto(c, b, n, t, a):
  before = [token(b, n, s) for s in b.tokens[n] if s < t]
  reached = all(rho >= c.weight_low for rho in before)
  return 1.0 if reached or a[n] >= 0 else 0.0


def group_ratio_clip(c, b, n, t, a):
  mean_probability = lambda x, i: math.exp(np.mean([x[i, s] for s in b.tokens[i]]))
  q = [mean_probability(b.la, i) for i in b.group(n) if b.tokens[i]]
  s = mean_probability(b.lp, n) / (sum(x * x for x in q) / sum(q))
  return 0.0 if outside(c, s, a[n]) else s


def second_moment(c, b, n, t, a):
  """One token at a time is left out, the largest first."""
  square = lambda i, s: (b.lp[i, s] - b.la[i, s]) ** 2
  along = lambda i, s: a[i] * (b.lp[i, s] - b.la[i, s]) > 0
  judged = [(i, s) for i in b.rows for s in b.tokens[i]]
  judged = [x for x in judged if along(*x) or not c.moment_directional]
  left = sorted(judged, key=lambda x: square(*x))
  while left and np.mean([square(*x) for x in left]) >= c.moment_max:
    left.pop()
  return 0.0 if (n, t) in judged and (n, t) not in left else token(b, n, t)


def balanced_clip(c, b, n, t, a):
  """The bounds move a step at a time."""
  rows = [(i, s) for i in b.rows for s in b.tokens[i]]

  def balanced(low, high):
    positive = sum(a[i] * min(token(b, i, s), high) for i, s in rows if a[i] > 0)
    negative = sum(-a[i] * max(token(b, i, s), low) for i, s in rows if a[i] < 0)
    return positive >= c.positive_share * (positive + negative)

  low, high, step = 1 - c.clip_low, 1 + c.clip_high, 0.05
  last_low, last_high = 1 - c.clip_low_end, 1 + c.clip_high_end
  while not balanced(low, high) and low < last_low - 1e-9:
    low = min(low + step, last_low)
  while not balanced(low, high) and high < last_high - 1e-9:
    high = min(high + step, last_high)
  rho = token(b, n, t)
  clipped = (a[n] > 0 and rho > high) or (a[n] < 0 and rho < low)
  return 0.0 if clipped else rho


WEIGHTS = {
  f.__name__: f
  for f in (
    none,
    truncate,
    topr,
    double_mask,
    directional,
    gamma,
    variation_filter,
    veto,
    group_ratio_clip,
    second_moment,
    balanced_clip,
  )
}
