"""One update, as a pure function of state and batch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from offpolicy_rl import types
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.losses import LossInputs, Objective, masked, ratios
from offpolicy_rl.model import decoder, lora, policy


@dataclasses.dataclass(frozen=True)
class StepChoices:
  """What a step is compiled for."""

  model: decoder.DecoderConfig
  objective: Objective
  optimizer: optax.GradientTransformation
  temperature: float
  microbatches: int
  logprob_chunk: int = 0  # columns whose logits exist at a time; 0 = all

  def whole(self, params, frozen):
    """All parameters of the policy: the trained ones, on their base where they are adapters."""
    return lora.join(frozen, params) if self.model.lora_rank else params

  def reference(self) -> "StepChoices":
    """For the frozen policy, which has no adapters."""
    return dataclasses.replace(self, model=lora.plain(self.model))

  def token_stats(self, params, tokens) -> policy.TokenStats:
    """Log-probabilities and entropy under `params` at the sampler's temperature."""
    return policy.token_stats(
      self.model, params, tokens, self.temperature, chunk=self.logprob_chunk
    )


def train_step(
  choices: StepChoices, state: TrainState, batch: types.Batch, reference_params
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Batch -> new state and metrics (scalars).

  Advantages and denominators come from the whole batch; the rows are then worked off in
  `choices.microbatches` parts whose gradients add up, so the split changes nothing but memory.

  Args:
    reference_params: parameters of the frozen initial policy, or None when the objective does not
      look at a reference. Adapters are trained on top of it: then it is always given, and serves
      as base and as reference without a second copy.
  """
  objective = choices.objective
  prepared = objective.prepare(_whole_inputs(batch, None))

  def rows_loss(params, part):
    rows, rows_prepared = part
    stats = choices.token_stats(choices.whole(params, reference_params), rows.tokens)
    inputs = _loss_inputs(choices, rows, stats.logprobs, reference_params, state.step)
    return objective.loss(inputs, rows_prepared), stats

  def add_part(gradients, part):
    (loss, stats), gradient = jax.value_and_grad(rows_loss, has_aux=True)(state.params, part)
    return jax.tree.map(jnp.add, gradients, gradient), (loss, stats)

  together = objective.choices.group_size if objective.choices.couples_rows else 1
  parts = jax.tree.map(lambda x: _split(x, choices.microbatches, together), (batch, prepared))
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  gradients, (losses, stats) = jax.lax.scan(add_part, zeros, parts)
  stats = jax.tree.map(lambda x: _join(x, together), stats)

  updates, opt_state = choices.optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    "loss": jnp.sum(losses),
    "grad_norm": optax.global_norm(gradients),
    "entropy": masked.masked_mean(stats.entropy, batch.loss_mask),
    **objective.metrics(_whole_inputs(batch, stats.logprobs), prepared),
    **_batch_metrics(batch, stats, state.step),
  }
  return TrainState(state.step + 1, params, opt_state), metrics


def supervised_step(
  choices: StepChoices, state: TrainState, batch: types.Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on demonstrations: mean negative log-likelihood per demonstration token, in nats."""

  def loss_of(params):
    stats = dataclasses.replace(choices, temperature=1.0).token_stats(params, batch.tokens)
    return -masked.masked_mean(stats.logprobs, batch.loss_mask)

  loss, gradients = jax.value_and_grad(loss_of)(state.params)
  updates, opt_state = choices.optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, opt_state), {"loss": loss}


@functools.partial(jax.jit, static_argnums=0)
def logprob_mismatch(
  choices: StepChoices, params, batch: types.Batch, version, frozen=None
) -> dict[str, jax.Array]:
  """Largest and mean |learner - sampler| logprob over the tokens that `params` = `version` drew.

  `frozen`: the base when `params` are adapters.
  """
  logprobs = choices.token_stats(choices.whole(params, frozen), batch.tokens).logprobs
  same = batch.loss_mask & (batch.versions == version)
  gap = jnp.abs(logprobs - batch.sampler_logprobs)
  return {
    "mismatch/max": jnp.max(jnp.where(same, gap, 0.0)),
    "mismatch/mean": masked.masked_mean(gap, same),
    "mismatch/tokens": jnp.sum(same),
  }


def compile_step(choices: StepChoices, state_shardings):
  """`train_step` jitted for a mesh; the old state's memory is reused."""
  return jax.jit(
    functools.partial(train_step, choices),
    donate_argnums=0,
    out_shardings=(state_shardings, None),
  )


def _loss_inputs(
  choices: StepChoices, rows: types.Batch, logprobs, reference_params, version
) -> LossInputs:
  """A micro-batch's inputs, with the log-probs of further policies where the objective asks."""
  wanted = choices.objective.choices
  inputs = _whole_inputs(rows, logprobs)
  if wanted.needs_reference:
    stats = choices.reference().token_stats(reference_params, rows.tokens)
    inputs = inputs._replace(reference_logprobs=jax.lax.stop_gradient(stats.logprobs))
  if wanted.needs_proximal:
    proximal = ratios.proximal_logprobs(
      wanted.proximal, logprobs, rows.sampler_logprobs, rows.versions, version
    )
    inputs = inputs._replace(proximal_logprobs=proximal)
  return inputs


def _whole_inputs(rows: types.Batch, logprobs) -> LossInputs:
  return LossInputs(
    policy_logprobs=logprobs,
    sampler_logprobs=rows.sampler_logprobs,
    loss_mask=rows.loss_mask,
    rewards=rows.rewards,
    group_ids=rows.group_ids,
    versions=rows.versions,
  )


def _batch_metrics(batch: types.Batch, stats: policy.TokenStats, step) -> dict[str, Any]:
  logprobs, entropy = stats
  correct = (batch.rewards > 0)[:, None]
  mean = masked.group_mean(batch.rewards, batch.group_ids)
  spread = masked.group_mean((batch.rewards - mean) ** 2, batch.group_ids)
  finite = jnp.all(jnp.isfinite(logprobs) | ~batch.loss_mask, axis=-1)
  on_policy = batch.loss_mask & (batch.versions == step)
  return {
    "reward": jnp.mean(batch.rewards),
    "groups_without_signal": jnp.mean(spread == 0),
    "completion_tokens": jnp.mean(jnp.sum(batch.loss_mask, axis=-1)),
    "tokens": jnp.sum(batch.valid_mask),
    "on_policy_fraction": jnp.sum(on_policy) / jnp.maximum(jnp.sum(batch.loss_mask), 1),
    "entropy_correct": masked.masked_mean(entropy, batch.loss_mask & correct),
    "first_nonfinite_row": jnp.where(jnp.all(finite), -1, jnp.argmin(finite)),
  }


def _split(x, parts: int, together: int):
  """[B, ...] -> [parts, B / parts, ...], `together` neighbouring rows staying so.

  Dealing them out in turn keeps a sharded batch in place.
  """
  dealt = x.reshape(-1, parts, together, *x.shape[1:]).swapaxes(0, 1)
  return dealt.reshape(parts, -1, *x.shape[1:])


def _join(x, together: int):
  """Inverse of `_split`."""
  dealt = x.reshape(x.shape[0], -1, together, *x.shape[2:]).swapaxes(0, 1)
  return dealt.reshape(-1, *x.shape[2:])
