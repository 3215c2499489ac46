"""The objectives of benchmarks/lag_language.py and lag_language_variants.py, as data."""

import dataclasses
from typing import Any

Value = float | None
BETAS = (0.03, 0.3)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One objective: a preset, fixed keys, and the key that is tuned."""

  label: str
  preset: str
  has_ratio: bool
  fixed: dict[str, Any]
  tuned: str = ""  # a key of the objective, or "clip": both bounds; "" = the learning rate alone
  values: tuple[Value, ...] = (None,)
  candidates: int = 0  # likeliest tokens whose log-probabilities samplers record


# The study. With one update per batch, as here, `tis` is `cispo` with another cap.
ENTRIES = (
  Entry("grpo", "grpo", True, {}),
  Entry("grpo_wide", "grpo", True, {}, "clip", (0.4, 0.8)),
  Entry("cispo", "cispo", True, {}, "weight_high", (1.28, 5.0)),
  Entry("m2po", "m2po", True, {}, "moment_max", (0.04, 0.16)),
  Entry("centering", "score_centering_tis", True, {}, "weight_high", (2.0, 5.0), candidates=16),
  Entry("copg", "copg", False, {}, "beta", BETAS),
  Entry("oapl", "oapl", False, {"scale": "half_over_beta", "beta1": 1.0}, "beta", BETAS),
  Entry("mean", "beta_shift", False, {"kappa": 0.0}, "beta", BETAS),
  Entry("shift", "beta_shift", False, {"kappa": 1.0}, "beta", BETAS),
)

# Those of the picture against lag, and of configs/sweeps/lag_x_objective.py: few, to be told apart.
SHOWN = ("grpo", "grpo_wide", "cispo", "mean", "shift")

# What lies between `grpo_wide` and `shift` as tuned for lag 64, and values of beta that tuning did
# not try: it went from 0.03 to 0.3 in one step.
_GATE = {"clip_low": 0.8, "clip_high": 0.8}
_SCORE = {"fn": "policy_gradient"}
_GATED = {"fn": "benchmarks.lag_language_variants:gated_regression", "beta": 0.03, **_GATE}
VARIANTS = (
  Entry("wide", "grpo", True, _GATE),
  Entry("wide, no std", "grpo", True, _GATE | {"advantage": "mean"}),
  Entry("wide, A + 0.1", "grpo", True, _GATE | {"shift": 0.1}),
  Entry("ratio <= 1.8, no gate", "grpo", True, _SCORE | {"weight": "truncate", "weight_high": 1.8}),
  Entry("no ratio, no gate", "grpo", False, _SCORE),
  Entry("no ratio, taper of A < 0", "topr", True, {"aggregation": "seq_mean"}),
  Entry("regression", "beta_shift", False, {"beta": 0.03, "kappa": 0.0}),
  Entry("regression, gate", "beta_shift", True, _GATED | {"kappa": 0.0}),
  Entry("shifted", "beta_shift", False, {"beta": 0.03, "kappa": 1.0}),
  Entry("shifted, gate", "beta_shift", True, _GATED | {"kappa": 1.0}),
  Entry("shifted, beta 0.1", "beta_shift", False, {"beta": 0.1, "kappa": 1.0}),
  Entry("regression, beta 0.1", "beta_shift", False, {"beta": 0.1, "kappa": 0.0}),
  Entry("copg, beta 0.1", "copg", False, {"beta": 0.1}),
  Entry("copg, beta 0.3", "copg", False, {"beta": 0.3}),
  Entry("shifted, beta 0.001", "beta_shift", False, {"beta": 0.001, "kappa": 1.0}),
  Entry("shifted, beta 0.0003", "beta_shift", False, {"beta": 0.0003, "kappa": 1.0}),
  Entry("regression, beta 0.001", "beta_shift", False, {"beta": 0.001, "kappa": 0.0}),
  Entry("oapl, beta 0.001", "oapl", False, {"scale": "half_over_beta", "beta1": 1, "beta": 1e-3}),
)
BY_LABEL = {entry.label: entry for entry in (*ENTRIES, *VARIANTS)}
