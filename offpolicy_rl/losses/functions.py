"""From log-probs and advantages to a loss per row. One small function each.

Every function takes (choices, inputs, prepared) and returns float [B]: the loss of each row, summed
over its tokens. The objective multiplies with `prepared.row_weights` [B] and adds up. Your own
function of that form is used through --config.objective.fn=my_module:my_function.
"""

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import masked, pairs, pessimism, ratios
from offpolicy_rl.losses.choices import Choices
from offpolicy_rl.losses.inputs import LossInputs, Prepared, required


def log_ratio(choices: Choices, inputs: LossInputs) -> jax.Array:
  """u [B]: log-ratio of the policy to the anchor, token sum (or mean) per row."""
  gap = _gap(choices, inputs)
  if choices.log_ratio == "mean":
    return ratios.row_mean(gap, inputs.loss_mask)[:, 0]
  return jnp.sum(gap, axis=-1)


def regression(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """(beta u - A)^2 / (2 beta) + the pessimistic regularizer; "plain" scale: times 2 beta.

  Equal weights of the rows and the token-sum in u are what makes the induced target Lambert's;
  dividing by the length changes the target itself.
  """
  beta = prepared.beta
  u = log_ratio(choices, inputs)
  loss = (beta * u - prepared.advantages) ** 2 / (2 * beta)
  if choices.kappa or choices.shift:
    loss += pessimism.pessimistic_regularizer(
      u, prepared.advantages, beta=beta, kappa=choices.kappa, dv=choices.shift
    )
  return loss * (2 * beta) if choices.scale == "plain" else loss


def policy_gradient(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-sg(w) (A - kl_tau d) lp per token: w from the anchor's ratio and from the correction."""
  advantage = shifted_advantages(choices, prepared)[:, None]
  weight = _correction(choices, inputs)
  if choices.weight != "none" or choices.kl_tau:
    gap = _gap(choices, inputs)
    weight *= ratios.gradient_weights(choices, gap, inputs.loss_mask, advantage, inputs.rewards)
    advantage = advantage - choices.kl_tau * jax.lax.stop_gradient(gap)
  return -masked.masked_sum(weight * advantage * inputs.policy_logprobs, inputs.loss_mask, -1)


def ppo_clip(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-min(min(r, ratio_max) A, C[1 - clip_low, 1 + clip_high](r) A) per token.

  r = exp(lp - la), or exp(mean_t (lp - la)) at level "sequence" (GSPO). dual_clip bounds the loss
  of A < 0 by -dual_clip A; correction weights and OPSM multiply from outside.
  """
  mask = inputs.loss_mask
  advantage = shifted_advantages(choices, prepared)[:, None]
  gap = _gap(choices, inputs)
  if choices.level == "sequence":
    gap = jnp.broadcast_to(ratios.row_mean(gap, mask), gap.shape)
  ratio = ratios.of(gap)
  clipped = ratios.clipped(ratio, 1 - choices.clip_low, 1 + choices.clip_high)
  if choices.ratio_max < float("inf"):
    ratio = jnp.minimum(ratio, choices.ratio_max)
  loss = -jnp.minimum(ratio * advantage, clipped * advantage)
  if choices.dual_clip < float("inf"):
    loss = jnp.where(advantage < 0, jnp.minimum(loss, -choices.dual_clip * advantage), loss)
  loss *= _correction(choices, inputs)
  if choices.opsm_delta < float("inf"):
    drift = ratios.gap(inputs.policy_logprobs, inputs.sampler_logprobs, mask)
    loss *= ratios.kept_rows(choices, drift, mask, advantage)
  return masked.masked_sum(loss, mask, -1)


def truncated_ratio(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-min(rho, ratio_max) A per token; no gradient where the ratio is truncated (AIPO)."""
  advantage = shifted_advantages(choices, prepared)[:, None]
  ratio = ratios.clipped(ratios.of(_gap(choices, inputs)), 0.0, choices.ratio_max)
  return -masked.masked_sum(ratio * advantage, inputs.loss_mask, -1)


def probability_gap(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-keep A rho + kl_tau d^2 per token, d = lp - la.

  keep drops tokens whose probability has already moved far along A: pi - mu > gap_high with A > 0,
  pi - mu < -gap_low with A <= 0; `gap_two_sided`: |pi - mu| > gap_high whatever A.
  """
  advantage = shifted_advantages(choices, prepared)[:, None]
  gap = _gap(choices, inputs)
  policy = jnp.where(inputs.loss_mask, inputs.policy_logprobs, 0.0)
  moved = jax.lax.stop_gradient(jnp.exp(policy) - jnp.exp(policy - gap))
  if choices.gap_two_sided:
    far = jnp.abs(moved) > choices.gap_high
  else:
    far = jnp.where(advantage > 0, moved > choices.gap_high, moved < -choices.gap_low)
  loss = jnp.where(far, 0.0, -advantage * ratios.of(gap)) + choices.kl_tau * gap**2
  return masked.masked_sum(loss, inputs.loss_mask, -1)


def soft_gate(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-(4 / tau) sigmoid(tau (r - 1)) A per token, tau = tau_high for A > 0, else tau_low (SAPO)."""
  advantage = shifted_advantages(choices, prepared)[:, None]
  tau = jnp.where(advantage > 0, choices.tau_high, choices.tau_low)
  gate = jax.nn.sigmoid(tau * (ratios.of(_gap(choices, inputs)) - 1)) * 4 / tau
  return -masked.masked_sum(gate * advantage, inputs.loss_mask, -1)


def centred_squares(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """The group's variance of beta u - r, / (2 beta): mean over pairs of half the squared difference.

  The residual is centred by itself, so lambda is 0 for any baseline. "plain" scale: times 2 beta.
  """
  beta, groups = prepared.beta, masked.renumbered(inputs.group_ids)
  residual = beta * log_ratio(choices, inputs) - prepared.rewards
  centred = residual - masked.group_mean(residual, groups)
  loss = centred**2 / jnp.maximum(masked.group_size(groups) - 1, 1) / (2 * beta)
  return loss * (2 * beta) if choices.scale == "plain" else loss


def pair_squares(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """(beta du - dr)^2 for the group's rows 0 and 1, 2 and 3, ...; d = difference in the pair."""
  partner, leads = pairs.adjacent(inputs.group_ids)
  residual = prepared.beta * log_ratio(choices, inputs) - prepared.rewards
  loss = jnp.where(leads, (residual - residual[partner]) ** 2, 0.0)
  return loss if choices.scale == "plain" else loss / (2 * prepared.beta)


def pair_dpo(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-log sigmoid(beta h), h = u_w - u_l of the group's best and worst row."""
  loser, wins = pairs.extremes(prepared.rewards, inputs.group_ids)
  u = log_ratio(choices, inputs)
  return jnp.where(wins, -jax.nn.log_sigmoid(prepared.beta * (u - u[loser])), 0.0)


def pair_ipo(choices: Choices, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """(h - 1 / (2 beta))^2, h = u_w - u_l of the group's best and worst row."""
  loser, wins = pairs.extremes(prepared.rewards, inputs.group_ids)
  u = log_ratio(choices, inputs)
  return jnp.where(wins, (u - u[loser] - 0.5 / prepared.beta) ** 2, 0.0)


def reference_kl(gap: jax.Array, estimator: str) -> jax.Array:
  """Estimators of KL(policy || reference) from x = lp - lr: k1 = x, k2 = x^2/2, k3 = e^-x + x - 1.

  http://joschu.net/blog/kl-approx.html; as a loss only k2 has the reverse KL's gradient on-policy.
  """
  if estimator == "k1":
    return gap
  if estimator == "k2":
    return 0.5 * gap**2
  return ratios.of(-gap) + gap - 1


def shifted_advantages(choices: Choices, prepared: Prepared) -> jax.Array:
  """A + kappa beta + shift [B]."""
  return prepared.advantages + choices.kappa * prepared.beta + choices.shift


def find(fn: str) -> Callable:
  """The function of that name here, or of a module of yours ("module:function").

  Raises:
    ValueError: no such module, or nothing in it that can be called.
  """
  if ":" not in fn:
    return globals()[fn]
  module, _, name = fn.partition(":")
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"objective.fn: got {fn!r}: {error}") from None
  if not callable(found):
    raise ValueError(f"objective.fn: got {fn!r}, which is {found!r:.60}, expected a function")
  return found


def _gap(choices: Choices, inputs: LossInputs) -> jax.Array:
  return ratios.gap(
    inputs.policy_logprobs, required(inputs, f"{choices.anchor}_logprobs"), inputs.loss_mask
  )


def _correction(choices: Choices, inputs: LossInputs) -> jax.Array | float:
  if choices.correction == "none":
    return 1.0
  proximal = required(inputs, "proximal_logprobs")
  return ratios.correction_weights(choices, proximal, inputs.sampler_logprobs, inputs.loss_mask)
