"""The objectives of the literature as data: name, keys, formula, source, and what differs.

`keys` are the keys of `objective.` that are not at their defaults: `fn` names the loss function,
`advantage`, `weight` and `correction` name further functions, the rest are keyword arguments of
these. Symbols of the formulas: choices.py. The last text says where the authors' code, or widely
used code, does something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from offpolicy_rl.losses.choices import Choices


def _preset(
  name: str, keys: Mapping[str, Any], formula: str, source: str, differs: str = ""
) -> Choices:
  return Choices(name, formula, source, differs, **keys)


_PPO = dict(fn="ppo_clip", advantage="std", aggregation="token_mean")
_WEIGHTED = dict(fn="policy_gradient", aggregation="token_mean")
_ONE_UPDATE = "pi_q is the policy before the step: with one update per batch nothing is clipped"

_PRESETS = (
  # Regression on the log-ratio, without ratio weights.
  _preset(
    "beta_shift",
    dict(fn="regression", kappa=1.0),
    "mean (beta u - (r - rbar + kappa beta))^2 / (2 beta)",
    "Beta-shifted mean over Lambert-tempered targets (Sakhi et al.), arXiv 2605.28150",
    "the paper does not give its kappa and beta; kappa = 1 shifts by one beta",
  ),
  _preset(
    "oapl",
    dict(fn="regression", advantage="vhat", beta=1e-3, scale="plain"),
    "mean (beta u - (r - Vhat))^2, Vhat = beta1 log mean exp(r / beta1); `beta` is the paper's "
    "beta2",
    "OAPL, arXiv 2602.19362",
    "no authors' code found; the gradient carries a factor 2 beta (scale 'plain')",
  ),
  _preset(
    "astar_po",
    dict(
      fn="regression", advantage="value", beta1=0.5, anchor="reference", beta=1e-3, scale="plain"
    ),
    "mean (beta u_ref - (r - V*(x)))^2, V* = beta1 log mean exp(r / beta1) of reference samples, "
    "given as `values`",
    "Accelerating RL for LLM reasoning with optimal advantage regression, arXiv 2505.20686",
    "V* is an input here; with advantage='vhat' the current group stands in for it",
  ),
  _preset(
    "kimi",
    dict(fn="regression", scale="plain"),
    "mean (beta u - (r - rbar))^2",
    "Kimi k1.5: scaling RL with LLMs, arXiv 2501.12599 (eq. 3)",
    "the temperature was not published; ROLL regularises sum_t d^2 instead of (sum_t d)^2",
  ),
  _preset(
    "pmd_mean",
    dict(fn="regression", advantage="loo", beta=0.01, aggregation="seq_mean"),
    "mean (beta u - A)^2 / (2 beta |y|), A = G / (G - 1) (r - rbar)",
    "Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    "as OpenKimi's code: divided by |y|, which the Kimi paper does not do",
  ),
  _preset(
    "pmd_partition",
    dict(fn="regression", advantage="vhat_loo", beta1=0.01, beta=0.01, aggregation="seq_mean"),
    "mean (beta u - A)^2 / (2 beta |y|), A = r - beta1 log mean_others exp(r / beta1)",
    "Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    "OpenKimi's code clamps the mean of exponentials at 1e-8, a baseline error of up to 18 "
    "beta1; this one does not",
  ),
  # Pairs within a group.
  _preset(
    "copg",
    dict(fn="centred_squares"),
    "mean over pairs (beta du - dr)^2 / (4 beta): group variance of beta u - r, / (2 beta)",
    "Contrastive policy gradient (CoPG), arXiv 2406.19185",
    "written as a square: CoPG's own form differs from it by a factor and a constant",
  ),
  _preset(
    "vargrad",
    dict(fn="centred_squares", scale="plain"),
    "group variance of beta u - r",
    "VarGrad: a low-variance gradient estimator, arXiv 2010.10436",
  ),
  _preset(
    "rebel",
    dict(fn="pair_squares", beta=1.0, scale="plain"),
    "mean over pairs (beta du - dr)^2, beta = 1 / eta; pairs of rows 0-1, 2-3, ...",
    "REBEL: RL via regressing relative rewards, arXiv 2404.16767",
    "the authors write (du - eta dr)^2: the same for eta = 1, else eta^2 times ours",
  ),
  _preset(
    "dpo",
    dict(fn="pair_dpo", anchor="reference"),
    "mean of -log sigmoid(beta (u_w - u_l)) of each group's best and worst row; u to lr",
    "Direct preference optimization (DPO), arXiv 2305.18290",
    "pairs come from rewards of a group, not from human preferences",
  ),
  _preset(
    "ipo",
    dict(fn="pair_ipo", anchor="reference"),
    "mean of (u_w - u_l - 1 / (2 beta))^2 of each group's best and worst row; u to lr",
    "A general theoretical paradigm to understand learning from human preferences (IPO), arXiv "
    "2310.12036",
    "pairs come from rewards of a group, not from human preferences",
  ),
  # Policy gradient, with or without weights.
  _preset(
    "reinforce",
    dict(fn="policy_gradient"),
    "-A lp, A = r - rbar, no ratio",
    "REINFORCE (Williams 1992); for LLMs arXiv 2402.14740",
  ),
  _preset(
    "rloo",
    dict(fn="policy_gradient", advantage="loo"),
    "-A lp, A = G / (G - 1) (r - rbar)",
    "Back to basics (RLOO), arXiv 2402.14740",
    "TRL's RLOOTrainer clips the ratio of whole completions instead",
  ),
  _preset(
    "reinforce_pp",
    dict(_WEIGHTED, advantage="whitened"),
    "-A lp, A = r - rbar whitened over the batch's tokens",
    "REINFORCE++ (its baseline variant), arXiv 2501.03262",
    "no KL inside the reward",
  ),
  _preset(
    "asymre",
    dict(fn="policy_gradient", shift=0.1),
    "-(r - rbar + shift) lp, no ratio; the paper's dV = -shift",
    "Asymmetric REINFORCE, arXiv 2506.20520",
  ),
  _preset(
    "topr",
    dict(fn="policy_gradient", weight="topr", level="sequence"),
    "-q (r - rbar) lp; q = 1 for A > 0, sg min(pi(y) / mu(y), 1) for A <= 0",
    "Tapered off-policy REINFORCE, arXiv 2503.14286",
    "ROLL's code takes token ratios and tells positives by their score",
  ),
  _preset(
    "cispo",
    dict(_WEIGHTED, advantage="std", weight="truncate", weight_high=1.28),
    "-sg C[0, 1.28](pi / mu) A lp",
    "MiniMax-M1 (CISPO), arXiv 2506.13585",
    "verl, ROLL and NeMo also clip below; TRL's epsilon_high is the absolute bound",
  ),
  _preset(
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
  _preset(
    "tis_reinforce",
    dict(_WEIGHTED, weight="truncate", weight_high=2.0),
    "-sg min(pi / mu, 2) A lp",
    "Truncated importance sampling (Ionides 2008); for LLMs arXiv 2509.19128",
  ),
  _preset(
    "prime_double_mask",
    dict(_WEIGHTED, weight="double_mask", weight_low=0.125, weight_high=8.0),
    "-sg[rho (A - kl_tau d)] lp where 1/8 <= rho <= 8, the row's geometric mean is in [0.1, 10] "
    "and its product at most 100",
    "prime-rl's default of October 2025 to February 2026; INTELLECT-3, arXiv 2512.16144",
  ),
  _preset(
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
  # Clipped ratios and their corrections.
  _preset(
    "grpo",
    dict(fn="ppo_clip", advantage="std", aggregation="seq_mean"),
    "-min(r A, C[0.8, 1.2](r) A), A = (r - rbar) / std, mean over each row's tokens",
    "DeepSeekMath (GRPO), arXiv 2402.03300",
    "no KL term (kl_coef = 0.04 in the paper); the old policy is the one that sampled",
  ),
  _preset(
    "dr_grpo",
    dict(fn="ppo_clip", aggregation="constant"),
    "-min(r A, C[0.8, 1.2](r) A), A = r - rbar, sum over tokens / max_tokens (no default)",
    "Understanding R1-Zero-like training (Dr. GRPO), arXiv 2503.20783",
    "verl's version does not divide by the number of rows",
  ),
  _preset(
    "dapo",
    dict(_PPO, drop_zero_variance=True, clip_high=0.28),
    "-min(r A, C[0.8, 1.28](r) A), A = (r - rbar) / std, mean over the batch's tokens, groups "
    "without reward variance left out",
    "DAPO: an open-source LLM RL system at scale, arXiv 2503.14476",
    "left-out groups are not replaced; overlong_cache = 0 (4096 of 20480 in the paper)",
  ),
  _preset(
    "dual_clip",
    dict(_PPO, dual_clip=3.0),
    "as PPO's clip; for A < 0 the loss is at most -3 A",
    "Mastering complex control (dual clip), arXiv 1912.09729",
    "verl has it on by default",
  ),
  _preset(
    "two_sided",
    dict(_PPO, ratio_max=4.0),
    "-min(min(r, 4) A, C[0.8, 1.2](r) A)",
    "INTELLECT-2, arXiv 2505.07291",
    "the bound of 4 is from memory of the paper",
  ),
  _preset(
    "gspo",
    dict(
      fn="ppo_clip",
      advantage="std",
      level="sequence",
      clip_low=3e-4,
      clip_high=4e-4,
      aggregation="seq_mean",
    ),
    "-min(s A, C[1 - 3e-4, 1 + 4e-4](s) A), s = exp(mean_t (lp - lb)) of the row",
    "Group sequence policy optimization (GSPO), arXiv 2507.18071",
    "the ratio is to the policy that sampled",
  ),
  _preset(
    "decoupled_ppo",
    dict(
      _PPO, anchor="proximal", proximal="loglinear", correction="token_mask", correction_high=5.0
    ),
    "(pi_q / mu) * PPO's clip with r = pi / pi_q; tokens with pi_q / mu > 5 left out",
    "AReaL: a large-scale asynchronous RL system, arXiv 2505.24298",
    "the paper has no bound on pi_q / mu; pi_q by AReaL's log-linear approximation, since with "
    "one update per batch a recomputed pi_q is the policy itself",
  ),
  _preset(
    "tis",
    dict(_PPO, anchor="proximal", correction="token_truncate", correction_high=2.0),
    "min(pi_q / mu, 2) * PPO's clip with r = pi / pi_q",
    "Your efficient RL framework secretly brings you off-policy RL training (Yao et al. 2025), "
    "https://fengyao.notion.site/off-policy-rl",
    _ONE_UPDATE,
  ),
  _preset(
    "icepop",
    dict(_PPO, anchor="proximal", correction="token_mask", correction_low=0.5, correction_high=5.0),
    "(pi_q / mu inside [0.5, 5], else 0) * PPO's clip with r = pi / pi_q",
    "Ring-1T (IcePop), arXiv 2510.18855",
    _ONE_UPDATE,
  ),
  _preset(
    "mis",
    dict(_PPO, anchor="proximal", correction="seq_mask", correction_high=3.0),
    "(product of pi_q / mu over the row where <= 3, else 0) * PPO's clip",
    "When speed kills stability (Liu, Li et al. 2025, blog); TRL's default",
    f"{_ONE_UPDATE}; the product, not the geometric mean: long stale rows drop out almost always",
  ),
  _preset(
    "geo_mask",
    dict(
      _PPO, anchor="proximal", correction="geo_mask", correction_low=0.999, correction_high=1.002
    ),
    "pi_q / mu of rows whose geometric mean is in [0.999, 1.002], else 0, * PPO's clip",
    "seq-mask-tis of NeMo-RL and OpenRLHF (2026)",
    f"{_ONE_UPDATE}; token ratios of kept rows are not bounded, as there",
  ),
  _preset(
    "opsm",
    dict(_PPO, opsm_delta=0.5),
    "PPO's clip without rows of A < 0 and mean(lb - lp) > 0.5",
    "DeepSeek-V3.2 (off-policy sequence masking), arXiv 2512.02556",
    "the bound is an example, not the report's",
  ),
  _preset(
    "aipo",
    dict(fn="truncated_ratio", ratio_max=8.0, aggregation="token_mean"),
    "-min(pi / mu, 8) (r - rbar), no gradient where truncated",
    "LlamaRL (AIPO), arXiv 2505.24034; prime-rl of August 2025",
  ),
  _preset(
    "prime_dppo",
    dict(fn="probability_gap", kl_tau=1e-3, aggregation="token_mean"),
    "-keep A pi / mu + kl_tau d^2; keep = 0 where pi - mu has moved more than 0.2 along A",
    "prime-rl's default of August 2026",
    "bounds are on probabilities, not on ratios, as there",
  ),
  _preset(
    "prime_ipo",
    dict(
      fn="probability_gap", gap_high=0.1, gap_two_sided=True, kl_tau=1e-3, aggregation="token_mean"
    ),
    "-keep A pi / mu + kl_tau d^2; keep = 0 where |pi - mu| > 0.1",
    "prime-rl (2026)",
  ),
  _preset(
    "sapo",
    dict(fn="soft_gate", advantage="std", aggregation="seq_mean"),
    "-(4 / tau) sigmoid(tau (r - 1)) A, tau = 1 for A > 0, 1.05 else",
    "Soft adaptive policy optimization (SAPO), arXiv 2511.20347",
  ),
)

PRESETS = {c.name: c for c in _PRESETS}


def choose(name: str | Choices, **overrides: Any) -> Choices:
  """A preset (or your own choices) with some keys replaced; None keeps the preset's value.

  Raises:
    ValueError: unknown preset or key, or an invalid value.
  """
  if isinstance(name, str) and name not in PRESETS:
    raise ValueError(f"objective.name: got {name!r}, expected one of {', '.join(sorted(PRESETS))}")
  preset = PRESETS[name] if isinstance(name, str) else name
  given = {key: value for key, value in overrides.items() if value is not None}
  unknown = set(given) - {field.name for field in dataclasses.fields(Choices)}
  if unknown:
    raise ValueError(f"objective: unknown key {sorted(unknown)[0]!r}")
  chosen = dataclasses.replace(preset, **given)
  chosen.check()
  return chosen
