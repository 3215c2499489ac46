"""Trains many policies of benchmarks/lag_world.py side by side, each at its own lag and seed.

A lane is one run. Everything that differs between the lanes of one program is a number (seed, lag,
mode, learning rate, the number that is tuned), so lanes are vectorised with `vmap`; what differs in
kind (the objective's functions) is compiled.

Lag: the batch of step t was sampled by version max(0, t - lag) (fixed), or by the last version
that is a multiple of the lag (periodic), exactly as replay/lag.py defines it. Batches wait in a
ring of MAX_LAG + 1 places.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
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
MEAN_BETA1 = 1e3  # at which vhat is the mean of rewards of 0 and 1 to 2e-4


class Lane(NamedTuple):
  """One run; arrays of shape [lanes] when vectorised."""

  seed: jax.Array  # int: the world, the first parameters, every sampled token
  lag: jax.Array  # int, 0 to MAX_LAG
  periodic: jax.Array  # bool: periodic, else fixed
  learning_rate: jax.Array  # float
  value: jax.Array  # float: the number that is tuned, see RULES
  kappa: jax.Array  # float: added to the objective's kappa


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


class Seen(NamedTuple):
  """Facts about a batch that a rule may use."""

  rewards: jax.Array  # float [PROMPTS_PER_STEP, GROUP_SIZE]
  log_ratios: jax.Array  # float [PROMPTS_PER_STEP * GROUP_SIZE]: u
  lag: jax.Array  # float []: updates since the batch was sampled


Rule = Callable[[losses.Choices, jax.Array | float, Seen], losses.Choices]


def _clip(choices: losses.Choices, value: jax.Array | float, _: Seen) -> losses.Choices:
  """The same distance down and up. Above 1 nothing is clipped below: ratios are positive."""
  return dataclasses.replace(choices, clip_low=value, clip_high=value)


def _coupled(choices: losses.Choices, value: jax.Array | float, _: Seen) -> losses.Choices:
  """One temperature for the target and for the baseline."""
  return dataclasses.replace(choices, beta=value, beta1=value)


def _coupled_or_mean(
  choices: losses.Choices, value: jax.Array | float, seen: Seen
) -> losses.Choices:
  """The same, but the mean baseline (vhat's limit) where a batch's lambda would be negative."""
  values = value * jax.nn.logsumexp(seen.rewards / value, axis=1, b=1 / world.GROUP_SIZE)
  lambda_hat = jnp.mean(seen.rewards) - jnp.mean(values) - value * jnp.mean(seen.log_ratios)
  beta1 = jnp.where(lambda_hat < 0, MEAN_BETA1, value)
  return dataclasses.replace(choices, beta=value, beta1=beta1)


def _beta_by_lag(choices: losses.Choices, value: jax.Array | float, seen: Seen) -> losses.Choices:
  """beta = max(the choices' own, value / lag)."""
  beta = jnp.maximum(choices.beta, value / jnp.maximum(seen.lag, 1))
  return dataclasses.replace(choices, beta=beta)


def _shift_by_lag(choices: losses.Choices, value: jax.Array | float, seen: Seen) -> losses.Choices:
  """shift = value / lag, in units of reward."""
  return dataclasses.replace(choices, shift=value / jnp.maximum(seen.lag, 1))


def _target_kl(choices: losses.Choices, value: jax.Array | float, seen: Seen) -> losses.Choices:
  """beta is raised until the groups' induced target is on average `value` nats from the sampler."""
  matched = matched_beta.beta_for_kl(seen.rewards, None, value, kappa=choices.kappa).beta
  return dataclasses.replace(choices, beta=jnp.maximum(choices.beta, matched))


# Other names of what is tuned than the fields of losses.Choices, which need no rule.
RULES: Mapping[str, Rule] = {
  "": lambda choices, value, seen: choices,
  "clip": _clip,
  "beta=beta1": _coupled,
  "beta=beta1, or mean": _coupled_or_mean,
  "beta_x_lag": _beta_by_lag,
  "shift_x_lag": _shift_by_lag,
  "target_kl": _target_kl,
}


def with_value(
  choices: losses.Choices, tuned: str, value: jax.Array | float, seen: Seen
) -> losses.Choices:
  """The choices with what is tuned set to a value: a field, or whatever the rule says."""
  rule = RULES.get(tuned)
  return rule(choices, value, seen) if rule else dataclasses.replace(choices, **{tuned: value})


class _Carry(NamedTuple):
  params: dict
  sampler_params: dict  # periodic: the version that samples
  opt_state: optax.OptState
  ring: world.Completions  # [MAX_LAG + 1, ...]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train(choices: losses.Choices, steps: int, tuned: str, lanes: Lane) -> History:
  """Whole runs: choices and Lane of arrays [N] -> History of arrays [N, steps // EVERY + 1].

  tuned: the field of losses.Choices, or the rule, that takes the lanes' values; "" for none.
  """
  return jax.vmap(functools.partial(_train_one, choices, steps, tuned))(lanes)


def _train_one(choices: losses.Choices, steps: int, tuned: str, lane: Lane) -> History:
  lane_choices = dataclasses.replace(choices, kappa=choices.kappa + lane.kappa)
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
    gradient, found = _gradient(lane_choices, tuned, lane.value, carry.params, batch, step)
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


def _gradient(choices: losses.Choices, tuned: str, value, params, batch, step):
  """Gradient of the objective on a batch, and (reward, lambda_hat, mean u, ess, lag)."""
  group_ids = jnp.repeat(jnp.arange(world.PROMPTS_PER_STEP), world.GROUP_SIZE)
  lag = jnp.float32(step - batch.version)
  u = jnp.sum(world.logprobs(params, batch) - batch.logprobs, axis=-1)
  seen = Seen(batch.rewards.reshape(-1, world.GROUP_SIZE), u, lag)
  choices = with_value(choices, tuned, value, seen)
  objective = losses.Objective(choices)

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
        choices.proximal, policy, batch.logprobs, versions, step
      ),
      versions=versions,
    )

  before = inputs_of(params)
  prepared = objective.prepare(before)
  gradient = jax.grad(lambda p: objective.loss(inputs_of(p), prepared))(params)
  lambda_hat = jnp.mean(prepared.advantages - choices.beta * u)
  if choices.fn != "regression":
    lambda_hat = jnp.zeros_like(lambda_hat)
  ess = ratios.effective_sample_size(u, jnp.ones(u.shape, bool))
  return gradient, (jnp.mean(batch.rewards), lambda_hat, jnp.mean(u), ess, lag)
