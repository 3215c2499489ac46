"""Metrics of an objective, defined in this folder's README. They do not affect the update."""

import math

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import induced_target, masked, ratios
from offpolicy_rl.losses.choices import Choices
from offpolicy_rl.losses.inputs import LossInputs, Prepared


def metrics(choices: Choices, inputs: LossInputs, prepared: Prepared) -> dict[str, jax.Array]:
  """Computes the metrics that apply to these choices; scalars."""
  mask, advantages = inputs.loss_mask, prepared.advantages
  lengths = masked.lengths(mask)
  valid = lengths > 0
  gap = ratios.log_ratio(inputs.policy_logprobs, inputs.sampler_logprobs, mask)
  values = {"advantage/abs_mean": masked.masked_mean(jnp.abs(advantages), valid)}
  if choices.fn == "ppo_clip" and choices.anchor == "sampler" and choices.level == "token":
    clipped = past_clip(gap, advantages, clip_low=choices.clip_low, clip_high=choices.clip_high)
    u, clipped = masked.row_sums(gap, clipped)
    values["clip_fraction"] = jnp.sum(clipped) / jnp.maximum(jnp.sum(lengths), 1)
  else:
    u = jnp.sum(gap, axis=-1)
  values |= log_ratio_metrics(u, valid)
  if inputs.teacher_logprobs is not None:
    away = ratios.log_ratio(inputs.sampler_logprobs, inputs.teacher_logprobs, mask)
    values["teacher/kl"] = masked.masked_mean(away, mask)
  if choices.needs_candidates and inputs.sampler_candidate_logprobs is not None:
    mass = jnp.sum(jnp.exp(inputs.sampler_candidate_logprobs), axis=-1)
    values["candidate_mass"] = masked.masked_mean(mass, mask)
  if choices.fn == "regression" and choices.anchor == "sampler":
    anchored = ratios.row_mean(gap, mask)[:, 0] if choices.log_ratio == "mean" else u
    values |= lambda_metrics(advantages - choices.beta * anchored, valid)
    if choices.group_size:
      counted = masked.has_tokens(lengths, inputs.group_ids)
      tables = (advantages, inputs.rewards, counted)
      advantages, rewards, counted = (x.reshape(-1, choices.group_size) for x in tables)
      values |= target_metrics(advantages, rewards, counted[:, 0], beta=choices.beta)
  return values


def log_ratio_metrics(u: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """Statistics of u [N], the log-ratio to the sampler, over the valid [N] completions."""
  mean = masked.masked_mean(u, valid)
  stderr = jnp.sqrt(masked.masked_mean((u - mean) ** 2, valid) / jnp.maximum(jnp.sum(valid), 1))
  quantiles = jnp.nanquantile(jnp.where(valid, u, jnp.nan), jnp.array([0.05, 0.5, 0.95]))
  return {
    "log_ratio/mean": mean,
    "log_ratio/max": masked.masked_max(u, valid),
    "log_ratio/q05": quantiles[0],
    "log_ratio/q50": quantiles[1],
    "log_ratio/q95": quantiles[2],
    "log_ratio/ess_fraction": ratios.effective_sample_size(u, valid),
    "alarm/memorising": (mean > 2 * stderr).astype(jnp.float32),
  }


def lambda_metrics(residual: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
  """lambda(t) = mean(A - beta u), shift included; residual [N]."""
  lam = masked.masked_mean(residual, valid)
  return {"lambda_hat": lam, "alarm/lambda_negative": (lam < 0).astype(jnp.float32)}


def target_metrics(
  advantages: jax.Array, rewards: jax.Array, counted: jax.Array, *, beta: jax.Array | float
) -> dict[str, jax.Array]:
  """Means over groups of statistics of the induced target and of the exponential one.

  Args:
    advantages: float [groups, G], shift included.
    rewards: float [groups, G].
    counted: bool [groups], False = was left out.
    beta: temperature, scalar.
  """
  # Advantages of a group without variance are 0 up to the rounding of the rewards' mean.
  atol = 8 * jnp.finfo(advantages.dtype).eps * jnp.max(jnp.abs(rewards))
  target = induced_target.solve(advantages, beta, atol=atol)
  nominal = induced_target.nominal(rewards, beta)
  mean = lambda of_groups: masked.masked_mean(of_groups, counted)
  return {
    "beta": jnp.asarray(beta, advantages.dtype),
    "regime/statistic": mean(target.regime_statistic),
    "regime/positive": mean(target.regime > 0),
    "regime/boundary": mean(target.regime == 0),
    "regime/negative": mean(target.regime < 0),
    "regime/collapsed": mean(target.collapsed),
    "target/lambda": mean(target.lam),
    "target/kl": mean(induced_target.reverse_kl(target.log_ratios)),
    "target/kl_nominal": mean(induced_target.reverse_kl(nominal)),
    "target/ess_fraction": mean(induced_target.effective_sample_fraction(target.log_ratios)),
  }


def past_clip(
  log_ratio: jax.Array, advantages: jax.Array, *, clip_low: float, clip_high: float
) -> jax.Array:
  """[N, M] 1.0 where the ratio is past the clip that binds for its row's advantage, else 0.0.

  log_ratio [N, M] is 0 outside the loss mask, where nothing is clipped.
  """
  sign = jnp.sign(advantages)[:, None]
  lowest = math.log1p(-clip_low) if clip_low < 1 else -math.inf
  above, below = log_ratio > math.log1p(clip_high), log_ratio < lowest
  return jnp.where(sign > 0, above, below & (sign < 0)).astype(log_ratio.dtype)
