"""Losses: arrays and keyword arguments in, the loss of each completion out, float [N].

N completions of M tokens; in the code, a row is a completion. A row's loss is the sum over its
tokens; the objective chooses how to average rows (masked.row_weights). Keyword arguments are keys
of `objective.`; `objective.fn` chooses from LOSSES at the end of this file.

  policy_logprobs lp, anchor_logprobs la   float [N, M], nats, of the sampled tokens
  log_ratios u = sum_t m (lp - la)         float [N], nats (row_log_ratio)
  advantages A, rewards r                  float [N], in units of reward
  weights w                                float [N, M] or [N, 1], without gradient
  loss_mask m                              bool [N, M], True = counts; other entries are ignored
  group_ids                                int [N], equal in the G rows of a group
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from offpolicy_rl.losses import masked, pairs, pessimism, ratios

_LEAST_REST = 1e-6  # of the probability outside the candidates, in score_centering


def regression(
  log_ratios: Array,
  unshifted_advantages: Array,
  *,
  beta: Array | float = 0.1,  # temperature, in units of reward per nat of u
  kappa: Array | float = 0.0,  # pessimistic shift in units of beta
  shift: Array | float = 0.0,  # pessimistic shift in units of reward
  scale: str = "half_over_beta",  # "plain": the squared residual itself
) -> Array:
  """Regression of the log-ratio on the advantage, without ratio weights.

    (beta u - A - kappa beta - shift)^2 / (2 beta)

  computed as the regression on A plus the pessimistic regularizer; shifts > 0 are pessimistic. With
  equal weights of the rows and u a sum over the loss mask's True tokens, its induced target is the
  Lambert-tempered one; dividing by the length changes it. u and A are [N], and so is the loss.

  Beta-shifted mean over Lambert-tempered targets, arXiv 2605.28150; OAPL, arXiv 2602.19362;
  Kimi k1.5: scaling RL with LLMs, arXiv 2501.12599.
  """
  loss = (beta * log_ratios - unshifted_advantages) ** 2 / (2 * beta)
  loss += pessimism.pessimistic_regularizer(
    log_ratios, unshifted_advantages, beta=beta, kappa=kappa, dv=shift
  )
  return loss * (2 * beta) if scale == "plain" else loss


def centred_squares(
  log_ratios: Array,
  rewards: Array,
  group_ids: Array,
  *,
  beta: Array | float = 0.1,  # temperature, in units of reward per nat of u
  scale: str = "half_over_beta",  # "plain": without the factor 1 / (2 beta)
) -> Array:
  """A row's share of its group's variance of e = beta u - r; no baseline matters.

    (e - mean of the group's e)^2 / (G - 1) / (2 beta)

  A group's sum is the mean over its pairs of half the squared difference of e. All arrays are [N];
  a group must be complete.

  Contrastive policy gradient (CoPG), arXiv 2406.19185; VarGrad, arXiv 2010.10436.
  """
  groups, residual = masked.renumbered(group_ids), beta * log_ratios - rewards
  centred = residual - masked.group_mean(residual, groups)
  loss = centred**2 / jnp.maximum(masked.group_size(groups) - 1, 1) / (2 * beta)
  return loss * (2 * beta) if scale == "plain" else loss


def pair_squares(
  log_ratios: Array,
  rewards: Array,
  group_ids: Array,
  *,
  beta: Array | float = 0.1,  # temperature, in units of reward per nat of u; 1 / eta of the paper
  scale: str = "half_over_beta",  # "plain": without the factor 1 / (2 beta)
) -> Array:
  """Regression of relative rewards, for the group's rows 0 and 1, 2 and 3, ...

    (beta (u_0 - u_1) - (r_0 - r_1))^2 / (2 beta) at the first row of each pair

  All arrays are [N]; a group must be complete.

  REBEL: RL via regressing relative rewards, arXiv 2404.16767.
  """
  partner, leads = pairs.adjacent(group_ids)
  residual = beta * log_ratios - rewards
  loss = jnp.where(leads, (residual - residual[partner]) ** 2, 0.0)
  return loss if scale == "plain" else loss / (2 * beta)


def pair_dpo(
  log_ratios: Array, rewards: Array, group_ids: Array, *, beta: Array | float = 0.1
) -> Array:
  """Logistic loss of the group's best row w against its worst row l.

    -log sigmoid(beta (u_w - u_l)) at row w

  All arrays are [N]; a group must be complete.

  Direct preference optimization (DPO), arXiv 2305.18290.
  """
  loser, wins = pairs.extremes(rewards, group_ids)
  return jnp.where(wins, -jax.nn.log_sigmoid(beta * (log_ratios - log_ratios[loser])), 0.0)


def pair_ipo(
  log_ratios: Array, rewards: Array, group_ids: Array, *, beta: Array | float = 0.1
) -> Array:
  """Squared loss of the group's best row w against its worst row l.

    (u_w - u_l - 1 / (2 beta))^2 at row w

  All arrays are [N]; a group must be complete.

  A general theoretical paradigm to understand learning from human preferences (IPO),
  arXiv 2310.12036.
  """
  loser, wins = pairs.extremes(rewards, group_ids)
  return jnp.where(wins, (log_ratios - log_ratios[loser] - 0.5 / beta) ** 2, 0.0)


def policy_gradient(
  policy_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  weights: Array | float = 1.0,
  anchor_logprobs: Array | None = None,  # needed where kl_tau > 0
  kl_tau: float = 0.0,  # weight of the squared log-ratio to the anchor, per token
) -> Array:
  """Policy gradient, with or without importance weights.

    -sum_t m sg[w (A - kl_tau (lp - la))] lp

  lp, la [N, M], A [N], m True = counts; the loss is [N].

  Simple statistical gradient-following algorithms (REINFORCE), Williams 1992; Back to basics
  (RLOO), arXiv 2402.14740. The source of each kind of weight is in weights.py.
  """
  advantages = advantages[:, None]
  if kl_tau:
    assert anchor_logprobs is not None, "kl_tau needs them"
    log_ratio = ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask)
    advantages = advantages - kl_tau * jax.lax.stop_gradient(log_ratio)
  return -masked.masked_sum(weights * advantages * policy_logprobs, loss_mask, -1)


def optimal_baseline(
  policy_logprobs: Array,
  log_ratios: Array,
  rewards: Array,
  loss_mask: Array,
  group_ids: Array,
  *,
  ratio_max: float = math.inf,  # bound of W in the gradient, not in the baseline
) -> Array:
  """REINFORCE with the ratio W = e^u of the row and the baseline of least variance for it.

    -sum_t m sg[min(W, ratio_max) (r - b)] lp,   b = sum W^2 |y| r / sum W^2 |y| over the group

  The variance is least with the squared norm of the row's gradient of log pi in place of |y|, which
  stands for it here. lp [N, M]; u and r [N]; m True = counts; a group must be complete; the loss is
  [N].

  Variance controlled policy optimization (VCPO), arXiv 2602.17616; |y| for the norm: On-policy RL
  with optimal reward baseline (OPO), arXiv 2505.23585.
  """
  groups, lengths = masked.renumbered(group_ids), masked.lengths(loss_mask)
  log_ratios = jax.lax.stop_gradient(log_ratios)
  top = masked.group_max(jnp.where(lengths > 0, log_ratios, -math.inf), groups)
  share = jnp.where(lengths > 0, lengths * jnp.exp(2 * (log_ratios - top)), 0.0)
  total = masked.group_sum(share, groups)
  baseline = masked.group_sum(share * rewards, groups) / jnp.where(total > 0, total, 1.0)
  weights = jnp.minimum(ratios.exp(log_ratios), ratio_max) * (rewards - baseline)
  return -masked.masked_sum(weights[:, None] * policy_logprobs, loss_mask, -1)


def ppo_clip(
  policy_logprobs: Array,
  anchor_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  weights: Array | float = 1.0,
  level: str = "token",  # "sequence": r = exp(mean_t (lp - la)) in every token of the row
  clip_low: float = 0.2,  # distances of the band's edges from 1
  clip_high: float = 0.2,
  dual_clip: float = math.inf,  # A < 0: a token's loss is at most -dual_clip A
  ratio_max: float = math.inf,  # bound of the ratio for either sign of A
) -> Array:
  """PPO's clipped surrogate; with its keyword arguments also GSPO, dual and two-sided clip.

    -sum_t m w min(min(r, ratio_max) A, C[1 - clip_low, 1 + clip_high](r) A),   r = exp(lp - la)

  On the edge of the band nothing is clipped. lp, la [N, M], A [N], m True = counts; the loss
  is [N].

  Proximal policy optimization algorithms (PPO), arXiv 1707.06347; Group sequence policy
  optimization (GSPO), arXiv 2507.18071; Mastering complex control (dual clip), arXiv 1912.09729;
  INTELLECT-2 (two-sided clip), arXiv 2505.07291.
  """
  advantages = advantages[:, None]
  log_ratio = ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask)
  if level == "sequence":
    log_ratio = jnp.broadcast_to(ratios.row_mean(log_ratio, loss_mask), log_ratio.shape)
  ratio = ratios.exp(log_ratio)
  clipped = ratios.clip(ratio, 1 - clip_low, 1 + clip_high)
  if ratio_max < math.inf:
    ratio = jnp.minimum(ratio, ratio_max)
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  if dual_clip < math.inf:
    loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
  return masked.masked_sum(loss * weights, loss_mask, -1)


def truncated_ratio(
  policy_logprobs: Array,
  anchor_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  ratio_min: float = 0.0,
  ratio_max: float = math.inf,
  kl_tau: float = 0.0,  # weight of the squared log-ratio, per token
) -> Array:
  """Importance-weighted advantage, without gradient where the ratio is truncated.

    sum_t m (-C[ratio_min, ratio_max](e^d) A + kl_tau d^2),   d = lp - la

  lp, la [N, M], A [N], m True = counts; the loss is [N].

  LlamaRL (AIPO), arXiv 2505.24034; Kimi K2.5, arXiv 2602.02276.
  """
  log_ratio = ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask)
  ratio = ratios.clip(ratios.exp(log_ratio), ratio_min, ratio_max)
  loss = kl_tau * log_ratio**2 - ratio * advantages[:, None]
  return masked.masked_sum(loss, loss_mask, -1)


def probability_gap(
  policy_logprobs: Array,
  anchor_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  gap_measure: str = "tv",  # gap = pi - mu; "kl": ratios.binary_kl with the sign of pi - mu
  gap_low: float = 0.2,  # A <= 0: keep = 0 where gap < -gap_low
  gap_high: float = 0.2,  # A > 0: keep = 0 where gap > gap_high
  gap_two_sided: bool = False,  # keep = 0 where |gap| > gap_high, whatever A is
  kl_tau: float = 0.0,  # weight of the squared log-ratio, per token
) -> Array:
  """Importance-weighted advantage of tokens whose probability has not yet moved far along A.

    sum_t m (-keep e^d A + kl_tau d^2),   d = lp - la

  lp, la [N, M], A [N], m True = counts; the loss is [N].

  Rethinking the trust region in LLM RL (DPPO), arXiv 2602.04879; prime-rl,
  https://github.com/PrimeIntellect-ai/prime-rl (2026).
  """
  advantages = advantages[:, None]
  log_ratio = ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask)
  policy = jnp.where(loss_mask, policy_logprobs, 0.0)
  policy, anchor = jax.lax.stop_gradient((policy, policy - log_ratio))
  moved = jnp.exp(policy) - jnp.exp(anchor)
  if gap_measure == "kl":
    moved = jnp.sign(log_ratio) * ratios.binary_kl(policy, anchor)
  far = jnp.where(advantages > 0, moved > gap_high, moved < -gap_low)
  if gap_two_sided:
    far = jnp.abs(moved) > gap_high
  loss = jnp.where(far, 0.0, -advantages * ratios.exp(log_ratio)) + kl_tau * log_ratio**2
  return masked.masked_sum(loss, loss_mask, -1)


def soft_gate(
  policy_logprobs: Array,
  anchor_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  tau_high: float = 1.0,  # tau for A > 0
  tau_low: float = 1.05,  # tau for A <= 0
) -> Array:
  """A sigmoid of the ratio in place of PPO's clip.

    -sum_t m (4 / tau) sigmoid(tau (rho - 1)) A,   rho = exp(lp - la)

  lp, la [N, M], A [N], m True = counts; the loss is [N].

  Soft adaptive policy optimization (SAPO), arXiv 2511.20347.
  """
  advantages = advantages[:, None]
  tau = jnp.where(advantages > 0, tau_high, tau_low)
  ratio = ratios.exp(ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask))
  gate = jax.nn.sigmoid(tau * (ratio - 1)) * 4 / tau
  return -masked.masked_sum(gate * advantages, loss_mask, -1)


def score_centering(
  policy_logprobs: Array,
  sampler_logprobs: Array,
  candidate_logprobs: Array,
  sampler_candidate_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  weight: str = "none",  # w = 1; "truncate": w(r) = min(r, weight_high)
  weight_high: float = math.inf,
) -> Array:
  """Policy gradient of weighted scores whose mean under the sampler is taken off.

    -A sum_t m (sg[w(p / q)] lp - sum_v sg[q_v w(p_v / q_v) - alpha p_v] lp_v)

  p, q = probabilities of the sampled token under policy and sampler; p_v, q_v, lp_v = those of its
  candidates v, the sampler's likeliest tokens, whether the sampled one is among them or not. The
  others are taken to share the rest of q as they share the rest of p: alpha = rho w(1 / rho),
  rho = (1 - sum_v q_v) / (1 - sum_v p_v), no rest below 1e-6. On-policy all coefficients are 0.

  In expectation over the sampled token, a constant in A makes no difference. lp, lb [N, M],
  lp_v, lb_v [N, M, I], A [N], m True = counts; the loss is [N].

  Score centering stabilizes off-policy reinforcement learning, arXiv 2609.20807.
  """

  def bounded(ratio, base):  # base * w(ratio / base)
    return jnp.minimum(ratio, weight_high * base) if weight_high < math.inf else ratio

  mask = loss_mask[..., None]
  log_p = jnp.where(mask, candidate_logprobs, ratios.MIN_LOGPROB)
  p = jnp.exp(jax.lax.stop_gradient(log_p))
  q = jnp.exp(jnp.where(mask, sampler_candidate_logprobs, ratios.MIN_LOGPROB))
  rest = lambda x: jnp.maximum(1 - jnp.sum(x, axis=-1, keepdims=True), _LEAST_REST)
  rho = rest(q) / rest(p)
  if weight == "truncate":
    ratio = ratios.exp(ratios.log_ratio(policy_logprobs, sampler_logprobs, loss_mask))
    sampled = bounded(jax.lax.stop_gradient(ratio), 1.0)
    head, alpha = bounded(p, q), bounded(jnp.ones_like(rho), rho)
  else:
    sampled, head, alpha = 1.0, q, rho
  mean = jnp.sum((head - alpha * p) * log_p, axis=-1)
  centred = masked.masked_sum(sampled * policy_logprobs - mean, loss_mask, -1)
  return -advantages * centred


def distillation(
  policy_logprobs: Array,
  teacher_logprobs: Array,
  advantages: Array,
  loss_mask: Array,
  *,
  weights: Array | float = 1.0,
  teacher_weight: float = 1.0,  # in units of reward per nat
) -> Array:
  """Policy gradient in which a teacher's log-ratio to the policy is the advantage of each token.

    -sum_t m sg[w (A + teacher_weight (lt - lp))] lp

  With A = 0 and the ratio pi / mu as w: in expectation over the sampled token the gradient of the
  next token's KL(pi || pi_T), where the sampler has come to. With w = 1: that of (lp - lt)^2 / 2, a
  regression without ratios, least at the teacher whoever sampled. lp, lt [N, M], A [N], m True =
  counts; the loss is [N].

  On-policy distillation, https://thinkingmachines.ai/blog/on-policy-distillation (2025); GKD, arXiv
  2306.13649; MiniLLM, arXiv 2306.08543.
  """
  gap = ratios.log_ratio(teacher_logprobs, policy_logprobs, loss_mask)
  gain = advantages[:, None] + teacher_weight * jax.lax.stop_gradient(gap)
  return -masked.masked_sum(weights * gain * policy_logprobs, loss_mask, -1)


def reference_kl(
  policy_logprobs: Array, reference_logprobs: Array, loss_mask: Array, *, kl: str = "k3"
) -> Array:
  """Estimate of KL(policy || reference) of each row, the sum over its tokens, in nats.

    k1: x,   k2: x^2 / 2,   k3: e^-x + x - 1,   x = lp - lr

  As a loss only k2 has the reverse KL's gradient on-policy. lp, lr [N, M], mask True = counts.

  http://joschu.net/blog/kl-approx.html
  """
  x = ratios.log_ratio(policy_logprobs, reference_logprobs, loss_mask)
  if kl == "k3":
    return masked.masked_sum(ratios.exp(-x) + x - 1, loss_mask, -1)
  return masked.masked_sum(x if kl == "k1" else 0.5 * x**2, loss_mask, -1)


def row_log_ratio(
  policy_logprobs: Array, anchor_logprobs: Array, loss_mask: Array, *, log_ratio: str = "sum"
) -> Array:
  """u [N] = sum_t m (lp - la), or the mean over the row's tokens; lp, la [N, M], True = counts."""
  gap = ratios.log_ratio(policy_logprobs, anchor_logprobs, loss_mask)
  return jnp.sum(gap, axis=-1) if log_ratio == "sum" else ratios.row_mean(gap, loss_mask)[:, 0]


LOSSES = {
  "regression": regression,
  "centred_squares": centred_squares,
  "pair_squares": pair_squares,
  "pair_dpo": pair_dpo,
  "pair_ipo": pair_ipo,
  "policy_gradient": policy_gradient,
  "optimal_baseline": optimal_baseline,
  "ppo_clip": ppo_clip,
  "truncated_ratio": truncated_ratio,
  "probability_gap": probability_gap,
  "soft_gate": soft_gate,
  "score_centering": score_centering,
  "distillation": distillation,
}
