"""The objectives of the literature as data: name, keys, formula, source, and what differs.

Those with clipped ratios are in presets_clipped.py.

`keys` are the keys of `objective.` that are not at their defaults: `fn` names the loss function,
`advantage`, `weight` and `correction` name further functions, the rest are keyword arguments of
these. Symbols of the formulas: choices.py. The last text says where the authors' code, or widely
used code, does something else.
"""

import dataclasses
import difflib
from typing import Any

from offpolicy_rl.losses.choices import Choices, preset
from offpolicy_rl.losses.presets_clipped import CLIPPED

_WEIGHTED = dict(fn="policy_gradient", aggregation="token_mean")

_WITHOUT_CLIP = (
  # Regression on the log-ratio, without ratio weights.
  preset(
    "beta_shift",
    dict(fn="regression", kappa=1.0),
    "mean (beta u - (r - rbar + kappa beta))^2 / (2 beta)",
    "Beta-shifted mean over Lambert-tempered targets (Sakhi et al.), arXiv 2605.28150",
    "the paper does not give its kappa and beta; kappa = 1, a shift of one beta, is convention: no "
    "study here found it better than 0; beta = 0.1 is what tuning chose for a small language model "
    "at lag 64, and 0.0003 to 0.003 in a smaller world",
  ),
  preset(
    "oapl",
    dict(fn="regression", advantage="vhat", beta=1e-3, scale="plain"),
    "mean (beta u - (r - Vhat))^2, Vhat = beta1 log mean exp(r / beta1); `beta` is the paper's "
    "beta2",
    "OAPL, arXiv 2602.19362",
    "no authors' code found; the gradient carries a factor 2 beta (scale 'plain')",
  ),
  preset(
    "astar_po",
    dict(
      fn="regression", advantage="value", beta1=0.5, anchor="reference", beta=1e-3, scale="plain"
    ),
    "mean (beta u_ref - (r - V*(x)))^2, V* = beta1 log mean exp(r / beta1) of reference samples, "
    "given as `values`",
    "Accelerating RL for LLM reasoning with optimal advantage regression, arXiv 2505.20686",
    "V* is an input here; with advantage='vhat' the current group stands in for it",
  ),
  preset(
    "kimi",
    dict(fn="regression", scale="plain"),
    "mean (beta u - (r - rbar))^2",
    "Kimi k1.5: scaling RL with LLMs, arXiv 2501.12599 (eq. 3)",
    "the temperature was not published; ROLL regularises sum_t d^2 instead of (sum_t d)^2",
  ),
  preset(
    "pmd_mean",
    dict(fn="regression", advantage="loo", beta=0.01, aggregation="seq_mean"),
    "mean (beta u - A)^2 / (2 beta |y|), A = G / (G - 1) (r - rbar)",
    "Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    "as OpenKimi's code: divided by |y|, which the Kimi paper does not do",
  ),
  preset(
    "pmd_partition",
    dict(fn="regression", advantage="vhat_loo", beta1=0.01, beta=0.01, aggregation="seq_mean"),
    "mean (beta u - A)^2 / (2 beta |y|), A = r - beta1 log mean_others exp(r / beta1)",
    "Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    "OpenKimi's code clamps the mean of exponentials at 1e-8, a baseline error of up to 18 "
    "beta1; this one does not",
  ),
  # Pairs within a group.
  preset(
    "copg",
    dict(fn="centred_squares"),
    "mean over pairs (beta du - dr)^2 / (4 beta): group variance of beta u - r, / (2 beta)",
    "Contrastive policy gradient (CoPG), arXiv 2406.19185",
    "written as a square: CoPG's own form differs from it by a factor and a constant",
  ),
  preset(
    "vargrad",
    dict(fn="centred_squares", scale="plain"),
    "group variance of beta u - r",
    "VarGrad: a low-variance gradient estimator, arXiv 2010.10436",
  ),
  preset(
    "gvpo",
    dict(fn="centred_squares", scale="plain"),
    "group variance of beta u - r",
    "Group variance policy optimization (GVPO), arXiv 2504.19599",
    "up to a constant factor CoPG and VarGrad; the temperature is an example",
  ),
  preset(
    "rebel",
    dict(fn="pair_squares", beta=1.0, scale="plain"),
    "mean over pairs (beta du - dr)^2, beta = 1 / eta; pairs of rows 0-1, 2-3, ...",
    "REBEL: RL via regressing relative rewards, arXiv 2404.16767",
    "the authors write (du - eta dr)^2: the same for eta = 1, else eta^2 times ours",
  ),
  preset(
    "dpo",
    dict(fn="pair_dpo", anchor="reference"),
    "mean of -log sigmoid(beta (u_w - u_l)) of each group's best and worst row; u to lr",
    "Direct preference optimization (DPO), arXiv 2305.18290",
    "pairs come from rewards of a group, not from human preferences",
  ),
  preset(
    "ipo",
    dict(fn="pair_ipo", anchor="reference"),
    "mean of (u_w - u_l - 1 / (2 beta))^2 of each group's best and worst row; u to lr",
    "A general theoretical paradigm to understand learning from human preferences (IPO), arXiv "
    "2310.12036",
    "pairs come from rewards of a group, not from human preferences",
  ),
  # Policy gradient, with or without weights.
  preset(
    "reinforce",
    dict(fn="policy_gradient"),
    "-A lp, A = r - rbar, no ratio",
    "REINFORCE (Williams 1992); for LLMs arXiv 2402.14740",
  ),
  preset(
    "rloo",
    dict(fn="policy_gradient", advantage="loo"),
    "-A lp, A = G / (G - 1) (r - rbar)",
    "Back to basics (RLOO), arXiv 2402.14740",
    "TRL's RLOOTrainer clips the ratio of whole completions instead",
  ),
  preset(
    "max_rl",
    dict(fn="policy_gradient", advantage="relative"),
    "-A lp, A = (r - rbar) / rbar, 0 where rbar <= 0; for rewards of 0 and 1",
    "Maximum likelihood RL (MaxRL), arXiv 2602.02710",
    "as the max_rl of prime-rl; other rewards than 0 and 1 have no likelihood",
  ),
  preset(
    "reinforce_pp",
    dict(_WEIGHTED, advantage="whitened"),
    "-A lp, A = r - rbar whitened over the batch's tokens",
    "REINFORCE++ (its baseline variant), arXiv 2501.03262",
    "no KL inside the reward",
  ),
  preset(
    "asymre",
    dict(fn="policy_gradient", shift=0.1),
    "-(r - rbar + shift) lp, no ratio; the paper's dV = -shift",
    "Asymmetric REINFORCE, arXiv 2506.20520",
  ),
  preset(
    "topr",
    dict(fn="policy_gradient", weight="topr", level="sequence"),
    "-q (r - rbar) lp; q = 1 for A > 0, sg min(pi(y) / mu(y), 1) for A <= 0",
    "Tapered off-policy REINFORCE, arXiv 2503.14286",
    "ROLL's code takes token ratios and tells positives by their score",
  ),
  preset(
    "cispo",
    dict(_WEIGHTED, advantage="std", weight="truncate", weight_high=1.28),
    "-sg C[0, 1.28](pi / mu) A lp",
    "MiniMax-M1 (CISPO), arXiv 2506.13585",
    "verl, ROLL and NeMo also clip below; TRL's epsilon_high is the absolute bound",
  ),
  preset(
    "scalerl",
    dict(
      fn="policy_gradient",
      advantage="batch_std",
      std_eps=1e-8,
      drop_zero_variance=True,
      weight="truncate",
      weight_high=5.0,
      aggregation="prompt_mean",
    ),
    "-sg C[0, 5](pi / mu) A lp, A = (r - rbar) / std of the batch",
    "The art of scaling RL compute (ScaleRL), arXiv 2510.13786",
    "prompts that are solved too often stay in the data",
  ),
  preset(
    "tis_reinforce",
    dict(_WEIGHTED, weight="truncate", weight_high=2.0),
    "-sg min(pi / mu, 2) A lp",
    "Truncated importance sampling (Ionides 2008); for LLMs arXiv 2509.19128",
  ),
  preset(
    "score_centering",
    dict(fn="score_centering", aggregation="token_mean"),
    "-A (lp - sum_v sg[q_v - rho p_v] lp_v), v = the sampler's likeliest tokens, rho = (1 - sum q) "
    "/ (1 - sum p)",
    "Score centering stabilizes off-policy reinforcement learning, arXiv 2609.20807",
    "their number is sampler.top_logprobs, 128 in the paper; A = r - rbar and the mean over tokens "
    "are as in vime's example; prime-rl sums over all tokens that truncated sampling leaves",
  ),
  preset(
    "score_centering_tis",
    dict(fn="score_centering", weight="truncate", weight_high=2.0, aggregation="token_mean"),
    "-A (sg[w(p / q)] lp - sum_v sg[q_v w(p_v / q_v) - alpha p_v] lp_v), w(r) = min(r, 2), "
    "alpha = rho w(1 / rho)",
    "Score centering stabilizes off-policy reinforcement learning, arXiv 2609.20807",
    "with truncated importance sampling, as the paper combines them; the bound of 2 is vime's",
  ),
  preset(
    "vcpo",
    dict(fn="optimal_baseline", ratio_max=8.0, aggregation="seq_mean"),
    "-sg[min(W, 8) (r - b)] lp, W = pi(y) / mu(y), b = sum W^2 |y| r / sum W^2 |y| over the group",
    "Stable asynchrony: variance-controlled off-policy RL (VCPO), arXiv 2602.17616",
    "the authors weigh b by the squared norm of each completion's gradient, for which |y| stands; "
    "their scripts also divide by the rewards' deviation. Their step size, times the root of "
    "ESS / N, is learner.ess_target = 1",
  ),
  preset(
    "vespo",
    dict(_WEIGHTED, advantage="std", weight="gamma"),
    "-sg[e^l W^k e^(-l W)] A lp, W = pi(y) / mu(y); (k, l) = (2, 3) for A >= 0, (3, 2) below",
    "Variational sequence-level soft policy optimization (VESPO), arXiv 2602.10693",
    "the authors' code and TRL clamp token log-ratios and log W at +-20, where the weight is 0 "
    "anyway",
  ),
  preset(
    "vaco",
    dict(_WEIGHTED, weight="variation_filter"),
    "-sg[M pi / mu] (r - rbar) lp; M = 0 where A (pi / mu - 1) > 0 in completions with "
    "mean |pi / mu - 1| / 2 > 0.1",
    "Align and filter: asynchronous on-policy RL (VACO), arXiv 2603.01365",
    "an approximation: the paper's equations were not read. The rule is that of a co-author's code "
    "(allenai/open-instruct, pull request 1681, which also caps pi / mu at 2 and has no default "
    "bound), delta = 0.2 is from the paper's reviews; whether it bounds mean |pi / mu - 1|, as "
    "here, or half of that, over a completion, as here, or the batch, is open. Its V-trace "
    "advantages have no counterpart where a completion is one action",
  ),
  preset(
    "gepo",
    dict(fn="policy_gradient", weight="group_ratio_clip", aggregation="seq_mean"),
    "-min(s A, C[0.8, 1.2](s) A), A = r - rbar, s = p(y) / E[q], p and q the geometric means of "
    "the tokens' probabilities under pi and mu, E[q] = sum q^2 / sum q over the group",
    "Group expectation policy optimization (GEPO), arXiv 2508.17850",
    "as the gradient of that, written with a weight; compared with the authors' code "
    "(HanlardResearch/HeteroRL_GEPO, fac6e3f), whose scripts leave the band at TRL's 0.2 and add "
    "0.005 of a KL to mu, which is not here; the paper's formula has no clip",
  ),
  preset(
    "m2po",
    dict(_WEIGHTED, advantage="std", weight="second_moment"),
    "-sg[M pi / mu] A lp; M = 0 at the tokens of largest (log pi / mu)^2 until the mean over the "
    "rest is below 0.04, among those with A > 0, pi > mu or A < 0, pi < mu",
    "Prosperity before collapse (M2PO), arXiv 2510.01161",
    "the authors' code clips at one bound instead, at which the mean of the clipped squares keeps "
    "0.04, and never inside [0.7, 1.5]; AReaL judges all tokens (moment_directional = False)",
  ),
  preset(
    "bapo",
    dict(_WEIGHTED, advantage="std", weight="balanced_clip", clip_low=0.4, clip_high=0.2),
    "PPO's clip whose bounds go from 0.6 to 0.9, then from 1.2 to 3, in steps, until tokens with "
    "A > 0 have half of the surrogate",
    "Balanced policy optimization with adaptive clipping (BAPO), arXiv 2510.18927",
    "as the gradient of that, written with a weight; the ranges are those of the authors' page, "
    "their example scripts have narrower ones, and their code clips twice (dual_clip)",
  ),
  preset(
    "prime_double_mask",
    dict(_WEIGHTED, weight="double_mask", weight_low=0.125, weight_high=8.0),
    "-sg[rho (A - kl_tau d)] lp where 1/8 <= rho <= 8, the row's geometric mean is in [0.1, 10] "
    "and its product at most 100",
    "prime-rl's default of October 2025 to February 2026; INTELLECT-3, arXiv 2512.16144",
  ),
  # Towards a teacher's policy.
  preset(
    "distill",
    dict(_WEIGHTED, fn="distillation", advantage="none", weight="truncate", weight_high=2.0),
    "-sg[min(pi / mu, 2) log(pi_T / pi)] lp: the reverse KL to the teacher, token by token",
    "On-policy distillation (Lu, Thinking Machines Lab 2025), "
    "https://thinkingmachines.ai/blog/on-policy-distillation; GKD, arXiv 2306.13649",
    "the authors' code takes log(pi_T / mu) and does not bound pi / mu: the same without lag, but "
    "with a sampler that never changes it does not end at the teacher. GKD sums over the "
    "vocabulary, MiniLLM (arXiv 2306.08543) also over what follows a token",
  ),
  preset(
    "distill_regression",
    dict(fn="regression", advantage="none", anchor="teacher", beta=1.0),
    "mean u_T^2 / 2, u_T = log pi / pi_T of the completion; no ratio",
    "Beta-shifted mean over Lambert-tempered targets, arXiv 2605.28150, around the teacher and "
    "without a reward",
    "of our own; with objective.advantage=mean and kappa the target is that of beta_shift, tilted "
    "from the teacher instead of the sampler",
  ),
  preset(
    "minirl",
    dict(
      fn="policy_gradient",
      anchor="proximal",
      weight="directional",
      clip_high=0.27,
      correction="token_truncate",
      correction_high=5.0,
    ),
    "-M sg(pi / mu) (r - rbar) lp; M = 0 where a step along A leaves [0.8, 1.27]",
    "Stabilizing RL with LLMs (MiniRL), arXiv 2512.01374",
    "the cap of 5 on pi_q / mu is from memory of the paper; with one update per batch M is "
    "always 1",
  ),
)

PRESETS = {c.name: c for c in (*_WITHOUT_CLIP, *CLIPPED)}


def choose(name: str | Choices, **overrides: Any) -> Choices:
  """A preset (or your own choices) with some keys replaced; None keeps the preset's value.

  Raises:
    ValueError: unknown preset or key, or an invalid value.
  """
  if isinstance(name, str) and name not in PRESETS:
    raise ValueError(f"objective.name: got {name!r}, expected one of {', '.join(sorted(PRESETS))}")
  start = PRESETS[name] if isinstance(name, str) else name
  given = {key: value for key, value in overrides.items() if value is not None}
  known = [field.name for field in dataclasses.fields(Choices)]
  for key in sorted(given.keys() - set(known)):
    meant = ", ".join(difflib.get_close_matches(key, known)) or "`offpolicy-rl keys objective`"
    raise ValueError(f"objective.{key}: unknown key, see {meant}")
  chosen = dataclasses.replace(start, **given)
  chosen.check()
  return chosen
