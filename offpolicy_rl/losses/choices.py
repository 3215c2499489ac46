"""What an objective is made of. Data only, no JAX, so that a configuration is checked quickly.

Symbols in every formula: lp, lb, lq, lr = log-probability of the sampled token under the policy pi,
the sampler's policy mu, the proximal policy and the reference policy; la = the anchor's, one of
those; m = loss mask; |y| = completion tokens of the row; u = sum_t m (lp - la); rbar = mean reward
of the row's group; A = advantage; sg = stop-gradient; C[a, b] = clip to [a, b]. Losses are
minimised.
"""

import dataclasses
import math

ADVANTAGES = ("mean", "loo", "std", "batch_std", "whitened", "vhat", "vhat_loo", "value")
AGGREGATIONS = ("seq_sum", "seq_mean", "token_mean", "constant", "prompt_mean")
ANCHORS = ("sampler", "proximal", "reference")
CORRECTIONS = ("none", "token_truncate", "token_mask", "seq_truncate", "seq_mask", "geo_mask")
WEIGHTS = ("none", "truncate", "double_mask", "topr", "directional")
PAIRWISE = ("centred_squares", "pair_squares", "pair_dpo", "pair_ipo")


@dataclasses.dataclass(frozen=True)
class Choices:
  """One composition. A preset of presets.py names its formula, its source and what differs."""

  name: str
  formula: str
  source: str  # paper: title, arXiv number
  differs: str = ""  # from the authors' code, where known

  fn: str = "regression"  # a function of links.py, or your own as "module:function"
  whole_groups: bool = False  # your function compares rows: micro-batches keep groups whole

  # The advantage of a completion, from its group's rewards (advantages.py).
  advantage: str = "mean"  # one of ADVANTAGES
  std_ddof: int = 1  # std: degrees of freedom taken off
  std_eps: float = 1e-4  # std: added to the deviation
  beta1: float = 1.0  # vhat: temperature of the value
  kappa: float = 0.0  # pessimistic shift A + kappa beta, in units of beta
  shift: float = 0.0  # pessimistic shift A + shift, in units of reward
  drop_zero_variance: bool = False  # leave out groups whose rewards are all equal
  overlong_cache: int = 0  # soft penalty over the last so many of max_tokens; 0 = none
  max_tokens: int = 0  # longest completion allowed: aggregation "constant", overlong penalty
  group_size: int = 0  # > 0: rows come in consecutive groups of this size

  # Whose log-probs the ratio is against.
  anchor: str = "sampler"  # one of ANCHORS
  # Where lq comes from when not given: "current", the policy before the step's first update, or
  # "loglinear", between that and the sampler (ratios.py).
  proximal: str = "current"

  # Regression on the log-ratio.
  beta: float = 0.1  # temperature, in units of reward per nat of u
  scale: str = "half_over_beta"  # residual^2 / (2 beta), or "plain": residual^2
  log_ratio: str = "sum"  # u = "sum" or "mean" over the row's tokens

  # Policy gradient: stop-gradient weight of each token from its ratio to the anchor (ratios.py).
  weight: str = "none"  # one of WEIGHTS
  weight_low: float = 0.0
  weight_high: float = math.inf
  topr_sign: str = "advantage"  # topr: positives are told by the "advantage" or by the "reward"

  # Ratio with a gradient: PPO's and its relatives.
  level: str = "token"  # ratio per "token", or one per "sequence"
  clip_low: float = 0.2  # ratio kept in [1 - clip_low, 1 + clip_high]
  clip_high: float = 0.2
  dual_clip: float = math.inf  # A < 0: loss at most -dual_clip A
  ratio_max: float = math.inf  # two-sided clip, truncation
  gap_low: float = 0.2  # probability_gap: pi - mu allowed in [-gap_low, gap_high]
  gap_high: float = 0.2
  gap_two_sided: bool = False
  kl_tau: float = 0.0  # weight of the squared log-ratio to the anchor, per token
  tau_high: float = 1.0  # soft_gate: temperature for A > 0 and A <= 0
  tau_low: float = 1.05

  # Correction for the mismatch pi_q / mu of the proximal policy to the sampler's.
  correction: str = "none"  # one of CORRECTIONS
  correction_low: float = 0.0
  correction_high: float = math.inf
  opsm_delta: float = math.inf  # rows with A < 0 and mean(lb - lp) above this are left out

  aggregation: str = "seq_sum"  # one of AGGREGATIONS (masked.row_weights)
  kl_coef: float = 0.0  # weight of KL(policy || reference), added to any function
  kl: str = "k3"  # its estimator: "k1" | "k2" | "k3"

  def check(self) -> None:
    """Raises ValueError for the first wrong choice: field, value, what was expected."""
    for key, allowed in _ALLOWED.items():
      if getattr(self, key) not in allowed:
        raise ValueError(
          f"objective.{key}: got {getattr(self, key)!r}, expected one of {', '.join(allowed)}"
        )
    for keys, (is_good, expected) in _RANGES.items():
      for key in keys.split():
        value = getattr(self, key)
        if not is_good(value):
          raise ValueError(f"objective.{key}: got {value!r}, expected {expected}")
    if self.max_tokens == 0 and (self.aggregation == "constant" or self.overlong_cache):
      raise ValueError(
        "objective.max_tokens: got 0, expected the longest completion allowed, which aggregation "
        "'constant' and overlong_cache need"
      )
    if self.kl_coef and self.fn in PAIRWISE:
      raise ValueError(
        f"objective.kl_coef: got {self.kl_coef}, expected 0 with objective.fn = {self.fn}, whose "
        "losses are weighted per pair and not per row"
      )

  @property
  def needs_reference(self) -> bool:
    """Whether `reference_logprobs` must be given."""
    return self.kl_coef > 0 or self.anchor == "reference"

  @property
  def needs_proximal(self) -> bool:
    """Whether `proximal_logprobs` are looked at."""
    return self.anchor == "proximal" or self.correction != "none"

  @property
  def couples_rows(self) -> bool:
    """Whether a group's rows must be in the same micro-batch."""
    return self.whole_groups or self.fn in PAIRWISE


# What a configuration may set.
OVERRIDABLE = tuple(
  field
  for field in dataclasses.fields(Choices)
  if field.name not in ("formula", "source", "differs")
)

_ALLOWED = {
  "advantage": ADVANTAGES,
  "aggregation": AGGREGATIONS,
  "anchor": ANCHORS,
  "proximal": ("current", "loglinear"),
  "scale": ("half_over_beta", "plain"),
  "log_ratio": ("sum", "mean"),
  "weight": WEIGHTS,
  "level": ("token", "sequence"),
  "topr_sign": ("advantage", "reward"),
  "correction": CORRECTIONS,
  "kl": ("k1", "k2", "k3"),
}
_RANGES = {
  "beta beta1 tau_high tau_low": (lambda x: 0 < x < math.inf, "a number > 0, finite"),
  "clip_high dual_clip ratio_max correction_high weight_high": (lambda x: x > 0, "a number > 0"),
  "std_eps weight_low correction_low gap_low gap_high kl_tau kl_coef "
  "overlong_cache max_tokens group_size": (lambda x: 0 <= x < math.inf, "a number >= 0"),
  "kappa shift": (math.isfinite, "a finite number"),
  "clip_low": (lambda x: 0 <= x <= 1, "in [0, 1]"),
  "std_ddof": (lambda x: x in (0, 1), "0 or 1"),
}
