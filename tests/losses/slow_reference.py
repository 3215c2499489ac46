"""Every objective in slow float64 numpy: one formula a line, its derivative by hand beside it.

Nothing here comes from the package but the names of the choices; the symbols are those of
offpolicy_rl/losses/choices.py. `loss_and_gradient(choices, inputs)` is the way in. Only the
KL to the reference beside pairs is not here.
"""

import math

import numpy as np

from offpolicy_rl import losses
from tests.losses.slow_weights import WEIGHTS, clip, correction, gaps_to, kept_by_opsm

ROWS, LENGTH, EMPTY_ROW = 12, 6, 7


def random_inputs(seed, *, drift=0.3, equal_group=None):
  """12 rows in groups of 5, 4 and 3, unordered; row 7 is empty; masked values are garbage.

  Args:
    drift: standard deviation of the policy's log-ratio to the sampler, per token.
    equal_group: the group whose rewards are made equal.
  """
  rng = np.random.default_rng(seed)
  mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (ROWS, 1))
  mask[EMPTY_ROW] = False

  def near(other, size):
    moved = other + size * rng.normal(size=mask.shape)
    return np.where(moved < 0, moved, -0.1 * np.exp(-moved))

  sampler = -rng.exponential(1, mask.shape)
  policy, proximal = near(sampler, drift), near(sampler, drift / 2)
  reference = -rng.exponential(1, mask.shape)
  groups = rng.permutation([0] * 5 + [1] * 4 + [2] * 3)
  rewards = rng.normal(size=ROWS)
  rewards[groups == equal_group] = 0.5
  other = np.random.default_rng((seed, 1))  # so that the other arrays stay
  likely = other.dirichlet([4, 2, 1, 1], mask.shape)
  moved = likely * np.exp(drift * other.normal(size=likely.shape))
  moved /= moved.sum(-1, keepdims=True)
  return losses.LossInputs(
    policy_logprobs=np.where(mask, policy, -77.0),
    sampler_logprobs=np.where(mask, sampler, 99.0),
    loss_mask=mask,
    rewards=rewards,
    group_ids=groups,
    reference_logprobs=np.where(mask, reference, 55.0),
    proximal_logprobs=np.where(mask, proximal, 33.0),
    versions=np.where(mask, rng.integers(3, 8, mask.shape), 1000),
    values=rng.normal(size=ROWS),
    candidate_logprobs=np.where(mask[..., None], np.log(moved[..., :-1]), 44.0),
    sampler_candidate_logprobs=np.where(mask[..., None], np.log(likely[..., :-1]), 22.0),
    teacher_logprobs=np.where(mask, -other.exponential(1, mask.shape), 66.0),
  )


class Batch:
  """The arrays of an inputs tuple under the names of the formulas."""

  def __init__(self, c, x, current_version):
    wide = lambda v: None if v is None else np.asarray(v, np.float64)
    self.lp, self.lb = wide(x.policy_logprobs), wide(x.sampler_logprobs)
    self.lr, self.values = wide(x.reference_logprobs), wide(x.values)
    self.groups = [int(g) for g in x.group_ids]
    self.rows, self.shape = range(len(self.groups)), self.lp.shape
    self.tokens = [[t for t in range(self.shape[1]) if x.loss_mask[n][t]] for n in self.rows]
    self.raw = wide(x.rewards)
    self.lp_v, self.lb_v = wide(x.candidate_logprobs), wide(x.sampler_candidate_logprobs)
    self.r = [self.raw[n] + overlong(c, len(self.tokens[n])) for n in self.rows]
    if x.proximal_logprobs is not None:
      self.lq = wide(x.proximal_logprobs)
    elif c.proximal == "loglinear" and c.needs_proximal:
      self.lq = loglinear(self, x.versions, current_version)
    else:
      self.lq = self.lp
    self.lt = wide(x.teacher_logprobs)
    anchors = {"sampler": self.lb, "proximal": self.lq, "reference": self.lr, "teacher": self.lt}
    self.la = anchors[c.anchor]

  def group(self, n):
    """The rows of n's group, n among them."""
    return [i for i in self.rows if self.groups[i] == self.groups[n]]

  def varies(self, n):
    """Whether the rewards of n's group differ."""
    return len({self.raw[i] for i in self.group(n)}) > 1

  def u(self, n, c):
    """The row's log-ratio to the anchor and its derivative in each token's lp."""
    total = sum(self.lp[n, t] - self.la[n, t] for t in self.tokens[n])  # 1
    length = max(len(self.tokens[n]), 1)
    return (total / length, 1 / length) if c.log_ratio == "mean" else (total, 1.0)


def overlong(c, length):
  """DAPO: 0, then falling linearly over the last `overlong_cache` tokens to -1."""
  if not c.overlong_cache:
    return 0.0
  return -min(max((length - (c.max_tokens - c.overlong_cache)) / c.overlong_cache, 0), 1)


def loglinear(b, versions, now):
  """AReaL: lq = lb + alpha (lp - lb), alpha = C[0, 1]((now - 1 - v) / (now - v))."""
  lq = np.zeros(b.shape)
  for n in b.rows:
    for t in b.tokens[n]:
      alpha = clip((now - 1 - versions[n][t]) / (now - versions[n][t]), 0, 1)
      lq[n, t] = b.lb[n, t] + alpha * (b.lp[n, t] - b.lb[n, t])
  return lq


def log_mean_exp(values, beta1):
  """beta1 log mean e^(value / beta1)."""
  top = max(values)
  return top + beta1 * math.log(np.mean([math.exp((v - top) / beta1) for v in values]))


def advantage(c, b, n):
  """A of one row, without shift."""
  r, group = b.r, b.group(n)
  average = lambda i: np.mean([r[j] for j in b.group(i)])
  centred = lambda i: r[i] - average(i)
  if c.advantage == "mean":
    return centred(n)
  if c.advantage == "relative":
    return centred(n) / average(n) if average(n) > 0 else 0.0
  if c.advantage in ("loo", "vhat_loo") and len(group) == 1:
    return 0.0
  if c.advantage == "loo":
    return r[n] - np.mean([r[i] for i in group if i != n])
  if c.advantage == "std":
    freedom = max(len(group) - c.std_ddof, 1)
    return centred(n) / (math.sqrt(sum(centred(i) ** 2 for i in group) / freedom) + c.std_eps)
  if c.advantage == "batch_std":
    return centred(n) / (np.std([centred(i) for i in b.rows]) + c.std_eps)
  if c.advantage == "whitened":
    per_token = [centred(i) for i in b.rows for _ in b.tokens[i]]
    return (centred(n) - np.mean(per_token)) / math.sqrt(np.var(per_token, ddof=1) + 1e-8)
  if c.advantage == "vhat":
    return r[n] - log_mean_exp([r[i] for i in group], c.beta1)
  if c.advantage == "vhat_loo":
    return r[n] - log_mean_exp([r[i] for i in group if i != n], c.beta1)
  if c.advantage == "none":
    return 0.0
  assert c.advantage == "value"
  return r[n] - b.values[n]


def weight_of_rows(c, b, kept):
  """What each row's sum over its tokens is multiplied by; only rows in `kept` count."""
  length = [len(b.tokens[n]) for n in b.rows]
  tokens = sum(length[n] for n in kept)
  prompts = len({b.groups[n] for n in kept})
  in_group = lambda n: sum(length[i] for i in b.group(n) if i in kept)
  one = {
    "seq_sum": lambda n: 1 / len(kept),
    "seq_mean": lambda n: 1 / len(kept) / length[n],
    "token_mean": lambda n: 1 / tokens,
    "constant": lambda n: 1 / len(kept) / c.max_tokens,
    "prompt_mean": lambda n: 1 / prompts / in_group(n),
  }[c.aggregation]
  return [one(n) if n in kept else 0.0 for n in b.rows]


# Of a completion: the sum over its tokens and its gradient [M]; a: the advantages of all rows.


def regression(c, b, n, a):
  u, slope = b.u(n, c)
  residual = c.beta * u - a[n]  # beta slope
  gradient = np.zeros(b.shape[1])
  if c.scale == "plain":
    gradient[b.tokens[n]] = 2 * residual * c.beta * slope
    return residual**2, gradient
  gradient[b.tokens[n]] = residual * slope
  return residual**2 / (2 * c.beta), gradient


def policy_gradient(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  for t in b.tokens[n]:
    q = WEIGHTS[c.weight](c, b, n, t, a) * correction(c, b, n, t)  # 0: stopped
    gain = a[n] - c.kl_tau * (b.lp[n, t] - b.la[n, t])  # 0: stopped
    value += -q * gain * b.lp[n, t]
    gradient[t] = -q * gain
  return value, gradient


def optimal_baseline(c, b, n, a):
  rows = [i for i in b.group(n) if b.tokens[i]]
  share = {i: math.exp(2 * b.u(i, c)[0]) * len(b.tokens[i]) for i in rows}
  baseline = sum(share[i] * b.r[i] for i in rows) / sum(share.values())
  q = min(math.exp(b.u(n, c)[0]), c.ratio_max) * (b.r[n] - baseline)  # 0: stopped
  gradient = np.zeros(b.shape[1])
  gradient[b.tokens[n]] = -q
  return -q * sum(b.lp[n, t] for t in b.tokens[n]), gradient


def clipped_term(c, r, a):
  """PPO's clip of one token at the ratio r, and its derivative in r; ties are not clipped."""
  plain = (min(r, c.ratio_max) * a, a if r < c.ratio_max else 0.0)
  low, high = 1 - c.clip_low, 1 + c.clip_high
  clipped = (clip(r, low, high) * a, a if low <= r <= high else 0.0)
  smaller, slope = plain if plain[0] <= clipped[0] else clipped
  if a < 0 and -smaller > -c.dual_clip * a:
    return -c.dual_clip * a, 0.0
  return -smaller, -slope


def ppo_clip(c, b, n, a):
  gaps, kept = gaps_to(b, n, b.la), kept_by_opsm(c, b, n, a) if b.tokens[n] else 0.0
  value, gradient = 0.0, np.zeros(b.shape[1])
  for i, t in enumerate(b.tokens[n]):
    q = kept * correction(c, b, n, t) * WEIGHTS[c.weight](c, b, n, t, a)
    if c.level == "sequence":
      s = math.exp(np.mean(gaps))  # s / |y| in every token of the row
      term, slope = clipped_term(c, s, a[n])
      gradient[b.tokens[n]] += q * slope * s / len(gaps)
    else:
      r = math.exp(gaps[i])  # r
      term, slope = clipped_term(c, r, a[n])
      gradient[t] = q * slope * r
    value += q * term
  return value, gradient


def truncated_ratio(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  for t in b.tokens[n]:
    d = b.lp[n, t] - b.la[n, t]  # 1
    r = math.exp(d)  # r
    value += -clip(r, c.ratio_min, c.ratio_max) * a[n] + c.kl_tau * d**2
    gradient[t] = -r * a[n] * (c.ratio_min < r < c.ratio_max) + 2 * c.kl_tau * d
  return value, gradient


def probability_gap(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  for t in b.tokens[n]:
    d = b.lp[n, t] - b.la[n, t]  # 1
    pi, mu = math.exp(b.lp[n, t]), math.exp(b.la[n, t])
    moved = pi - mu  # 0: only decides what is kept
    if c.gap_measure == "kl":
      kl_of_bernoulli = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))
      moved = math.copysign(kl_of_bernoulli, pi - mu)
    if c.gap_two_sided:
      kept = abs(moved) <= c.gap_high
    else:
      kept = moved <= c.gap_high if a[n] > 0 else moved >= -c.gap_low
    value += -kept * a[n] * math.exp(d) + c.kl_tau * d**2
    gradient[t] = -kept * a[n] * math.exp(d) + 2 * c.kl_tau * d
  return value, gradient


def soft_gate(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  tau = c.tau_high if a[n] > 0 else c.tau_low
  for t in b.tokens[n]:
    r = math.exp(b.lp[n, t] - b.la[n, t])  # r
    gate = 1 / (1 + math.exp(-tau * (r - 1)))  # tau gate (1 - gate) r
    value += -4 / tau * gate * a[n]
    gradient[t] = -4 * gate * (1 - gate) * r * a[n]
  return value, gradient


def centring_coefficients(c, b, n, t):
  """q_v w(p_v / q_v) - alpha p_v of every candidate."""
  w = (lambda r: min(r, c.weight_high)) if c.weight == "truncate" else lambda r: 1.0
  p, q = np.exp(b.lp_v[n, t]), np.exp(b.lb_v[n, t])
  rho = max(1 - sum(q), 1e-6) / max(1 - sum(p), 1e-6)
  return [q_v * w(p_v / q_v) - rho * w(1 / rho) * p_v for p_v, q_v in zip(p, q, strict=True)]


def score_centering(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  for t in b.tokens[n]:
    r = math.exp(b.lp[n, t] - b.lb[n, t])  # 0: stopped
    w = min(r, c.weight_high) if c.weight == "truncate" else 1.0
    mean = sum(k * x for k, x in zip(centring_coefficients(c, b, n, t), b.lp_v[n, t], strict=True))
    value += -a[n] * (w * b.lp[n, t] - mean)
    gradient[t] = -a[n] * w
  return value, gradient


def distillation(c, b, n, a):
  value, gradient = 0.0, np.zeros(b.shape[1])
  kept = kept_by_opsm(c, b, n, a) if b.tokens[n] else 0.0
  for t in b.tokens[n]:
    q = kept * WEIGHTS[c.weight](c, b, n, t, a) * correction(c, b, n, t)  # 0: stopped
    gain = a[n] + c.teacher_weight * (b.lt[n, t] - b.lp[n, t])  # 0: stopped
    value += -q * gain * b.lp[n, t]
    gradient[t] = -q * gain
  return value, gradient


# Of a group: its loss and the derivative in the u of each of its rows.


def centred_squares(c, b, group):
  e = {n: c.beta * b.u(n, c)[0] - b.r[n] for n in group}  # beta
  middle = np.mean(list(e.values()))
  scale = 1.0 if c.scale == "plain" else 1 / (2 * c.beta)
  others = max(len(group) - 1, 1)
  value = scale * sum((e[n] - middle) ** 2 for n in group) / others
  return value, {n: scale * 2 * (e[n] - middle) * c.beta / others for n in group}


def pair_squares(c, b, pair):
  first, second = pair
  rest = c.beta * (b.u(first, c)[0] - b.u(second, c)[0]) - (b.r[first] - b.r[second])  # +- beta
  scale = 1.0 if c.scale == "plain" else 1 / (2 * c.beta)
  return scale * rest**2, {first: 2 * scale * rest * c.beta, second: -2 * scale * rest * c.beta}


def pair_dpo(c, b, pair):
  best, worst = pair
  h = c.beta * (b.u(best, c)[0] - b.u(worst, c)[0])
  slope = -c.beta / (1 + math.exp(h))  # of log(1 + e^-h)
  return math.log(1 + math.exp(-h)), {best: slope, worst: -slope}


def pair_ipo(c, b, pair):
  best, worst = pair
  rest = b.u(best, c)[0] - b.u(worst, c)[0] - 1 / (2 * c.beta)
  return rest**2, {best: 2 * rest, worst: -2 * rest}


def units(c, b):
  """What a pairwise loss is a mean over: groups, or pairs of rows."""
  groups = [b.group(n) for n in b.rows if b.group(n)[0] == n]
  if c.drop_zero_variance:
    groups = [group for group in groups if b.varies(group[0])]
  if c.fn == "centred_squares":
    return groups
  if c.fn == "pair_squares":
    return [group[i : i + 2] for group in groups for i in range(0, len(group) - 1, 2)]
  by_reward = lambda n: b.r[n]
  pairs = [(max(group, key=by_reward), min(group, key=by_reward)) for group in groups]
  return [(best, worst) for best, worst in pairs if b.r[best] > b.r[worst]]


def pairwise_loss(c, b):
  """Mean over groups or pairs."""
  loss, gradient, found = 0.0, np.zeros(b.shape), units(c, b)
  for rows in found:
    value, slopes = PAIRWISE[c.fn](c, b, rows)
    loss += value / len(found)
    for n, slope in slopes.items():
      gradient[n, b.tokens[n]] += slope * b.u(n, c)[1] / len(found)
  return loss, gradient


def kl(c, x):
  """The estimator of KL(policy || reference) at x = lp - lr, and its derivative."""
  if c.kl == "k1":
    return x, 1.0
  if c.kl == "k2":
    return x**2 / 2, x
  return math.exp(-x) + x - 1, 1 - math.exp(-x)


ROWWISE = {
  f.__name__: f
  for f in (
    regression,
    policy_gradient,
    optimal_baseline,
    ppo_clip,
    truncated_ratio,
    probability_gap,
    soft_gate,
    score_centering,
    distillation,
  )
}
PAIRWISE = {f.__name__: f for f in (centred_squares, pair_squares, pair_dpo, pair_ipo)}


def loss_and_gradient(c, x, current_version=None):
  """(loss, its gradient [N, M] in the policy's log-probs) of a whole batch."""
  b = Batch(c, x, current_version)
  if c.fn in PAIRWISE:
    assert c.kl_coef == 0
    return pairwise_loss(c, b)
  kept = {n for n in b.rows if b.tokens[n] and (b.varies(n) or not c.drop_zero_variance)}
  loss, gradient, weight = 0.0, np.zeros(b.shape), weight_of_rows(c, b, kept)
  a = [advantage(c, b, n) + c.kappa * c.beta + c.shift for n in b.rows]
  for n in kept:
    value, slope = ROWWISE[c.fn](c, b, n, a)
    loss += weight[n] * value
    gradient[n] += weight[n] * slope
    for t in b.tokens[n] if c.kl_coef > 0 else ():
      distance, slope = kl(c, b.lp[n, t] - b.lr[n, t])
      loss += weight[n] * c.kl_coef * distance
      gradient[n, t] += weight[n] * c.kl_coef * slope
  return loss, gradient
