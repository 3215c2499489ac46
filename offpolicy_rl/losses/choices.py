"""The keys of `objective.` in a configuration, and the functions that they choose. Loads no JAX.

Symbols in every formula: lp, lb, lq, lr, lt = log-probability of the sampled token under the policy
pi, the sampler's policy mu, the proximal policy pi_q, the reference policy and the teacher pi_T;
la = the anchor's, one of those; m = loss mask; |y| = completion tokens of the row; u = sum_t m (lp
- la); rbar = mean reward of the row's group; A = advantage; sg = stop-gradient; C[a, b] = clip to
[a, b]. Losses are minimised.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Key -> the functions that it can name, each with its keyword arguments, which are keys, too. The
# functions are in functions.LOSSES, advantages.ADVANTAGES, weights.WEIGHTS and weights.CORRECTIONS.
ARGUMENTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
  "fn": {
    "regression": ("beta", "kappa", "shift", "scale"),
    "centred_squares": ("beta", "scale"),
    "pair_squares": ("beta", "scale"),
    "pair_dpo": ("beta",),
    "pair_ipo": ("beta",),
    "policy_gradient": ("kl_tau",),
    "optimal_baseline": ("ratio_max",),
    "ppo_clip": ("level", "clip_low", "clip_high", "dual_clip", "ratio_max"),
    "truncated_ratio": ("ratio_min", "ratio_max", "kl_tau"),
    "probability_gap": ("gap_measure", "gap_low", "gap_high", "gap_two_sided", "kl_tau"),
    "soft_gate": ("tau_high", "tau_low"),
    "score_centering": ("weight", "weight_high"),
    "distillation": ("teacher_weight",),
  },
  "advantage": {
    "mean": (),
    "relative": (),
    "loo": (),
    "std": ("std_ddof", "std_eps"),
    "batch_std": ("std_eps",),
    "whitened": (),
    "vhat": ("beta1",),
    "vhat_loo": ("beta1",),
    "value": (),
    "none": (),
  },
  "weight": {
    "none": (),
    "truncate": ("level", "weight_low", "weight_high"),
    "double_mask": ("weight_low", "weight_high"),
    "topr": ("level", "topr_sign"),
    "directional": ("clip_low", "clip_high"),
    "gamma": ("gamma_power_high", "gamma_rate_high", "gamma_power_low", "gamma_rate_low"),
    "variation_filter": ("variation_max",),
    "veto": ("weight_low",),
    "group_ratio_clip": ("clip_low", "clip_high"),
    "second_moment": ("moment_max", "moment_directional"),
    "balanced_clip": ("clip_low", "clip_high", "clip_low_end", "clip_high_end", "positive_share"),
  },
  "correction": {
    "none": (),
    "token_truncate": ("correction_low", "correction_high"),
    "token_mask": ("correction_low", "correction_high"),
    "seq_truncate": ("correction_high",),
    "seq_mask": ("correction_high",),
    "geo_mask": ("correction_low", "correction_high"),
  },
}
PAIRWISE = ("centred_squares", "pair_squares", "pair_dpo", "pair_ipo")  # compare rows of a group
WITHOUT_ADVANTAGE = ("optimal_baseline", *PAIRWISE)  # compare the rewards of a group themselves
BY_ROW = ("regression", *WITHOUT_ADVANTAGE)  # take the log-ratios of rows
WEIGHTED = ("policy_gradient", "ppo_clip", "distillation")  # take weights of tokens
_WEIGHTS_OF_CANDIDATES = ("none", "truncate")
GROUP_WEIGHTS = ("group_ratio_clip",)  # depend on the group's other rows
BATCH_WEIGHTS = ("second_moment", "balanced_clip")  # depend on all tokens of an update

Rule = tuple[Callable[[Any], bool], str]  # whether a value is allowed; the allowed ones in words

_NUMBER: Rule = (lambda x: not math.isnan(x), "a number")
_FLAG: Rule = (lambda x: x in (False, True), "True or False")
_FINITE: Rule = (math.isfinite, "a finite number")
_POSITIVE: Rule = (lambda x: 0 < x < math.inf, "a number > 0, finite")
_NOT_NEGATIVE: Rule = (lambda x: 0 <= x < math.inf, "a number >= 0")
_BOUND: Rule = (lambda x: x > 0, "a number > 0")
_SHARE: Rule = (lambda x: 0 <= x <= 1, "in [0, 1]")
_LOSS: Rule = (
  lambda x: x in ARGUMENTS["fn"] or ":" in x,
  f"one of {', '.join(ARGUMENTS['fn'])}, or your own function as module:function",
)
_POLICIES = ("sampler", "proximal", "reference", "teacher")
AGGREGATIONS = ("seq_sum", "seq_mean", "token_mean", "constant", "prompt_mean")


def _one_of(allowed: Iterable[str]) -> Rule:
  names = tuple(allowed)
  return lambda x: x in names, f"one of {', '.join(names)}"


def _key(default: Any, rule: Rule, meaning: str) -> Any:
  metadata = {"holds": rule[0], "expected": rule[1], "meaning": meaning}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Choices:
  """An objective as data: a value for every key, and its source.

  Functions never get this record, only the values that their keyword arguments name.
  """

  name: str
  formula: str
  source: str  # paper: title, arXiv number
  differs: str = ""  # from the authors' code, where known

  fn: str = _key("regression", _LOSS, "the loss of a completion")
  whole_groups: bool = _key(False, _FLAG, "fn is your own and compares the rows of a group")

  advantage: str = _key("mean", _one_of(ARGUMENTS["advantage"]), "from the rewards of a group")
  std_ddof: int = _key(1, (lambda x: x in (0, 1), "0 or 1"), "std: degrees of freedom taken off")
  std_eps: float = _key(1e-4, _NOT_NEGATIVE, "std, batch_std: added to the deviation")
  beta1: float = _key(1.0, _POSITIVE, "vhat, vhat_loo: temperature of the value")
  kappa: float = _key(0.0, _FINITE, "pessimistic shift A + kappa beta, in units of beta")
  shift: float = _key(0.0, _FINITE, "pessimistic shift A + shift, in units of reward")
  drop_zero_variance: bool = _key(False, _FLAG, "leave out groups whose rewards are all equal")
  overlong_cache: int = _key(0, _NOT_NEGATIVE, "penalty over the last overlong_cache of max_tokens")
  max_tokens: int = _key(0, _NOT_NEGATIVE, "longest completion, for overlong_cache and constant")
  group_size: int = _key(0, _NOT_NEGATIVE, "> 0: rows come in consecutive groups of this size")

  anchor: str = _key("sampler", _one_of(_POLICIES), "the pi_a of the ratio pi / pi_a")
  proximal: str = _key(
    "current",
    _one_of(("current", "loglinear")),
    "pi_q: the policy before the step, or between it and the sampler (ratios.py)",
  )

  beta: float = _key(0.1, _POSITIVE, "temperature, in units of reward per nat of u")
  scale: str = _key(
    "half_over_beta", _one_of(("half_over_beta", "plain")), "residual^2 / (2 beta), or residual^2"
  )
  log_ratio: str = _key("sum", _one_of(("sum", "mean")), "u: sum or mean over tokens")

  weight: str = _key("none", _one_of(ARGUMENTS["weight"]), "weight of a token, from pi / pi_a")
  weight_low: float = _key(0.0, _NOT_NEGATIVE, "lower bound of pi / pi_a")
  weight_high: float = _key(math.inf, _BOUND, "upper bound of pi / pi_a")
  topr_sign: str = _key(
    "advantage", _one_of(("advantage", "reward")), "topr: what makes a row positive"
  )
  level: str = _key(
    "token", _one_of(("token", "sequence")), "a ratio per token, or one per completion"
  )

  gamma_power_high: float = _key(2.0, _NOT_NEGATIVE, "gamma: k of W^k e^(-l W) for A >= 0")
  gamma_rate_high: float = _key(3.0, _POSITIVE, "gamma: l of W^k e^(-l W) for A >= 0")
  gamma_power_low: float = _key(3.0, _NOT_NEGATIVE, "gamma: k of W^k e^(-l W) for A < 0")
  gamma_rate_low: float = _key(2.0, _POSITIVE, "gamma: l of W^k e^(-l W) for A < 0")
  variation_max: float = _key(
    0.1, _NOT_NEGATIVE, "variation_filter: mean |pi / pi_a - 1| / 2 of a completion that is too far"
  )
  moment_max: float = _key(
    0.04, _BOUND, "second_moment: mean square of the log-ratios to pi_a stays below it"
  )
  moment_directional: bool = _key(
    True, _FLAG, "second_moment: only tokens that have moved along A count and are left out"
  )

  clip_low: float = _key(0.2, _SHARE, "lowest ratio is 1 - clip_low")
  clip_high: float = _key(0.2, _BOUND, "highest ratio is 1 + clip_high")
  clip_low_end: float = _key(0.1, _SHARE, "balanced_clip: clip_low falls to it")
  clip_high_end: float = _key(2.0, _POSITIVE, "balanced_clip: then clip_high rises to it")
  positive_share: float = _key(
    0.5, _SHARE, "balanced_clip: until tokens with A > 0 have this share of the surrogate"
  )
  dual_clip: float = _key(math.inf, _BOUND, "A < 0: loss at most -dual_clip A")
  ratio_min: float = _key(0.0, _NOT_NEGATIVE, "lower bound of the ratio for either sign of A")
  ratio_max: float = _key(math.inf, _BOUND, "bound of the ratio for either sign of A")
  gap_measure: str = _key(
    "tv",
    _one_of(("tv", "kl")),
    "probability_gap: pi - mu, or KL of the token's Bernoulli, with the sign of pi - mu",
  )
  gap_low: float = _key(0.2, _NOT_NEGATIVE, "probability_gap: the gap is at least -gap_low")
  gap_high: float = _key(0.2, _NOT_NEGATIVE, "probability_gap: the gap is at most gap_high")
  gap_two_sided: bool = _key(False, _FLAG, "probability_gap: gap_high bounds the gap's size")
  kl_tau: float = _key(0.0, _NOT_NEGATIVE, "weight of a token's squared log-ratio to pi_a")
  teacher_weight: float = _key(
    1.0, _NOT_NEGATIVE, "distillation: factor of a token's log pi_T / pi, in units of reward"
  )
  tau_high: float = _key(1.0, _POSITIVE, "soft_gate: temperature for A > 0")
  tau_low: float = _key(1.05, _POSITIVE, "soft_gate: temperature for A <= 0")

  correction: str = _key(
    "none", _one_of(ARGUMENTS["correction"]), "weight of a token, from pi_q / mu"
  )
  correction_low: float = _key(0.0, _NOT_NEGATIVE, "lower bound of pi_q / mu")
  correction_high: float = _key(math.inf, _BOUND, "upper bound of pi_q / mu")
  opsm_delta: float = _key(
    math.inf, _NUMBER, "leave out rows with A < 0 and mean(lb - lp) above this"
  )

  aggregation: str = _key("seq_sum", _one_of(AGGREGATIONS), "mean over the batch (masked.py)")
  kl_coef: float = _key(0.0, _NOT_NEGATIVE, "weight of KL(policy || reference)")
  kl: str = _key("k3", _one_of(("k1", "k2", "k3")), "estimator of that KL")

  def check(self) -> None:
    """Raises ValueError that names the first wrong key, its value and what was expected."""
    for field in OVERRIDABLE[1:]:
      value, rule = getattr(self, field.name), field.metadata
      if not rule["holds"](value):
        raise ValueError(f"objective.{field.name}: got {value!r}, expected {rule['expected']}")
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
    if self.needs_candidates and self.weight not in _WEIGHTS_OF_CANDIDATES:
      raise ValueError(
        f"objective.weight: got {self.weight!r}, expected one of "
        f"{', '.join(_WEIGHTS_OF_CANDIDATES)} with objective.fn = {self.fn}, which weighs tokens "
        "that were not sampled, too"
      )

  @property
  def needs_reference(self) -> bool:
    """Whether `reference_logprobs` must be given."""
    return self.kl_coef > 0 or self.anchor == "reference"

  @property
  def needs_teacher(self) -> bool:
    """Whether `teacher_logprobs` must be given."""
    return self.fn == "distillation" or self.anchor == "teacher"

  @property
  def needs_proximal(self) -> bool:
    """Whether `proximal_logprobs` must be given."""
    return self.anchor == "proximal" or self.correction != "none"

  @property
  def needs_candidates(self) -> bool:
    """Whether the log-probabilities of the sampler's likeliest tokens must be given."""
    return self.fn == "score_centering"

  @property
  def couples_rows(self) -> bool:
    """Whether a group's rows must be in the same micro-batch."""
    by_group = self.fn in WITHOUT_ADVANTAGE or self._weights_by(GROUP_WEIGHTS)
    return self.whole_groups or by_group or self.couples_batch

  @property
  def couples_batch(self) -> bool:
    """Whether all rows of an update must be in the same micro-batch."""
    return self._weights_by(BATCH_WEIGHTS)

  def _weights_by(self, names: tuple[str, ...]) -> bool:
    takes_weights = self.fn in WEIGHTED or self.fn not in ARGUMENTS["fn"]
    return takes_weights and self.weight in names

  def used(self) -> set[str]:
    """The keys that make a difference; all of them when `fn` is your own."""
    if self.fn not in ARGUMENTS["fn"]:
      return {field.name for field in OVERRIDABLE}
    keys = {"fn", "anchor", "drop_zero_variance", "overlong_cache", *ARGUMENTS["fn"][self.fn]}
    if self.fn in BY_ROW:
      keys.add("log_ratio")
    if self.fn in WEIGHTED:
      keys |= {"weight", *ARGUMENTS["weight"][self.weight], "opsm_delta"}
      keys |= {"correction", *ARGUMENTS["correction"][self.correction]}
    plain = self.fn == "policy_gradient" and not self.kl_tau
    if self.weight == "none" and (plain or self.fn == "distillation"):
      keys.remove("anchor")
    if self.fn == "score_centering":
      keys.remove("anchor")
      keys -= {"weight_high"} if self.weight == "none" else set()
    if self.fn not in PAIRWISE:
      keys |= {"aggregation", "kl_coef"} | ({"kl"} if self.kl_coef else set())
    if self.fn not in WITHOUT_ADVANTAGE:
      keys |= {"advantage", *ARGUMENTS["advantage"][self.advantage], "kappa", "shift"}
      keys |= {"beta"} if self.kappa else set()
    if self.overlong_cache or ("aggregation" in keys and self.aggregation == "constant"):
      keys.add("max_tokens")
    corrected = "correction" in keys and self.correction != "none"
    if corrected or ("anchor" in keys and self.anchor == "proximal"):
      keys.add("proximal")
    return keys


def preset(
  name: str, keys: Mapping[str, Any], formula: str, source: str, differs: str = ""
) -> Choices:
  """Choices with the keys that are not at their defaults in one place, as presets are written."""
  return Choices(name, formula, source, differs, **keys)


# The keys of a configuration: the name of a preset, then those that replace its values.
OVERRIDABLE = tuple(
  field for field in dataclasses.fields(Choices) if field.name == "name" or field.metadata
)
