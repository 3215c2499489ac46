"""The objectives of the literature: each names its functions with their keyword arguments.

A function stands alone, or beside the keyword arguments in which it differs from its defaults:
("ppo_clip", {"clip_high": 0.28}). Symbols of the formulas: choices.py. `differs` says where the
authors' code, or widely used code, does something else.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from offpolicy_rl.losses.choices import Choices

Call = str | tuple[str, Mapping[str, Any]]  # a function, or a function and its keyword arguments


def _preset(
  name: str,
  fn: Call,
  *,
  advantage: Call = "mean",
  weight: Call = "none",
  correction: Call = "none",
  **others: Any,
) -> Choices:
  calls = {"fn": fn, "advantage": advantage, "weight": weight, "correction": correction}
  for key, call in calls.items():
    function, arguments = (call, {}) if isinstance(call, str) else call
    others |= {key: function, **arguments}
  return Choices(name=name, **others)


_ONE_UPDATE = "pi_q is the policy before the step: with one update per batch nothing is clipped"

_REGRESSION = (
  _preset(
    "beta_shift",
    ("regression", {"kappa": 1.0}),
    formula="mean (beta u - (r - rbar + kappa beta))^2 / (2 beta)",
    source="Beta-shifted mean over Lambert-tempered targets (Sakhi et al.), arXiv 2605.28150",
    differs="the paper's kappa and beta are not known to us; kappa = 1 shifts by one beta",
  ),
  _preset(
    "oapl",
    ("regression", {"beta": 1e-3, "scale": "plain"}),
    advantage=("vhat", {"beta1": 1.0}),
    formula="mean (beta u - (r - Vhat))^2, Vhat = beta1 log mean exp(r / beta1); "
    "`beta` is the paper's beta2",
    source="OAPL, arXiv 2602.19362",
    differs="no authors' code found; the gradient carries a factor 2 beta (scale 'plain')",
  ),
  _preset(
    "astar_po",
    ("regression", {"beta": 1e-3, "scale": "plain"}),
    advantage="value",
    anchor="reference",
    beta1=0.5,
    formula="mean (beta u_ref - (r - V*(x)))^2, V* = beta1 log mean exp(r / beta1) of reference "
    "samples, given as `values`",
    source="Accelerating RL for LLM reasoning with optimal advantage regression, arXiv 2505.20686",
    differs="V* is an input here; with advantage='vhat' the current group stands in for it",
  ),
  _preset(
    "kimi",
    ("regression", {"scale": "plain"}),
    formula="mean (beta u - (r - rbar))^2",
    source="Kimi k1.5: scaling RL with LLMs, arXiv 2501.12599 (eq. 3)",
    differs="the temperature was not published; ROLL regularises sum_t d^2 instead of (sum_t d)^2",
  ),
  _preset(
    "pmd_mean",
    ("regression", {"beta": 0.01}),
    advantage="loo",
    aggregation="seq_mean",
    formula="mean (beta u - A)^2 / (2 beta |y|), A = G / (G - 1) (r - rbar)",
    source="Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    differs="as OpenKimi's code: divided by |y|, which the Kimi paper does not do",
  ),
  _preset(
    "pmd_partition",
    ("regression", {"beta": 0.01}),
    advantage=("vhat_loo", {"beta1": 0.01}),
    aggregation="seq_mean",
    formula="mean (beta u - A)^2 / (2 beta |y|), A = r - beta1 log mean_others exp(r / beta1)",
    source="Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    differs="OpenKimi's code clamps the mean of exponentials at 1e-8, a baseline error of up to "
    "18 beta1; this one does not",
  ),
)

_CONTRASTIVE = (
  _preset(
    "copg",
    "centred_squares",
    formula="mean over pairs (beta du - dr)^2 / (4 beta): group variance of beta u - r, / (2 beta)",
    source="Contrastive policy gradient (CoPG), arXiv 2406.19185",
    differs="written as a square: CoPG's own form differs from it by a factor and a constant",
  ),
  _preset(
    "vargrad",
    ("centred_squares", {"scale": "plain"}),
    formula="group variance of beta u - r",
    source="VarGrad: a low-variance gradient estimator, arXiv 2010.10436",
  ),
  _preset(
    "rebel",
    ("pair_squares", {"beta": 1.0, "scale": "plain"}),
    formula="mean over pairs (beta du - dr)^2, beta = 1 / eta; pairs of rows 0-1, 2-3, ...",
    source="REBEL: RL via regressing relative rewards, arXiv 2404.16767",
    differs="the authors write (du - eta dr)^2: the same for eta = 1, else eta^2 times ours",
  ),
  _preset(
    "dpo",
    "pair_dpo",
    anchor="reference",
    formula="mean of -log sigmoid(beta (u_w - u_l)) of each group's best and worst row; u to lr",
    source="Direct preference optimization (DPO), arXiv 2305.18290",
    differs="pairs come from rewards of a group, not from human preferences",
  ),
  _preset(
    "ipo",
    "pair_ipo",
    anchor="reference",
    formula="mean of (u_w - u_l - 1 / (2 beta))^2 of each group's best and worst row; u to lr",
    source="A general theoretical paradigm to understand learning from human preferences (IPO), "
    "arXiv 2310.12036",
    differs="pairs come from rewards of a group, not from human preferences",
  ),
)

_POLICY_GRADIENT = (
  _preset(
    "reinforce",
    "policy_gradient",
    formula="-A lp, A = r - rbar, no ratio",
    source="REINFORCE (Williams 1992); for LLMs arXiv 2402.14740",
  ),
  _preset(
    "rloo",
    "policy_gradient",
    advantage="loo",
    formula="-A lp, A = G / (G - 1) (r - rbar)",
    source="Back to basics (RLOO), arXiv 2402.14740",
    differs="TRL's RLOOTrainer clips the ratio of whole completions instead",
  ),
  _preset(
    "reinforce_pp",
    "policy_gradient",
    advantage="whitened",
    aggregation="token_mean",
    formula="-A lp, A = r - rbar whitened over the batch's tokens",
    source="REINFORCE++ (its baseline variant), arXiv 2501.03262",
    differs="no KL inside the reward",
  ),
  _preset(
    "asymre",
    "policy_gradient",
    shift=0.1,
    formula="-(r - rbar + shift) lp, no ratio; the paper's dV = -shift",
    source="Asymmetric REINFORCE, arXiv 2506.20520",
  ),
  _preset(
    "topr",
    "policy_gradient",
    weight=("topr", {"level": "sequence"}),
    formula="-q (r - rbar) lp; q = 1 for A > 0, sg min(pi(y) / mu(y), 1) for A <= 0",
    source="Tapered off-policy REINFORCE, arXiv 2503.14286",
    differs="ROLL's code takes token ratios and tells positives by their score",
  ),
  _preset(
    "cispo",
    "policy_gradient",
    advantage="std",
    weight=("truncate", {"weight_high": 1.28}),
    aggregation="token_mean",
    formula="-sg C[0, 1.28](pi / mu) A lp",
    source="MiniMax-M1 (CISPO), arXiv 2506.13585",
    differs="verl, ROLL and NeMo also clip below; TRL's epsilon_high is the absolute bound",
  ),
  _preset(
    "scalerl",
    "policy_gradient",
    advantage=("batch_std", {"std_eps": 1e-8}),
    weight=("truncate", {"weight_high": 5.0}),
    drop_zero_variance=True,
    aggregation="prompt_mean",
    formula="-sg C[0, 5](pi / mu) A lp, A = (r - rbar) / std of the batch",
    source="The art of scaling RL compute (ScaleRL), arXiv 2510.13786",
    differs="prompts that are solved too often stay in the data",
  ),
  _preset(
    "tis_reinforce",
    "policy_gradient",
    weight=("truncate", {"weight_high": 2.0}),
    aggregation="token_mean",
    formula="-sg min(pi / mu, 2) A lp",
    source="Truncated importance sampling (Ionides 2008); for LLMs arXiv 2509.19128",
  ),
  _preset(
    "prime_double_mask",
    "policy_gradient",
    weight=("double_mask", {"weight_low": 0.125, "weight_high": 8.0}),
    aggregation="token_mean",
    formula="-sg[rho (A - kl_tau d)] lp where 1/8 <= rho <= 8, the row's geometric mean is in "
    "[0.1, 10] and its product at most 100",
    source="prime-rl's default of October 2025 to February 2026; INTELLECT-3, arXiv 2512.16144",
  ),
  _preset(
    "minirl",
    "policy_gradient",
    weight=("directional", {"clip_low": 0.2, "clip_high": 0.27}),
    correction=("token_truncate", {"correction_high": 5.0}),
    anchor="proximal",
    formula="-M sg(pi / mu) (r - rbar) lp; M = 0 where a step along A leaves [0.8, 1.27]",
    source="Stabilizing RL with LLMs (MiniRL), arXiv 2512.01374",
    differs="the cap of 5 on pi_q / mu is from memory of the paper; with one update per batch M is "
    "always 1",
  ),
)

_PPO = (
  _preset(
    "grpo",
    "ppo_clip",
    advantage="std",
    aggregation="seq_mean",
    formula="-min(r A, C[0.8, 1.2](r) A), A = (r - rbar) / std, mean over each row's tokens",
    source="DeepSeekMath (GRPO), arXiv 2402.03300",
    differs="no KL term (kl_coef = 0.04 in the paper); the old policy is the one that sampled",
  ),
  _preset(
    "dr_grpo",
    "ppo_clip",
    aggregation="constant",
    formula="-min(r A, C[0.8, 1.2](r) A), A = r - rbar, sum over tokens / max_tokens (no default)",
    source="Understanding R1-Zero-like training (Dr. GRPO), arXiv 2503.20783",
    differs="verl's version does not divide by the number of rows",
  ),
  _preset(
    "dapo",
    ("ppo_clip", {"clip_high": 0.28}),
    advantage="std",
    drop_zero_variance=True,
    aggregation="token_mean",
    formula="-min(r A, C[0.8, 1.28](r) A), A = (r - rbar) / std, mean over the batch's tokens, "
    "groups without reward variance left out",
    source="DAPO: an open-source LLM RL system at scale, arXiv 2503.14476",
    differs="left-out groups are not sampled anew; overlong_cache = 0 (4096 of 20480 in the paper)",
  ),
  _preset(
    "dual_clip",
    ("ppo_clip", {"dual_clip": 3.0}),
    advantage="std",
    aggregation="token_mean",
    formula="as PPO's clip; for A < 0 the loss is at most -3 A",
    source="Mastering complex control (dual clip), arXiv 1912.09729",
    differs="verl has it on by default",
  ),
  _preset(
    "two_sided",
    ("ppo_clip", {"ratio_max": 4.0}),
    advantage="std",
    aggregation="token_mean",
    formula="-min(min(r, 4) A, C[0.8, 1.2](r) A)",
    source="INTELLECT-2, arXiv 2505.07291",
    differs="the bound of 4 is from memory of the paper",
  ),
  _preset(
    "gspo",
    ("ppo_clip", {"level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}),
    advantage="std",
    aggregation="seq_mean",
    formula="-min(s A, C[1 - 3e-4, 1 + 4e-4](s) A), s = exp(mean_t (lp - lb)) of the row",
    source="Group sequence policy optimization (GSPO), arXiv 2507.18071",
    differs="the ratio is to the policy that sampled",
  ),
  _preset(
    "decoupled_ppo",
    "ppo_clip",
    advantage="std",
    correction=("token_mask", {"correction_high": 5.0}),
    anchor="proximal",
    proximal="loglinear",
    aggregation="token_mean",
    formula="(pi_q / mu) * PPO's clip with r = pi / pi_q; tokens with pi_q / mu > 5 left out",
    source="AReaL: a large-scale asynchronous RL system, arXiv 2505.24298",
    differs="the paper has no bound on pi_q / mu; pi_q by AReaL's log-linear approximation, since "
    "with one update per batch a recomputed pi_q is the policy itself",
  ),
  _preset(
    "tis",
    "ppo_clip",
    advantage="std",
    correction=("token_truncate", {"correction_high": 2.0}),
    anchor="proximal",
    aggregation="token_mean",
    formula="min(pi_q / mu, 2) * PPO's clip with r = pi / pi_q",
    source="Your efficient RL framework secretly brings you off-policy RL training (Yao et al. "
    "2025), https://fengyao.notion.site/off-policy-rl",
    differs=_ONE_UPDATE,
  ),
  _preset(
    "icepop",
    "ppo_clip",
    advantage="std",
    correction=("token_mask", {"correction_low": 0.5, "correction_high": 5.0}),
    anchor="proximal",
    aggregation="token_mean",
    formula="(pi_q / mu inside [0.5, 5], else 0) * PPO's clip with r = pi / pi_q",
    source="Ring-1T (IcePop), arXiv 2510.18855",
    differs=_ONE_UPDATE,
  ),
  _preset(
    "mis",
    "ppo_clip",
    advantage="std",
    correction=("seq_mask", {"correction_high": 3.0}),
    anchor="proximal",
    aggregation="token_mean",
    formula="(product of pi_q / mu over the row where <= 3, else 0) * PPO's clip",
    source="When speed kills stability (Liu, Li et al. 2025, blog); TRL's default",
    differs=f"{_ONE_UPDATE}; the product, not the geometric mean: long stale rows drop out almost "
    "always",
  ),
  _preset(
    "geo_mask",
    "ppo_clip",
    advantage="std",
    correction=("geo_mask", {"correction_low": 0.999, "correction_high": 1.002}),
    anchor="proximal",
    aggregation="token_mean",
    formula="pi_q / mu of rows whose geometric mean is in [0.999, 1.002], else 0, * PPO's clip",
    source="seq-mask-tis of NeMo-RL and OpenRLHF (2026)",
    differs=f"{_ONE_UPDATE}; token ratios of kept rows are not bounded, as there",
  ),
  _preset(
    "opsm",
    "ppo_clip",
    advantage="std",
    opsm_delta=0.5,
    aggregation="token_mean",
    formula="PPO's clip without rows of A < 0 and mean(lb - lp) > 0.5",
    source="DeepSeek-V3.2 (off-policy sequence masking), arXiv 2512.02556",
    differs="the bound is an example, not the report's",
  ),
  _preset(
    "aipo",
    ("truncated_ratio", {"ratio_max": 8.0}),
    aggregation="token_mean",
    formula="-min(pi / mu, 8) (r - rbar), no gradient where truncated",
    source="LlamaRL (AIPO), arXiv 2505.24034; prime-rl of August 2025",
  ),
  _preset(
    "prime_dppo",
    ("probability_gap", {"kl_tau": 1e-3}),
    aggregation="token_mean",
    formula="-keep A pi / mu + kl_tau d^2; keep = 0 where pi - mu has moved more than 0.2 along A",
    source="prime-rl's default of August 2026",
    differs="bounds are on probabilities, not on ratios, as there",
  ),
  _preset(
    "prime_ipo",
    ("probability_gap", {"gap_high": 0.1, "gap_two_sided": True, "kl_tau": 1e-3}),
    aggregation="token_mean",
    formula="-keep A pi / mu + kl_tau d^2; keep = 0 where |pi - mu| > 0.1",
    source="prime-rl (2026)",
  ),
  _preset(
    "sapo",
    "soft_gate",
    advantage="std",
    aggregation="seq_mean",
    formula="-(4 / tau) sigmoid(tau (r - 1)) A, tau = 1 for A > 0, 1.05 else",
    source="Soft adaptive policy optimization (SAPO), arXiv 2511.20347",
  ),
)

PRESETS = {c.name: c for c in (*_REGRESSION, *_CONTRASTIVE, *_POLICY_GRADIENT, *_PPO)}


def choose(name: str | Choices, **overrides: Any) -> Choices:
  """A preset (or choices of your own) with some keys replaced; None keeps the preset's value.

  Raises:
    ValueError: unknown preset or key, or a value that makes no sense.
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
