"""The training step, a pure function of state and batch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from offpolicy_rl import types
from offpolicy_rl.learner.state import Optimizer, TrainState
from offpolicy_rl.losses import LossInputs, Objective, masked, ratios
from offpolicy_rl.model import cost, decoder, lora, mixture, policy, sharding


@dataclasses.dataclass(frozen=True)
class StepChoices:
  """Everything that a step is compiled for."""

  model: decoder.DecoderConfig
  objective: Objective
  optimizer: Optimizer
  temperature: float
  logprob_chunk: int = 0  # columns whose logits exist at the same time; 0 = all
  shown: int = 0  # completions whose log-probabilities are among the metrics
  minibatches: int = 1  # consecutive parts of a batch, of complete groups, with an update each
  epochs: int = 1  # passes over the batch
  ess_target: float = 0.0  # share of the batch below which the update is smaller; 0 = never

  @property
  def updates(self) -> int:
    """Optimizer updates per batch."""
    return self.minibatches * self.epochs

  def flops(self, work: cost.Work) -> int:
    """Flops of `train_step` for a batch of this work.

    In every epoch the policy goes forward and backward, and the reference forward if there is one.
    In a step of several updates the policy goes forward once more, before the first.
    """
    references = self.epochs if self.objective.choices.needs_reference else 0
    forward = references + (self.updates > 1)
    return self.epochs * cost.train_flops(self.model, work) + forward * cost.forward_flops(
      self.model, work
    )

  def all_params(self, params: policy.Params, frozen: policy.Params | None) -> policy.Params:
    """All parameters of the policy: the trained ones, with the base if they are adapters."""
    if not self.model.lora_rank:
      return params
    assert frozen is not None, "adapters need their base"
    return lora.join(frozen, params)

  def reference(self) -> "StepChoices":
    """The choices for the frozen policy, which has no adapters."""
    return dataclasses.replace(self, model=lora.base_config(self.model))

  def token_stats(self, params: policy.Params, part: types.Batch) -> policy.TokenStats:
    """Statistics [N, M] of one part, under `params` at this temperature; 0 outside the mask."""
    stats = policy.token_stats(
      self.model, params, part.rows, self.temperature, chunk=self.logprob_chunk
    )
    return jax.tree.map(lambda x: _by_completion(x, part), stats)


def train_step(
  choices: StepChoices,
  state: TrainState,
  batch: types.Batch,
  reference_params: policy.Params | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Updates the state with a batch; returns the new state and metrics.

  Metrics are scalars. If choices.shown > 0, they include `policy_logprobs` [shown, M] of the first
  completions, and per completion [A * N] `row_entropy` and `row_log_ratio`, the mean
  |policy - sampler| log-probability of a token; all under the policy before the step.

  In a step of several updates the proximal policy is the policy before the step, `loss` and
  `grad_norm` are means over updates, and other metrics are of the batch before the first update.

  An update whose loss or gradient is not finite changes nothing, is counted in `updates_skipped`
  and excluded from these means. If all are skipped, the state's step stays the same.

  Args:
    batch: its parts are processed in turn; a minibatch consists of several parts.
    reference_params: parameters of the frozen initial policy, the reference of the objective and
      the base of adapters; None if neither is needed.
  """
  update = functools.partial(_update, choices, state.step, reference_params)
  if choices.updates == 1:
    (params, opt_state), (loss, grad_norm, stats) = update(
      (state.params, state.opt_state), (batch, None)
    )
    made = _is_finite(loss, grad_norm).astype(jnp.int32)
  else:
    stats = _stats_before(choices, state.params, batch, reference_params)
    split = lambda x: x.reshape(choices.minibatches, -1, *x.shape[1:])
    minibatches = jax.tree.map(split, (batch, stats.logprobs))

    def epoch(carry, _):
      return jax.lax.scan(lambda c, part: _without_stats(update(c, part)), carry, minibatches)

    carry = (state.params, state.opt_state)
    (params, opt_state), losses_and_norms = jax.lax.scan(epoch, carry, length=choices.epochs)
    finite = _is_finite(*losses_and_norms)
    made = jnp.sum(finite)
    loss, grad_norm = (jnp.sum(jnp.where(finite, x, 0.0)) / made for x in losses_and_norms)
  metrics = {"loss": loss, "grad_norm": grad_norm, "updates_skipped": choices.updates - made}
  metrics |= _metrics(choices, batch, jax.tree.map(_join, stats), state.step)
  return TrainState(state.step + (made > 0), params, opt_state), metrics


def _metrics(choices: StepChoices, batch: types.Batch, stats: policy.TokenStats, step) -> dict:
  """Metrics of a batch under the policy before the step, whose `stats` are [A * N, M]."""
  completions = _completions(batch)
  prepared = choices.objective.prepare(_batch_inputs(completions, None))
  metrics = {
    "entropy": masked.masked_mean(stats.entropy, completions.loss_mask),
    **choices.objective.metrics(_batch_inputs(completions, stats.logprobs), prepared),
    **_batch_metrics(completions, stats, step),
    "tokens": jnp.sum(batch.rows.segments > 0),
    "filled_fraction": jnp.mean(batch.rows.segments > 0),
  }
  if choices.shown:  # small, so every process has it; the first one writes it
    mask, gaps = completions.loss_mask, jnp.abs(stats.logprobs - completions.sampler_logprobs)
    metrics |= {
      "policy_logprobs": sharding.constrain(stats.logprobs[: choices.shown]),
      "row_entropy": sharding.constrain(masked.masked_mean(stats.entropy, mask, -1)),
      "row_log_ratio": sharding.constrain(masked.masked_mean(gaps, mask, -1)),
    }
  return metrics


def _is_finite(loss, grad_norm):
  return jnp.isfinite(loss) & jnp.isfinite(grad_norm)


def _update(choices: StepChoices, version, reference_params, carry, minibatch):
  """Makes one update; returns ((params, opt_state), (loss, gradient norm, TokenStats)).

  `carry`: (params, opt_state); `minibatch`: (batch, lq or None). Advantages and denominators come
  from the minibatch; then its parts are processed in turn and their gradients summed.
  """
  (params, opt_state), (batch, proximal) = carry, minibatch
  objective = choices.objective
  completions = _completions(batch)
  if choices.minibatches > 1:
    completions = completions._replace(group_ids=masked.renumbered(completions.group_ids))
    batch = batch._replace(group_ids=completions.group_ids.reshape(batch.group_ids.shape))
  prepared = objective.prepare(_batch_inputs(completions, None))

  def part_loss(params, part):
    part, part_prepared, part_proximal = part
    stats = choices.token_stats(choices.all_params(params, reference_params), part)
    inputs = _loss_inputs(choices, part, stats.logprobs, reference_params, version, part_proximal)
    inputs = inputs._replace(candidate_logprobs=stats.candidate_logprobs)
    return objective.loss(inputs, part_prepared), stats._replace(candidate_logprobs=None)

  def add_part(gradients, part):
    (loss, stats), gradient = jax.value_and_grad(part_loss, has_aux=True)(params, part)
    return jax.tree.map(jnp.add, gradients, gradient), (loss, stats)

  split = lambda x: x.reshape(*batch.rewards.shape, *x.shape[1:])
  zeros = jax.tree.map(jnp.zeros_like, params)
  parts = (batch, jax.tree.map(split, prepared), proximal)
  gradients, (losses, stats) = jax.lax.scan(add_part, zeros, parts)
  loss, grad_norm = jnp.sum(losses), optax.global_norm(gradients)
  finite = _is_finite(loss, grad_norm)
  updates, opt_state = choices.optimizer.update(gradients, opt_state, params, finite)
  if choices.ess_target:
    scale = _step_scale(choices.ess_target, completions, _join(stats.logprobs))
    updates = jax.tree.map(lambda x: jnp.where(finite, scale, 1.0) * x, updates)
  params = optax.apply_updates(params, updates)
  return (params, opt_state), (loss, grad_norm, stats)


def _step_scale(target: float, completions: types.Batch, logprobs: jax.Array) -> jax.Array:
  """sqrt(min(1, e / target)) of e = effective sample size of pi(y) / mu(y) over their number.

  VCPO (arXiv 2602.17616), where the learning rate is multiplied by it. logprobs: [A * N, M].
  """
  mask = completions.loss_mask
  pair = (ratios.bounded(logprobs), ratios.bounded(completions.sampler_logprobs))
  u = jnp.sum(ratios.log_ratio(*pair, mask), -1)
  fraction = ratios.effective_sample_size(u, jnp.any(mask, -1))
  return jnp.sqrt(jnp.minimum(1.0, fraction / target))


def _without_stats(updated):
  carry, (loss, grad_norm, _) = updated
  return carry, (loss, grad_norm)


def _stats_before(choices: StepChoices, params, batch: types.Batch, reference_params):
  """TokenStats [A, N, M] of all parts, from a separate forward pass, without candidates."""
  full = choices.all_params(params, reference_params)
  without = lambda stats: stats._replace(candidate_logprobs=None)
  return jax.lax.map(lambda part: without(choices.token_stats(full, part)), batch)


def supervised_step(
  choices: StepChoices, state: TrainState, batch: types.Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on demonstrations: mean negative log-likelihood per demonstration token, in nats."""
  part = jax.tree.map(lambda x: x[0], batch)

  def loss_of(params):
    stats = dataclasses.replace(choices, temperature=1.0).token_stats(params, part)
    return -masked.masked_mean(stats.logprobs, part.loss_mask)

  loss, gradients = jax.value_and_grad(loss_of)(state.params)
  updates, opt_state = choices.optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, opt_state), {"loss": loss}


@functools.partial(jax.jit, static_argnums=0)
def logprob_mismatch(
  choices: StepChoices,
  params: policy.Params,
  batch: types.Batch,
  version: int | jax.Array,
  frozen: policy.Params | None = None,
) -> dict[str, jax.Array]:
  """Largest and mean |learner - sampler| logprob over the tokens that `version` sampled.

  row_mismatch [A * N]: the mean of each completion; NaN if that version sampled none of it.
  `params`: of that version; `frozen`: the base if they are adapters.
  """
  full = choices.all_params(params, frozen)
  logprobs = jax.lax.map(lambda part: choices.token_stats(full, part).logprobs, batch)
  same = batch.loss_mask & (batch.versions == version)
  gap = jnp.abs(logprobs - batch.sampler_logprobs)
  return {
    "mismatch/max": jnp.max(jnp.where(same, gap, 0.0)),
    "mismatch/mean": masked.masked_mean(gap, same),
    "mismatch/tokens": jnp.sum(same),
    "row_mismatch": sharding.constrain(
      _join(jnp.where(jnp.any(same, -1), masked.masked_mean(gap, same, -1), jnp.nan))
    ),
  }


@functools.partial(jax.jit, static_argnums=0)
def router_metrics(
  choices: StepChoices,
  params: policy.Params,
  batch: types.Batch,
  frozen: policy.Params | None = None,
) -> dict[str, jax.Array]:
  """Computes the load of a mixture's experts over the batch, see `mixture.load_metrics`."""
  full = choices.all_params(params, frozen)
  loads = jax.lax.map(lambda part: policy.router_loads(choices.model, full, part.rows), batch)
  return mixture.load_metrics(jax.tree.map(lambda x: jnp.sum(x, axis=0), loads))


@functools.partial(jax.jit, static_argnums=0, static_argnames="num_groups")
def gradient_noise(
  choices: StepChoices,
  params: policy.Params,
  batch: types.Batch,
  version: int | jax.Array,
  *,
  num_groups: int,
) -> dict[str, jax.Array]:
  """Compares the gradients of a batch's groups, each times their number: their mean is the batch's.

  `squared_norm` of that mean; `variance`, the mean squared distance of a group's gradient from it
  (unbiased, summed over all parameters). Their ratio does not depend on the loss's scale. The
  quotient of true values is the simple noise scale in groups (McCandlish et al., arXiv 1812.06162).

  Args:
    params: of `version`, all of them trained.
    batch: of one part.
  """
  part = jax.tree.map(lambda x: x[0], batch)
  prepared = choices.objective.prepare(_batch_inputs(part, None))

  def group_loss(params, group):
    stats = choices.token_stats(params, part)
    inputs = _loss_inputs(choices, part, stats.logprobs, None, version, None)
    inputs = inputs._replace(candidate_logprobs=stats.candidate_logprobs)
    weights = jnp.where(part.group_ids == group, num_groups * prepared.row_weights, 0.0)
    return choices.objective.loss(inputs, prepared._replace(row_weights=weights))

  gradients = jax.lax.map(lambda group: jax.grad(group_loss)(params, group), jnp.arange(num_groups))
  mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), gradients)
  deviations = jax.tree.map(lambda x, m: x - m[None], gradients, mean)
  return {
    "squared_norm": optax.global_norm(mean) ** 2,
    "variance": optax.global_norm(deviations) ** 2 / (num_groups - 1),
  }


def compile_step(choices: StepChoices, state_shardings: TrainState) -> jax.stages.Wrapped:
  """Jits `train_step` for a mesh; the old state's memory is reused."""
  return jax.jit(
    functools.partial(train_step, choices), donate_argnums=0, out_shardings=(state_shardings, None)
  )


def _loss_inputs(
  choices: StepChoices, part: types.Batch, logprobs, reference_params, version, before
) -> LossInputs:
  """A part's inputs, with the log-probabilities of the policies that the objective needs.

  `before`: those of the policy before the step's first update; None = this is the first.
  """
  objective = choices.objective.choices
  inputs = _batch_inputs(part, logprobs)
  if objective.needs_reference:
    stats = choices.reference().token_stats(reference_params, part)
    inputs = inputs._replace(reference_logprobs=jax.lax.stop_gradient(stats.logprobs))
  if objective.needs_proximal:
    before = logprobs if before is None else before
    proximal = ratios.proximal_logprobs(
      objective.proximal, before, part.sampler_logprobs, part.versions, version
    )
    inputs = inputs._replace(proximal_logprobs=proximal)
  return inputs


def _batch_inputs(rows: types.Batch, logprobs) -> LossInputs:
  return LossInputs(
    policy_logprobs=logprobs,
    sampler_logprobs=rows.sampler_logprobs,
    loss_mask=rows.loss_mask,
    rewards=rows.rewards,
    group_ids=rows.group_ids,
    versions=rows.versions,
    sampler_candidate_logprobs=rows.candidate_logprobs,
    teacher_logprobs=rows.teacher_logprobs,
  )


def _batch_metrics(batch: types.Batch, stats: policy.TokenStats, step) -> dict[str, Any]:
  logprobs, entropy = stats.logprobs, stats.entropy
  correct = (batch.verdicts > 0)[:, None]
  tokens, groups = masked.lengths(batch.loss_mask), batch.group_ids
  mean = lambda of_rows: masked.masked_mean(of_rows, masked.has_tokens(tokens, groups))
  finite = jnp.all(jnp.isfinite(logprobs) | ~batch.loss_mask, axis=-1)
  on_policy = batch.loss_mask & (batch.versions == step)
  return {
    "reward": mean(batch.rewards),
    "verdict": mean(batch.verdicts),
    "groups_without_signal": mean(~masked.group_varies(batch.verdicts, groups)),
    "completion_tokens": mean(tokens),
    "on_policy_fraction": jnp.sum(on_policy) / jnp.maximum(jnp.sum(tokens), 1),
    "entropy_correct": masked.masked_mean(entropy, batch.loss_mask & correct),
    "first_nonfinite_row": jnp.where(jnp.all(finite), -1, jnp.argmin(finite)),
  }


def _completions(batch: types.Batch) -> types.Batch:
  """The completions of all parts, [A * N, ...], without their rows."""
  without: Any = None
  return jax.tree.map(_join, batch._replace(rows=without))


def _by_completion(x, part: types.Batch):
  """Scored tokens [B, Q, ...] -> tokens of completions [N, M, ...], 0 outside the loss mask."""
  chosen = x.reshape(-1, *x.shape[2:])[part.places]
  mask = part.loss_mask.reshape(*part.loss_mask.shape, *(1,) * (x.ndim - 2))
  return jnp.where(mask, chosen, 0.0)


def _join(x):
  """[A, N, ...] -> [A * N, ...]."""
  return x.reshape(-1, *x.shape[2:])
