"""The judgement: pure functions on arrays, no model and no configuration.

objective = losses.objective("beta_shift", beta=0.1)
loss, metrics = objective(losses.LossInputs(policy_logprobs, sampler_logprobs, ...))
"""

from offpolicy_rl.losses.objectives import PRESETS, LossInputs, Objective, objective

__all__ = ["PRESETS", "LossInputs", "Objective", "objective"]
