"""The simplest form of an objective under a configuration, and presets that coincide. No JAX.

Ratios that are always 1 drop out of a gradient. With one update per batch the proximal policy pi_q
is the policy pi itself, so a clip of pi / pi_q never acts and only the correction pi / mu remains;
on-policy, mu is the policy, too. `reduced` writes such an objective as the simplest choices with
the same gradient, up to a constant factor.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from offpolicy_rl.losses.choices import ARGUMENTS, GROUP_WEIGHTS, PAIRWISE, WEIGHTED, Choices

_LABELS = ("name", "formula", "source", "differs")
_PLAIN = Choices(name="", formula="", source="")
_SQUARES = ("regression", "centred_squares", "pair_squares")


class Setting(NamedTuple):
  """Facts about a run that decide which ratios are 1."""

  updates: int = 1  # per batch
  on_policy: bool = False  # the sampler's policy is the one that is updated: no lag, same numbers


ONE_UPDATE = Setting()


class Reduced(NamedTuple):
  """Gradient of an objective = factor * gradient of `choices`."""

  choices: Choices
  factor: float


def reduced(choices: Choices, setting: Setting = ONE_UPDATE) -> Reduced:
  """The simplest choices with the same gradient; equal ones coincide.

  Assumes groups of equal size (choices.group_size if given) without empty completions. Your own
  function stays as it is.
  """
  if choices.fn not in ARGUMENTS["fn"]:
    return Reduced(choices, 1.0)
  shift = choices.shift + choices.kappa * choices.beta
  simple, halved = _halved(dataclasses.replace(choices, shift=shift, kappa=0.0, name=""))
  policy_is = _same_as_policy(simple, setting)
  simple, corrected = _without_correction(simple, policy_is)
  simple, weighted = _without_ratio(simple, policy_is)
  simple, normalised = _normalised(_with_correction_as_weight(simple, policy_is))
  return Reduced(_only_used(simple), halved * corrected * weighted * normalised)


def coinciding(
  presets: Iterable[Choices], setting: Setting = ONE_UPDATE
) -> list[list[tuple[str, float]]]:
  """Groups of two or more whose gradients are equal up to a factor: (name, factor) of each."""
  groups: dict[Choices, list[tuple[str, float]]] = {}
  for choices in presets:
    simple, factor = reduced(choices, setting)
    groups.setdefault(simple, []).append((choices.name, factor))
  return [group for group in groups.values() if len(group) > 1]


def in_words(choices: Choices) -> str:
  """The function and every value that is not the default: "policy_gradient (weight=truncate)"."""
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
  kl_coef = choices.kl_coef / factor  # the scale does not apply to it
  return dataclasses.replace(choices, scale="half_over_beta", kl_coef=kl_coef), factor


def _without_correction(choices: Choices, policy_is: set[str]) -> tuple[Choices, float]:
  """Drops the weight of ratios to the sampler where these are 1, so that it is a constant."""
  if choices.fn not in WEIGHTED or "sampler" not in policy_is:
    return choices, 1.0
  if choices.opsm_delta >= 0:
    choices = dataclasses.replace(choices, opsm_delta=float("inf"))
  low, high = choices.correction_low, choices.correction_high
  plain = dataclasses.replace(choices, correction="none")
  if choices.correction in ("token_truncate", "seq_truncate"):
    return plain, _clip_of_one(low if choices.correction == "token_truncate" else 0.0, high)
  admits = high >= 1 if choices.correction == "seq_mask" else low <= 1 <= high
  return (plain if admits else choices), 1.0


def _clip_of_one(low: float, high: float) -> float:
  return min(max(1.0, low), high)


def _without_ratio(choices: Choices, policy_is: set[str]) -> tuple[Choices, float]:
  """Drops ratios to the anchor where these are 1: mostly -A lp, the policy gradient, is left."""
  fn, factor = choices.fn, 1.0
  anchor = "sampler" if fn == "score_centering" else choices.anchor
  if anchor not in policy_is:
    return choices, 1.0
  weighted = dataclasses.replace(
    choices, fn="policy_gradient", weight="none", level="token", kl_tau=0.0, anchor="sampler"
  )
  plain = dataclasses.replace(weighted, correction="none", opsm_delta=float("inf"))
  truncates = choices.weight == "truncate"
  if fn in WEIGHTED:
    low, high = choices.weight_low, choices.weight_high
    if truncates:
      factor = _clip_of_one(low, high)
    kept = choices.weight not in ("double_mask", "veto") or low <= 1 <= high
    kept = kept and choices.weight not in GROUP_WEIGHTS  # not a ratio of two policies
    by_row = choices.level == "token" or choices.correction in ("none", "seq_truncate", "seq_mask")
    unclipped = choices.dual_clip > 1 and choices.ratio_max > 1 and by_row
    if not kept or (fn == "ppo_clip" and not unclipped):
      return choices, 1.0
    return (weighted if fn == "ppo_clip" else dataclasses.replace(weighted, fn=fn)), factor
  if fn == "score_centering":  # the coefficients of candidates are 0
    return plain, _clip_of_one(0.0, choices.weight_high) if truncates else 1.0
  if fn == "centred_squares" and choices.log_ratio == "sum":  # RLOO, as CoPG's authors note
    return dataclasses.replace(plain, advantage="loo", shift=0.0, aggregation="seq_sum"), 1.0
  same = {
    "truncated_ratio": choices.ratio_min < 1 < choices.ratio_max,
    "probability_gap": True,
    "soft_gate": True,
    "regression": choices.log_ratio == "sum",
  }
  return (plain if same.get(fn) else choices), 1.0


def _with_correction_as_weight(choices: Choices, policy_is: set[str]) -> Choices:
  """-sg C(pi_q / mu) A lp with pi_q = pi is a truncated weight of the ratio to the sampler."""
  truncates = choices.correction in ("token_truncate", "seq_truncate")
  linear = choices.fn == "distillation" or (choices.fn == "policy_gradient" and not choices.kl_tau)
  plain = linear and choices.weight == "none"
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
  """Moves known constant factors out of the choices."""
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


def _only_used(choices: Choices) -> Choices:
  """Sets every key that makes no difference to its default."""
  return dataclasses.replace(_PLAIN, **{key: getattr(choices, key) for key in choices.used()})
