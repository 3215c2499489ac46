"""The judgement: pure functions on arrays, no model and no configuration.

objective = losses.objective("beta_shift", beta=0.1)
loss, metrics = objective(losses.LossInputs(policy_logprobs, sampler_logprobs, ...))
"""

import importlib

from offpolicy_rl.losses.choices import Choices
from offpolicy_rl.losses.presets import PRESETS, choose

__all__ = ["PRESETS", "Choices", "LossInputs", "Objective", "choose", "objective"]
_NEED_JAX = {"LossInputs": "inputs", "Objective": "objectives", "objective": "objectives"}


def __getattr__(name: str):
  """Loads JAX at the first use: checking a configuration must not wait for it."""
  if name not in _NEED_JAX:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"offpolicy_rl.losses.{_NEED_JAX[name]}"), name)
