"""What a step says about its objective. All of it is defined in the table of this folder's README.

Nothing here has a gradient or changes an update.
"""

import math

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import functions, induced_target, masked, ratios
from offpolicy_rl.losses.choices import Choices
from offpolicy_rl.losses.inputs import LossInputs, Prepared


def log_ratio_metrics(u: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """How far the policy is from the sampler: u [B] of the completions that are valid [B]."""
  mean = masked.masked_mean(u, valid)
  quantiles = jnp.nanquantile(jnp.where(valid, u, jnp.nan), jnp.array([0.05, 0.5, 0.95]))
  return {
    "log_ratio/mean": mean,
    "log_ratio/max": masked.masked_max(u, valid),
    "log_ratio/q05": quantiles[0],
    "log_ratio/q50": quantiles[1],
    "log_ratio/q95": quantiles[2],
    "log_ratio/ess_fraction": ratios.effective_sample_size(u, valid),
    "alarm/memorising": (mean > 0).astype(jnp.float32),
  }


def lambda_metrics(residual: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """lambda(t) = mean(A - beta u), shift included; residual [B]."""
  found = masked.masked_mean(residual, valid)
  return {"lambda_hat": found, "alarm/lambda_negative": (found < 0).astype(jnp.float32)}


def target_metrics(
  choices: Choices, inputs: LossInputs, advantages: jax.Array, beta: jax.Array
) -> dict[str, jax.Array]:
  """The induced target of each group, beside the exponential one: means over groups.

  Args:
    advantages: float [B], shift included; rows in consecutive groups of choices.group_size.
    beta: float [B].
  """
  table = advantages.reshape(-1, choices.group_size)
  rewards = inputs.rewards.reshape(table.shape)
  beta = beta.reshape(table.shape)[:, 0]
  # Advantages of a group without variance are 0 up to the rounding of the rewards' mean.
  atol = 8 * jnp.finfo(table.dtype).eps * jnp.max(jnp.abs(rewards))
  target = induced_target.solve(table, beta, atol=atol)
  nominal = induced_target.nominal(rewards, beta)
  return {
    "beta": jnp.mean(beta),
    "regime/statistic": jnp.mean(target.regime_statistic),
    "regime/positive": jnp.mean(target.regime > 0),
    "regime/boundary": jnp.mean(target.regime == 0),
    "regime/negative": jnp.mean(target.regime < 0),
    "regime/collapsed": jnp.mean(target.collapsed),
    "target/lambda": jnp.mean(target.lam),
    "target/kl": jnp.mean(induced_target.reverse_kl(target.log_ratios)),
    "target/kl_nominal": jnp.mean(induced_target.reverse_kl(nominal)),
    "target/ess_fraction": jnp.mean(induced_target.effective_sample_fraction(target.log_ratios)),
  }


def past_clip(choices: Choices, gap: jax.Array, advantages: jax.Array) -> jax.Array:
  """[B, T] 1.0 where the ratio is past the clip that binds for its row's advantage, else 0.0.

  gap [B, T] is 0 outside the loss mask, where nothing is clipped.
  """
  sign = jnp.sign(advantages)[:, None]
  above, below = gap > math.log1p(choices.clip_high), gap < _log1p(-choices.clip_low)
  return jnp.where(sign > 0, above, below & (sign < 0)).astype(gap.dtype)


def _log1p(x: float) -> float:
  return math.log1p(x) if x > -1 else -math.inf


def of(choices: Choices, inputs: LossInputs, prepared: Prepared) -> dict[str, jax.Array]:
  """Every metric that makes sense for the choices; scalars."""
  mask = inputs.loss_mask
  lengths = masked.lengths(mask)
  valid = lengths > 0
  advantages = functions.shifted_advantages(choices, prepared)
  gap = ratios.gap(inputs.policy_logprobs, inputs.sampler_logprobs, mask)
  found = {"advantage/abs_mean": masked.masked_mean(jnp.abs(advantages), valid)}
  if choices.fn == "ppo_clip" and choices.anchor == "sampler" and choices.level == "token":
    u, clipped = masked.row_sums(gap, past_clip(choices, gap, advantages))
    found["clip_fraction"] = jnp.sum(clipped) / jnp.maximum(jnp.sum(lengths), 1)
  else:
    u = jnp.sum(gap, axis=-1)
  found |= log_ratio_metrics(u, valid)
  if choices.fn == "regression" and choices.anchor == "sampler":
    anchored = ratios.row_mean(gap, mask)[:, 0] if choices.log_ratio == "mean" else u
    found |= lambda_metrics(advantages - prepared.beta * anchored, valid)
    if choices.group_size:
      found |= target_metrics(choices, inputs, advantages, prepared.beta)
  return found
