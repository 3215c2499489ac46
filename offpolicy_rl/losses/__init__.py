"""Losses, advantages and weights: pure functions of arrays, no model and no configuration.

loss_per_row = losses.ppo_clip(policy_logprobs, anchor_logprobs, advantages, loss_mask)

A preset puts them together for a batch:

objective = losses.objective("beta_shift", beta=0.1)
loss, metrics = objective(losses.LossInputs(policy_logprobs, sampler_logprobs, ...))
"""

import importlib
from typing import Any

from offpolicy_rl.losses.choices import ARGUMENTS, Choices
from offpolicy_rl.losses.presets import PRESETS, choose

# Name -> module, imported at first use together with JAX, which checking a configuration avoids.
_MODULES = {
  **dict.fromkeys((*ARGUMENTS["fn"], "reference_kl", "row_log_ratio"), "functions"),
  **dict.fromkeys(("Objective", "objective"), "objectives"),
  "LossInputs": "inputs",
  "pessimistic_regularizer": "pessimism",
}
__all__ = ["PRESETS", "Choices", "choose", *_MODULES]


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
