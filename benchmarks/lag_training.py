"""Trains many policies of benchmarks/lag_world.py side by side, each at its own lag and seed.

A lane is one run. Everything that differs between the lanes of one program is a number (seed, lag,
mode, learning rate), so lanes are vectorised with `vmap`; what differs in kind (the objective's
choices) is compiled.

Lag: the batch of step t was sampled by version max(0, t - lag) (fixed), or by the last version
that is a multiple of the lag (periodic), exactly as replay/lag.py defines it. Batches wait in a
ring of MAX_LAG + 1 places.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import lag_world as world
from benchmarks import matched_beta
from offpolicy_rl import losses
from offpolicy_rl.losses import ratios

MAX_LAG = 256
EVERY = 32  # steps between evaluations; training metrics are means over them
MAX_GRAD_NORM = 1.0


class Lane(NamedTuple):
  """One run; arrays of shape [lanes] when vectorised."""

  seed: jax.Array  # int: the world, the first parameters, every sampled token
  lag: jax.Array  # int, 0 to MAX_LAG
  periodic: jax.Array  # bool: periodic, else fixed
  learning_rate: jax.Array  # float


class History(NamedTuple):
  """What a run shows, one value per EVERY steps. Held-out values are exact means over prompts."""

  accuracy: jax.Array  # held-out probability of a right completion = pass@1
  pass_at_16: jax.Array  # held-out
  entropy: jax.Array  # held-out, nats per completion
  entropy_correct: jax.Array  # held-out, among right completions, prompts weighted by accuracy
  reward: jax.Array  # of the batches trained on
  lambda_hat: jax.Array  # mean(A - beta u); 0 where the objective has no beta
  log_ratio: jax.Array  # mean u
  ess: jax.Array  # effective sample size of e^u, fraction of the batch
  lag: jax.Array  # updates between sampling and use


class _Carry(NamedTuple):
  params: dict
  sampler_params: dict  # periodic: the version that samples
  opt_state: optax.OptState
  ring: world.Completions  # [MAX_LAG + 1, ...]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(choices: losses.Choices, steps: int, target_kl: float, lanes: Lane) -> History:
  """Whole runs: choices and Lane of arrays [N] -> History of arrays [N, steps // EVERY + 1].

  target_kl > 0: every batch's beta is raised, from choices.beta, until the induced target of its
  groups is on average this close to the sampler, in nats.
  """
  one = functools.partial(_train_one, losses.objective(choices), steps, target_kl)
  return jax.vmap(one)(lanes)


def _train_one(objective: losses.Objective, steps: int, target_kl: float, lane: Lane) -> History:
  key = jax.random.key(lane.seed)
  world_key, init_key, sample_key = jax.random.split(key, 3)
  teacher_key, heldout_key = jax.random.split(world_key)
  teacher = world.make_teacher(teacher_key)
  heldout = world.draw_prompts(teacher, heldout_key, world.HELDOUT_PROMPTS)
  params = world.init_policy(init_key)
  optimizer = optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.scale_by_adam(0.9, 0.99))

  def draw(params, at_step, version):
    step_key = jax.random.fold_in(sample_key, at_step)
    return world.sample(params, teacher, step_key, version)

  def one_step(carry: _Carry, step):
    wanted = step + jnp.where(lane.periodic, 0, lane.lag)
    refresh = step % jnp.maximum(lane.lag, 1) == 0
    keep_old = lane.periodic & ~refresh
    sampler_params = jax.tree.map(
      lambda old, new: jnp.where(keep_old, old, new), carry.sampler_params, carry.params
    )
    version = jnp.where(keep_old, step - step % jnp.maximum(lane.lag, 1), step)
    fresh = draw(sampler_params, wanted, version)
    ring = jax.tree.map(lambda r, x: r.at[wanted % (MAX_LAG + 1)].set(x), carry.ring, fresh)
    batch = jax.tree.map(lambda r: r[step % (MAX_LAG + 1)], ring)
    gradient, found = _gradient(objective, target_kl, carry.params, batch, step)
    updates, opt_state = optimizer.update(gradient, carry.opt_state)
    params = jax.tree.map(lambda p, u: p - lane.learning_rate * u, carry.params, updates)
    return _Carry(params, sampler_params, opt_state, ring), found

  def evaluate(params):
    exact = world.evaluate(params, heldout)
    pass_at_16 = 1 - (1 - exact.accuracy) ** 16
    correct = jnp.sum(exact.accuracy * exact.entropy_correct) / jnp.sum(exact.accuracy)
    return (*map(jnp.mean, (exact.accuracy, pass_at_16, exact.entropy)), correct)

  def block(carry, first):
    carry, found = jax.lax.scan(one_step, carry, first + jnp.arange(EVERY))
    return carry, (*evaluate(carry.params), *map(jnp.mean, found))

  first_batches = jax.vmap(lambda i: draw(params, i, 0))(jnp.arange(MAX_LAG + 1))
  carry = _Carry(params, params, optimizer.init(params), first_batches)
  _, rows = jax.lax.scan(block, carry, jnp.arange(0, steps, EVERY))
  start = (*evaluate(params), *[jnp.nan] * (len(rows) - 4))
  curves = zip(start, rows, strict=True)
  return History(*[jnp.concatenate([jnp.array(first)[None], rest]) for first, rest in curves])


def _gradient(objective, target_kl: float, params, batch: world.Completions, step):
  """Gradient of the objective on a batch, and (reward, lambda_hat, mean u, ess, lag)."""
  group_ids = jnp.repeat(jnp.arange(world.PROMPTS_PER_STEP), world.GROUP_SIZE)

  def inputs_of(params):
    policy = world.logprobs(params, batch)
    versions = jnp.full(batch.tokens.shape, batch.version)
    return losses.LossInputs(
      policy_logprobs=policy,
      sampler_logprobs=batch.logprobs,
      loss_mask=jnp.ones(batch.tokens.shape, bool),
      rewards=batch.rewards,
      group_ids=group_ids,
      proximal_logprobs=ratios.proximal_logprobs(
        objective.choices.proximal, policy, batch.logprobs, versions, step
      ),
      versions=versions,
    )

  before, choices = inputs_of(params), objective.choices
  if target_kl:
    rewards = batch.rewards.reshape(-1, world.GROUP_SIZE)
    matched = matched_beta.beta_for_kl(rewards, None, target_kl, kappa=choices.kappa).beta
    choices = dataclasses.replace(choices, beta=jnp.maximum(choices.beta, matched))
    objective = losses.Objective(choices)
  prepared = objective.prepare(before)
  gradient = jax.grad(lambda p: objective.loss(inputs_of(p), prepared))(params)
  u = jnp.sum(before.policy_logprobs - batch.logprobs, axis=-1)
  lambda_hat = jnp.mean(prepared.advantages - choices.beta * u)
  if choices.fn != "regression":
    lambda_hat = jnp.zeros_like(lambda_hat)
  ess = ratios.effective_sample_size(u, jnp.ones(u.shape, bool))
  lag = jnp.float32(step - batch.version)
  return gradient, (jnp.mean(batch.rewards), lambda_hat, jnp.mean(u), ess, lag)
