"""The objectives with clipped ratios and their corrections, as data; see presets.py."""

from offpolicy_rl.losses.choices import preset

_PPO = dict(fn="ppo_clip", advantage="std", aggregation="token_mean")
_ONE_UPDATE = "pi_q is the policy before the step: with one update per batch nothing is clipped"

CLIPPED = (
  preset(
    "grpo",
    dict(fn="ppo_clip", advantage="std", aggregation="seq_mean"),
    "-min(r A, C[0.8, 1.2](r) A), A = (r - rbar) / std, mean over each row's tokens",
    "DeepSeekMath (GRPO), arXiv 2402.03300",
    "no KL term (kl_coef = 0.04 in the paper); the old policy is the one that sampled",
  ),
  preset(
    "dr_grpo",
    dict(fn="ppo_clip", aggregation="constant"),
    "-min(r A, C[0.8, 1.2](r) A), A = r - rbar, sum over tokens / max_tokens (no default)",
    "Understanding R1-Zero-like training (Dr. GRPO), arXiv 2503.20783",
    "verl's version does not divide by the number of rows",
  ),
  preset(
    "dapo",
    dict(_PPO, drop_zero_variance=True, clip_high=0.28),
    "-min(r A, C[0.8, 1.28](r) A), A = (r - rbar) / std, mean over the batch's tokens, groups "
    "without reward variance left out",
    "DAPO: an open-source LLM RL system at scale, arXiv 2503.14476",
    "left-out groups are not replaced; overlong_cache = 0 (4096 of 20480 in the paper)",
  ),
  preset(
    "dual_clip",
    dict(_PPO, dual_clip=3.0),
    "as PPO's clip; for A < 0 the loss is at most -3 A",
    "Mastering complex control (dual clip), arXiv 1912.09729",
    "verl has it on by default",
  ),
  preset(
    "two_sided",
    dict(_PPO, ratio_max=4.0),
    "-min(min(r, 4) A, C[0.8, 1.2](r) A)",
    "INTELLECT-2, arXiv 2505.07291",
    "the bound of 4 is from memory of the paper",
  ),
  preset(
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
  preset(
    "luspo",
    dict(fn="ppo_clip", advantage="std", level="sequence", clip_low=3e-4, clip_high=4e-4),
    "-|y| min(s A, C[1 - 3e-4, 1 + 4e-4](s) A), s = exp(mean_t (lp - lb)) of the row",
    "Length-unbiased sequence policy optimization (LUSPO), arXiv 2602.05261",
    "GSPO with aggregation = seq_sum; the band is GSPO's",
  ),
  preset(
    "mu_grpo",
    dict(
      fn="ppo_clip",
      advantage="std",
      weight="veto",
      weight_low=1e-4,
      clip_low=1.0,
      clip_high=4.0,
      aggregation="seq_mean",
    ),
    "-V min(r A, C[0, 5](r) A); V = 0 behind a row's first r < 1e-4 if A < 0",
    "How off-policy can GRPO be? (mu-GRPO), arXiv 2605.17570",
    "an approximation: the paper's equations were not read, and its code is not out. The rule, the "
    "clip and, in an example, the 1e-4 are those of the authors' page, "
    "https://benjamint2048.github.io/mu-grpo-project-page; the mean over tokens is GRPO's, in "
    "whose denominator vetoed tokens stay",
  ),
  preset(
    "decoupled_ppo",
    dict(
      _PPO, anchor="proximal", proximal="loglinear", correction="token_mask", correction_high=5.0
    ),
    "(pi_q / mu) * PPO's clip with r = pi / pi_q; tokens with pi_q / mu > 5 left out",
    "AReaL: a large-scale asynchronous RL system, arXiv 2505.24298",
    "the paper has no bound on pi_q / mu; pi_q by AReaL's log-linear approximation, since with "
    "one update per batch a recomputed pi_q is the policy itself",
  ),
  preset(
    "tis",
    dict(_PPO, anchor="proximal", correction="token_truncate", correction_high=2.0),
    "min(pi_q / mu, 2) * PPO's clip with r = pi / pi_q",
    "Your efficient RL framework secretly brings you off-policy RL training (Yao et al. 2025), "
    "https://fengyao.notion.site/off-policy-rl",
    _ONE_UPDATE,
  ),
  preset(
    "icepop",
    dict(_PPO, anchor="proximal", correction="token_mask", correction_low=0.5, correction_high=5.0),
    "(pi_q / mu inside [0.5, 5], else 0) * PPO's clip with r = pi / pi_q",
    "Ring-1T (IcePop), arXiv 2510.18855",
    _ONE_UPDATE,
  ),
  preset(
    "mis",
    dict(_PPO, anchor="proximal", correction="seq_mask", correction_high=3.0),
    "(product of pi_q / mu over the row where <= 3, else 0) * PPO's clip",
    "When speed kills stability (Liu, Li et al. 2025, blog); TRL's default",
    f"{_ONE_UPDATE}; the product, not the geometric mean: long stale rows drop out almost always",
  ),
  preset(
    "geo_mask",
    dict(
      _PPO, anchor="proximal", correction="geo_mask", correction_low=0.999, correction_high=1.002
    ),
    "pi_q / mu of rows whose geometric mean is in [0.999, 1.002], else 0, * PPO's clip",
    "seq-mask-tis of NeMo-RL and OpenRLHF (2026)",
    f"{_ONE_UPDATE}; token ratios of kept rows are not bounded, as there",
  ),
  preset(
    "opsm",
    dict(_PPO, opsm_delta=0.5),
    "PPO's clip without rows of A < 0 and mean(lb - lp) > 0.5",
    "DeepSeek-V3.2 (off-policy sequence masking), arXiv 2512.02556",
    "the bound is an example, not the report's",
  ),
  preset(
    "aipo",
    dict(fn="truncated_ratio", ratio_max=8.0, aggregation="token_mean"),
    "-min(pi / mu, 8) (r - rbar), no gradient where truncated",
    "LlamaRL (AIPO), arXiv 2505.24034; prime-rl of August 2025",
  ),
  preset(
    "kimi_k25",
    dict(
      fn="truncated_ratio", ratio_min=0.125, ratio_max=8.0, kl_tau=1e-3, aggregation="token_mean"
    ),
    "-C[1/8, 8](pi / mu) (r - rbar) + kl_tau d^2, d = log pi / mu",
    "Kimi K2.5, arXiv 2602.02276",
    "the report's bounds and tau were not at hand: those of prime-rl",
  ),
  preset(
    "dppo_tv",
    dict(
      fn="probability_gap", advantage="std", gap_low=0.15, gap_high=0.15, aggregation="token_mean"
    ),
    "-keep A pi / mu; keep = 0 where pi - mu has moved more than 0.15 along A",
    "Rethinking the trust region in LLM RL (DPPO), arXiv 2602.04879",
    "verl's code, whose bound this is, also truncates pi / mu at 20",
  ),
  preset(
    "dppo_kl",
    dict(
      fn="probability_gap",
      advantage="std",
      gap_measure="kl",
      gap_low=0.05,
      gap_high=0.05,
      aggregation="token_mean",
    ),
    "-keep A pi / mu; keep = 0 where pi has moved along A and KL(Bernoulli(mu) || Bernoulli(pi)) "
    "> 0.05",
    "Rethinking the trust region in LLM RL (DPPO), arXiv 2602.04879",
    "verl's code, whose bound this is, also truncates pi / mu at 20 and adds 1e-8 to 1 - pi",
  ),
  preset(
    "prime_dppo",
    dict(fn="probability_gap", kl_tau=1e-3, aggregation="token_mean"),
    "-keep A pi / mu + kl_tau d^2; keep = 0 where pi - mu has moved more than 0.2 along A",
    "prime-rl's default of August 2026",
    "bounds are on probabilities, not on ratios, as there",
  ),
  preset(
    "prime_ipo",
    dict(
      fn="probability_gap", gap_high=0.1, gap_two_sided=True, kl_tau=1e-3, aggregation="token_mean"
    ),
    "-keep A pi / mu + kl_tau d^2; keep = 0 where |pi - mu| > 0.1",
    "prime-rl (2026)",
  ),
  preset(
    "sapo",
    dict(fn="soft_gate", advantage="std", aggregation="seq_mean"),
    "-(4 / tau) sigmoid(tau (r - 1)) A, tau = 1 for A > 0, 1.05 else",
    "Soft adaptive policy optimization (SAPO), arXiv 2511.20347",
  ),
)
