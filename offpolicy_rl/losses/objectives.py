"""Objectives as compositions of a few choices; a preset is a choice of each with its source.

Symbols: lp, lb, lq, lr = log-probability of the sampled token under the policy, the sampler's
(behaviour) policy mu, the proximal policy and the reference; m = loss mask; u = sum_t m (lp - la)
with la the anchor's; A = advantage. Losses are minimised.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import advantages, masked, pessimism


class LossInputs(NamedTuple):
  """What an objective sees. B rows, T tokens; groups may have any size, rows may be empty."""

  policy_logprobs: jax.Array  # float [B, T], differentiated
  sampler_logprobs: jax.Array  # float [B, T], as recorded when sampling
  loss_mask: jax.Array  # bool [B, T], True = contributes
  rewards: jax.Array  # float [B]
  group_ids: jax.Array  # int [B], in [0, B)
  reference_logprobs: jax.Array | None = None  # float [B, T]
  proximal_logprobs: jax.Array | None = None  # float [B, T]
  versions: jax.Array | None = None  # int [B, T]


class Prepared(NamedTuple):
  """What depends on the whole batch and not on the policy. Given it, losses add up over rows."""

  advantages: jax.Array  # float [B]
  row_weights: jax.Array  # float [B]
  token_weights: jax.Array  # float [B, T], 0 outside the loss mask


@dataclasses.dataclass(frozen=True)
class Objective:
  """One composition of choices. Call it with LossInputs for (loss, metrics).

  For micro-batches: `prepare` once on the whole batch, then sum `loss` over slices of rows.
  """

  name: str
  source: str  # paper: title, arXiv
  link: str  # "regression" | "ppo_clip"
  advantage: str  # "mean" | "std" | "vhat"
  aggregation: str = "seq_sum"  # denominators: masked.token_weights
  anchor: str = (
    "sampler"  # whose log-probs the ratio is against: "sampler" | "proximal" | "reference"
  )
  beta: float = 0.1  # regression: temperature
  scale: str = "half_over_beta"  # regression: residual^2 / (2 beta), or "plain": residual^2
  kappa: float = 0.0  # regression: pessimistic shift in units of beta
  beta1: float = 1.0  # vhat: temperature of the value
  std_eps: float = 1e-4  # std: added to the deviation
  clip_low: float = 0.2  # ppo_clip: ratio kept in [1 - clip_low, 1 + clip_high]
  clip_high: float = 0.2
  kl_coef: float = 0.0  # weight of KL(policy || reference), added to any link
  kl: str = "k3"  # its estimator: "k1" | "k2" | "k3"

  @property
  def needs_reference(self) -> bool:
    """Whether `reference_logprobs` must be given."""
    return self.kl_coef > 0 or self.anchor == "reference"

  def __call__(self, inputs: LossInputs) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a whole batch."""
    prepared = self.prepare(inputs.rewards, inputs.group_ids, inputs.loss_mask)
    return self.loss(inputs, prepared), self.metrics(inputs, prepared)

  def prepare(self, rewards: jax.Array, group_ids: jax.Array, loss_mask: jax.Array) -> Prepared:
    """Advantages and weights of a whole batch."""
    if self.advantage == "mean":
      advantage = advantages.mean(rewards, group_ids)
    elif self.advantage == "std":
      advantage = advantages.std(rewards, group_ids, eps=self.std_eps)
    else:
      advantage = advantages.vhat(rewards, group_ids, beta1=self.beta1)
    weights = masked.token_weights(loss_mask, self.aggregation)
    return Prepared(advantage, masked.row_weights(loss_mask), weights)

  def loss(self, inputs: LossInputs, prepared: Prepared) -> jax.Array:
    """The rows' share of the batch's loss: adds up over any split into rows."""
    link = _LINKS[self.link]
    loss = link(self, inputs, prepared)
    if self.kl_coef > 0:
      gap = inputs.policy_logprobs - _required(inputs, "reference")
      kl = reference_kl(gap, self.kl)
      loss += self.kl_coef * masked.masked_sum(prepared.token_weights * kl, inputs.loss_mask)
    return loss

  def metrics(self, inputs: LossInputs, prepared: Prepared) -> dict[str, jax.Array]:
    """Scalars about a whole batch; no gradient is meant to flow through them."""
    valid = masked.row_is_valid(inputs.loss_mask)
    gap = inputs.policy_logprobs - inputs.sampler_logprobs
    u = masked.masked_sum(gap, inputs.loss_mask, axis=-1)
    scaled = jnp.where(valid, jnp.exp(u - masked.masked_max(u, valid)), 0.0)
    count = jnp.maximum(jnp.sum(valid), 1)
    found = {
      "log_ratio/mean": masked.masked_mean(u, valid),
      "log_ratio/max": masked.masked_max(u, valid),
      "log_ratio/token_abs_max": masked.masked_max(jnp.abs(gap), inputs.loss_mask),
      "log_ratio/ess_fraction": jnp.sum(scaled) ** 2
      / jnp.maximum(jnp.sum(scaled**2), 1e-30)
      / count,
      "advantage/abs_mean": masked.masked_mean(jnp.abs(prepared.advantages), valid),
    }
    if self.link == "regression":
      residual = prepared.advantages + self.kappa * self.beta - self.beta * _log_ratio(self, inputs)
      found["lambda_hat"] = masked.masked_mean(residual, valid)
    if self.link == "ppo_clip":
      ratio = jnp.exp(inputs.policy_logprobs - _required(inputs, self.anchor))
      sign = jnp.sign(prepared.advantages)[:, None]
      clipped = jnp.where(sign > 0, ratio > 1 + self.clip_high, ratio < 1 - self.clip_low)
      found["clip_fraction"] = masked.masked_mean(clipped & (sign != 0), inputs.loss_mask)
    return found


def _required(inputs: LossInputs, whose: str) -> jax.Array:
  """The anchor's log-probs; a missing one is an error, never zeros."""
  logprobs = getattr(inputs, f"{whose}_logprobs")
  if logprobs is None:
    raise ValueError(f"{whose}_logprobs: got None, but this objective needs them")
  return logprobs


def _log_ratio(choices: Objective, inputs: LossInputs) -> jax.Array:
  """u [B]: token-sum log-ratio of the policy to the anchor."""
  gap = inputs.policy_logprobs - _required(inputs, choices.anchor)
  return masked.masked_sum(gap, inputs.loss_mask, axis=-1)


def regression(choices: Objective, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """mean (beta u - A)^2 / (2 beta) + pessimistic regularizer; "plain" scale: times 2 beta.

  The equal weights of the rows and the token-sum in u are what makes the induced target Lambert's;
  dividing by the length would change the target itself.
  """
  beta = choices.beta
  u = _log_ratio(choices, inputs)
  residual = beta * u - prepared.advantages
  loss = jnp.sum(prepared.row_weights * residual**2) / (2 * beta)
  if choices.kappa != 0:
    loss += pessimism.pessimistic_regularizer(
      u, prepared.advantages, prepared.row_weights, beta=beta, kappa=choices.kappa
    )
  return loss * (2 * beta) if choices.scale == "plain" else loss


def ppo_clip(choices: Objective, inputs: LossInputs, prepared: Prepared) -> jax.Array:
  """-min(r A, clip(r, 1 - low, 1 + high) A) per token, r = exp(lp - anchor)."""
  ratio = jnp.exp(inputs.policy_logprobs - _required(inputs, choices.anchor))
  ratio = jnp.where(inputs.loss_mask, ratio, 1.0)
  advantage = prepared.advantages[:, None]
  clipped = jnp.clip(ratio, 1 - choices.clip_low, 1 + choices.clip_high)
  return -jnp.sum(prepared.token_weights * jnp.minimum(ratio * advantage, clipped * advantage))


def reference_kl(gap: jax.Array, estimator: str) -> jax.Array:
  """Estimators of KL(policy || reference) from x = lp - lr: k1 = x, k2 = x^2/2, k3 = e^-x + x - 1.

  http://joschu.net/blog/kl-approx.html; as a loss only k2 has the reverse KL's gradient on-policy.
  """
  if estimator == "k1":
    return gap
  if estimator == "k2":
    return 0.5 * gap**2
  return jnp.exp(-gap) + gap - 1


_LINKS = {"regression": regression, "ppo_clip": ppo_clip}

PRESETS = {
  preset.name: preset
  for preset in (
    Objective(
      name="beta_shift",
      source="arXiv 2605.28150: ratio-free regression with the beta-shifted mean, "
      "loss mean (beta u - (r - mean r + kappa beta))^2 / (2 beta)",
      link="regression",
      advantage="mean",
      kappa=1.0,
    ),
    Objective(
      name="oapl",
      source="OAPL, arXiv 2602.19362: mean (beta2 u - (r - Vhat))^2 with "
      "Vhat = beta1 log mean exp(r / beta1); `beta` is the paper's beta2",
      link="regression",
      advantage="vhat",
      beta=1e-3,
      beta1=1.0,
      scale="plain",
    ),
    Objective(
      name="grpo",
      source="DeepSeekMath (GRPO), arXiv 2402.03300: clipped ratio to the policy that sampled, "
      "A = (r - mean r) / std r, mean over each row's tokens",
      link="ppo_clip",
      advantage="std",
      aggregation="seq_mean",
    ),
  )
}


def objective(name: str, **overrides) -> Objective:
  """A preset with some of its choices replaced; None keeps the preset's.

  Raises:
    ValueError: unknown preset or choice.
  """
  if name not in PRESETS:
    raise ValueError(f"objective.name: {name!r}, expected one of {sorted(PRESETS)}")
  given = {key: value for key, value in overrides.items() if value is not None}
  unknown = set(given) - {field.name for field in dataclasses.fields(Objective)}
  if unknown:
    raise ValueError(f"objective: unknown choice {sorted(unknown)[0]!r}")
  return dataclasses.replace(PRESETS[name], **given)
