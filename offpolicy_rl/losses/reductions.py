"""What an objective reduces to under a configuration, and which presets coincide there. No JAX.

Ratios that are 1 by construction disappear from a gradient. With one update per batch the proximal
policy pi_q is the policy pi itself, so a clip of pi / pi_q never acts and what remains is the
correction pi / mu; on-policy, mu is the policy, too. `reduced` writes such an objective as the
simplest choices with the same gradient, up to a constant factor.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from offpolicy_rl.losses.choices import PAIRWISE, Choices

_LABELS = ("name", "formula", "source", "differs")
_PLAIN = Choices(name="", formula="", source="")
# Fields that a function of links.py reads; those of advantage, aggregation and KL aside.
_READ = {
  "regression": ("anchor", "beta", "log_ratio"),
  "policy_gradient": ("anchor", "weight", "level", "kl_tau"),
  "ppo_clip": ("anchor", "level", "clip_low", "clip_high", "dual_clip", "ratio_max", "opsm_delta"),
  "truncated_ratio": ("anchor", "ratio_max"),
  "probability_gap": ("anchor", "gap_low", "gap_high", "gap_two_sided", "kl_tau"),
  "soft_gate": ("anchor", "tau_high", "tau_low"),
  "centred_squares": ("anchor", "beta", "log_ratio"),
  "pair_squares": ("anchor", "beta", "log_ratio"),
  "pair_dpo": ("anchor", "beta", "log_ratio"),
  "pair_ipo": ("anchor", "beta", "log_ratio"),
}
_CORRECTED = ("policy_gradient", "ppo_clip")
_SQUARES = ("regression", "centred_squares", "pair_squares")
_BY_ADVANTAGE = {
  "std": ("std_ddof", "std_eps"),
  "batch_std": ("std_eps",),
  "vhat": ("beta1",),
  "vhat_loo": ("beta1",),
}
_BY_WEIGHT = {
  "truncate": ("weight_low", "weight_high"),
  "double_mask": ("weight_low", "weight_high"),
  "topr": ("topr_sign",),
  "directional": ("clip_low", "clip_high"),
}
_BY_CORRECTION = {
  "token_truncate": ("correction_low", "correction_high"),
  "token_mask": ("correction_low", "correction_high"),
  "seq_truncate": ("correction_high",),
  "seq_mask": ("correction_high",),
  "geo_mask": ("correction_low", "correction_high"),
}


class Setting(NamedTuple):
  """What decides which ratios are 1."""

  updates: int = 1  # per batch
  on_policy: bool = False  # the sampler's policy is the one that is updated: no lag, same numbers


ONE_UPDATE = Setting()


class Reduced(NamedTuple):
  """gradient of an objective = factor * gradient of `choices`."""

  choices: Choices
  factor: float


def reduced(choices: Choices, setting: Setting = ONE_UPDATE) -> Reduced:
  """The simplest choices with the same gradient; equal ones coincide.

  Groups are taken to be of equal size, choices.group_size where it is given, with no empty row.
  `choices.fn` of your own stays as it is.
  """
  if choices.fn not in _READ:
    return Reduced(choices, 1.0)
  made = dataclasses.replace(
    choices, shift=choices.shift + choices.kappa * choices.beta, kappa=0.0, name=""
  )
  made, factor = _halved(made)
  policy_is = _same_as_policy(made, setting)
  if policy_is and made.correction != "none" and made.fn in _CORRECTED:
    made, more = _without_correction(made, policy_is)
    factor *= more
  if made.anchor in policy_is:
    made, more = _without_ratio(made, policy_is)
    factor *= more
  made = _with_correction_as_weight(made, policy_is)
  made, more = _normalised(made)
  return Reduced(_only_read(made), factor * more)


def coinciding(
  presets: Iterable[Choices], setting: Setting = ONE_UPDATE
) -> list[list[tuple[str, float]]]:
  """Groups of two or more whose gradients are equal up to a factor: (name, factor) of each."""
  groups: dict[Choices, list[tuple[str, float]]] = {}
  for choices in presets:
    found = reduced(choices, setting)
    groups.setdefault(found.choices, []).append((choices.name, found.factor))
  return [group for group in groups.values() if len(group) > 1]


def in_words(choices: Choices) -> str:
  """The function and every choice that is not the default: "policy_gradient (weight=truncate)"."""
  fields = [field.name for field in dataclasses.fields(Choices) if field.name not in _LABELS]
  special = [name for name in fields if getattr(choices, name) != getattr(_PLAIN, name)]
  listed = ", ".join(f"{name}={getattr(choices, name)}" for name in special if name != "fn")
  return f"{choices.fn} ({listed})" if listed else choices.fn


def _same_as_policy(choices: Choices, setting: Setting) -> set[str]:
  """Which of sampler and proximal policy are the policy whose gradient is taken."""
  if setting.updates > 1:
    return set()
  if setting.on_policy:
    return {"sampler", "proximal"}
  return {"proximal"} if choices.proximal == "current" else set()


def _halved(choices: Choices) -> tuple[Choices, float]:
  if choices.fn not in _SQUARES or choices.scale != "plain":
    return choices, 1.0
  factor = 2 * choices.beta
  kl_coef = choices.kl_coef / factor  # which the scale does not reach
  return dataclasses.replace(choices, scale="half_over_beta", kl_coef=kl_coef), factor


def _without_correction(choices: Choices, policy_is: set[str]) -> tuple[Choices, float]:
  """pi_q / mu is 1 where both are the policy, and its weight a constant."""
  if policy_is != {"sampler", "proximal"}:
    return choices, 1.0
  low, high = choices.correction_low, choices.correction_high
  plain = dataclasses.replace(choices, correction="none")
  if choices.correction in ("token_truncate", "seq_truncate"):
    return plain, _clip_of_one(low if choices.correction == "token_truncate" else 0.0, high)
  admits = high >= 1 if choices.correction == "seq_mask" else low <= 1 <= high
  return (plain if admits else choices), 1.0


def _clip_of_one(low: float, high: float) -> float:
  return min(max(1.0, low), high)


def _without_ratio(choices: Choices, policy_is: set[str]) -> tuple[Choices, float]:
  """The same with ratios to the anchor = 1: mostly -A lp, the plain policy gradient."""
  plain = dataclasses.replace(
    choices, fn="policy_gradient", weight="none", level="token", kl_tau=0.0, anchor="sampler"
  )
  uncorrected = dataclasses.replace(plain, correction="none")
  fn = choices.fn
  if fn == "policy_gradient":
    low, high = choices.weight_low, choices.weight_high
    if choices.weight == "truncate":
      return plain, _clip_of_one(low, high)
    masked = choices.weight == "double_mask" and not low <= 1 <= high
    return (choices if masked else plain), 1.0
  if fn == "ppo_clip":
    admits = choices.dual_clip > 1 and choices.ratio_max > 1
    kept = choices.opsm_delta == float("inf") or ("sampler" in policy_is and choices.opsm_delta > 0)
    by_row = choices.level == "token" or choices.correction in ("none", "seq_truncate", "seq_mask")
    return (plain, 1.0) if admits and kept and by_row else (choices, 1.0)
  if fn == "truncated_ratio" and choices.ratio_max > 1:
    return uncorrected, 1.0
  if fn == "probability_gap" or fn == "soft_gate":
    return uncorrected, 1.0
  if fn == "regression" and choices.log_ratio == "sum":
    return uncorrected, 1.0
  if fn == "centred_squares" and choices.log_ratio == "sum":  # RLOO, as CoPG's authors note
    return dataclasses.replace(uncorrected, advantage="loo", shift=0.0, aggregation="seq_sum"), 1.0
  return choices, 1.0


def _with_correction_as_weight(choices: Choices, policy_is: set[str]) -> Choices:
  """-sg C(pi_q / mu) A lp with pi_q = pi is a truncated weight of the ratio to the sampler."""
  truncates = choices.correction in ("token_truncate", "seq_truncate")
  plain = choices.fn == "policy_gradient" and choices.weight == "none" and not choices.kl_tau
  if not (truncates and plain and "proximal" in policy_is):
    return choices
  by_token = choices.correction == "token_truncate"
  return dataclasses.replace(
    choices,
    correction="none",
    anchor="sampler",
    weight="truncate",
    weight_low=choices.correction_low if by_token else 0.0,
    weight_high=choices.correction_high,
    level="token" if by_token else "sequence",
  )


def _normalised(choices: Choices) -> tuple[Choices, float]:
  """Without the constant factors that are known."""
  factor = 1.0
  if choices.aggregation == "constant" and choices.max_tokens and choices.fn not in PAIRWISE:
    choices = dataclasses.replace(choices, aggregation="seq_sum")
    factor /= choices.max_tokens
  size = choices.group_size
  linear = choices.fn in ("policy_gradient", "ppo_clip") and not choices.kl_coef
  if choices.advantage == "loo" and linear and size > 1 and not choices.shift:
    choices = dataclasses.replace(choices, advantage="mean")
    factor *= size / (size - 1)
  return choices, factor


def _only_read(choices: Choices) -> Choices:
  """Every field that is not looked at as it is by default."""
  read = {"fn", *_READ[choices.fn], "drop_zero_variance", "overlong_cache"}
  if choices.fn in _CORRECTED:
    read |= {"correction", *_BY_CORRECTION.get(choices.correction, ())}
  if choices.fn == "policy_gradient":
    read |= set(_BY_WEIGHT.get(choices.weight, ()))
    if choices.weight not in ("truncate", "topr"):
      read.discard("level")
    if choices.weight == "none" and not choices.kl_tau:
      read.discard("anchor")
  if choices.fn not in PAIRWISE:
    read |= {"advantage", *_BY_ADVANTAGE.get(choices.advantage, ()), "shift", "aggregation"}
    read |= {"kl_coef", "kl"} if choices.kl_coef else set()
  if choices.overlong_cache or (choices.aggregation == "constant" and "aggregation" in read):
    read.add("max_tokens")
  if choices.anchor == "proximal" or ("correction" in read and choices.correction != "none"):
    read.add("proximal")
  return dataclasses.replace(_PLAIN, **{name: getattr(choices, name) for name in read})
