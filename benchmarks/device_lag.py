"""Objectives under fixed lag on a 10 M parameter transformer, lags and seeds side by side.

A lane is one run: a seed at a lag. All lanes of an objective are one program, vectorised with
`vmap`; they begin with the warm start of their seed. The batch of step t was sampled by version
max(0, t - lag), as in replay/lag.py.
"""

import collections
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import device_countdown as countdown
from offpolicy_rl import losses
from offpolicy_rl.losses import ratios

MAX_GRAD_NORM = 1.0
WARMUP = 40  # supervised steps in which the learning rate rises


class Setting(NamedTuple):
  """An objective: its preset, the keys that are not the preset's, the learning rate."""

  preset: str
  keys: Mapping[str, float]
  learning_rate: float = 1e-4


# As the study of a language model chose for lag 64 (results/lag_language.md).
SETTINGS: Mapping[str, Setting] = {
  "grpo": Setting("grpo", {}, 3e-5),
  "grpo_wide": Setting("grpo", {"clip_low": 0.8, "clip_high": 0.8}),
  "cispo": Setting("cispo", {"weight_high": 10.0}, 3e-5),
  "copg": Setting("copg", {"beta": 0.3}),
  "shift": Setting("beta_shift", {"beta": 0.1, "kappa": 1.0}),
}


class Study(NamedTuple):
  """How much is run."""

  size: countdown.Size = countdown.Size()
  seeds: int = 4
  lags: tuple[int, ...] = (64, 256)
  prompts: int = 8  # of a batch
  group_size: int = 8
  rate_factor: float = 1.0  # of every setting's learning rate
  updates: int = 800
  every: int = 40  # updates between points of the curve
  heldout: int = 64  # prompts of every evaluation
  completions: int = 4  # of each
  warm_rows: int = 128  # demonstrations of a step
  warm_rate: float = 1e-3
  warm_steps: int = 4000  # at most
  warm_goal: float = 0.3  # mean pass@1 at which the warm start ends
  seconds: float = 140.0  # after which no further block begins


SMALL = Study(
  size=countdown.Size(numbers=2, layers=2, width=32, heads=2),
  seeds=2,
  lags=(1, 3),
  prompts=2,
  group_size=4,
  rate_factor=30.0,
  updates=40,
  every=20,
  heldout=8,
  completions=2,
  warm_rows=32,
  warm_rate=5e-3,
  warm_steps=200,
)


class Batch(NamedTuple):
  """Groups as they were sampled."""

  prompts: jax.Array  # int32 [N, P], a copy per completion
  tokens: jax.Array  # int32 [N, M]
  logprobs: jax.Array  # float32 [N, M]
  rewards: jax.Array  # float32 [N], 0 or 1


def _optimizer(learning_rate: float, warmup: int = 1) -> optax.GradientTransformation:
  rate = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1)
  return optax.chain(optax.clip_by_global_norm(MAX_GRAD_NORM), optax.adam(rate, b2=0.99))


def _trainer(study: Study, name: str) -> optax.GradientTransformation:
  return _optimizer(study.rate_factor * SETTINGS[name].learning_rate)


def _sampled(study: Study, params: dict, key: jax.Array, prompts: int, each: int) -> Batch:
  problem_key, token_key = jax.random.split(key)
  asked, _ = countdown.problems(study.size, problem_key, prompts)
  made = countdown.sample(study.size, params, asked, token_key, group_size=each)
  asked = jnp.repeat(asked, each, axis=0)
  rewards = countdown.is_right(asked, made.tokens).astype(jnp.float32)
  return Batch(asked, made.tokens, made.logprobs, rewards)


def _key(stream: int, *numbers: jax.Array) -> jax.Array:
  return functools.reduce(jax.random.fold_in, numbers, jax.random.key(stream))


@functools.partial(jax.jit, static_argnums=0)
def evaluate(study: Study, params: dict, seeds: jax.Array) -> dict[str, jax.Array]:
  """pass@1 on the same held-out prompts every time, and the entropy of a completion in nats.

  Parameters and seeds have the lanes in front, so has what is returned.
  """

  def lane(params, seed):
    found = _sampled(study, params, _key(2, seed), study.heldout, study.completions)
    entropy = -jnp.mean(jnp.sum(found.logprobs, axis=1))
    return {"pass@1": jnp.mean(found.rewards), "entropy": entropy}

  return jax.vmap(lane)(params, seeds)


class Curve:
  """What lanes show along the way."""

  def __init__(self):
    self.steps: list[int] = []
    self._rows: list[dict[str, np.ndarray]] = []

  def add(self, step: int, found: Mapping[str, jax.Array], metrics: Sequence[Mapping]) -> None:
    """A point: an evaluation, and the means of the metrics since the last one."""
    means = {key: np.mean([row[key] for row in metrics], axis=0) for key in (metrics or [{}])[0]}
    self.steps.append(step)
    self._rows.append({key: np.asarray(x) for key, x in found.items()} | means)

  def last(self, name: str) -> float:
    """Mean over the lanes at the last point."""
    return float(np.mean(self._rows[-1][name]))

  def lanes(self, which: slice) -> dict[str, list[list[float]]]:
    """{name: values of each of these lanes}; metrics begin with the second point."""
    by_name = {name: [row[name] for row in self._rows if name in row] for name in self._rows[-1]}
    return {
      name: [[float(f"{x:.4g}") for x in lane] for lane in np.stack(values, axis=1)[which]]
      for name, values in by_name.items()
    }


# ---------------------------------------------------------------- warm start


@functools.partial(jax.jit, static_argnums=0)
def _begin(study: Study, seeds: jax.Array) -> tuple[dict, Any]:
  def lane(seed):
    params = countdown.init(study.size, jax.random.key(seed))
    return params, _optimizer(study.warm_rate, WARMUP).init(params)

  return jax.vmap(lane)(seeds)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _imitate(study: Study, params: dict, opt_state: Any, seeds: jax.Array, step: jax.Array):
  """One supervised update of every lane -> (params, opt_state, {"loss": nats per token})."""

  def lane(params, opt_state, seed):
    prompts, answers = countdown.problems(study.size, _key(1, seed, step), study.warm_rows)

    def loss_of(params):
      return -jnp.mean(countdown.logprobs(params, prompts, answers))

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, opt_state = _optimizer(study.warm_rate, WARMUP).update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, {"loss": loss}

  return jax.vmap(lane)(params, opt_state, seeds)


def warm_start(study: Study, path: pathlib.Path) -> dict:
  """Imitates demonstrations with all seeds until pass@1 is at the goal; writes the parameters.

  Returns:
    The curve, a list per seed and name, and whether the goal was reached in the time.
  """
  seeds, curve, began, metrics = jnp.arange(study.seeds), Curve(), time.monotonic(), []
  params, opt_state = _begin(study, seeds)
  for step in range(1, study.warm_steps + 1):
    params, opt_state, found = _imitate(study, params, opt_state, seeds, jnp.int32(step))
    metrics.append(found)
    if step % study.every == 0:
      curve.add(step, evaluate(study, params, seeds), metrics)
      metrics.clear()
      if curve.last("pass@1") >= study.warm_goal or time.monotonic() - began > study.seconds:
        break
  leaves = jax.tree.leaves(params)
  with path.open("wb") as file:
    np.savez(file, *[np.asarray(x) for x in leaves])
  return {
    "parameters": sum(x[0].size for x in leaves),
    "seconds": time.monotonic() - began,
    "reached_goal": curve.last("pass@1") >= study.warm_goal,
    "step": curve.steps,
    **curve.lanes(slice(None)),
  }


def _kept(study: Study, path: pathlib.Path) -> dict:
  like = jax.eval_shape(lambda: countdown.init(study.size, jax.random.key(0)))
  with np.load(path) as kept:
    leaves = [kept[f"arr_{number}"] for number in range(len(kept.files))]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


# ---------------------------------------------------------------- reinforcement learning


@functools.partial(jax.jit, static_argnums=0)
def _draw(study: Study, params: dict, seeds: jax.Array, steps: jax.Array) -> Batch:
  """Every lane's batch for its step, under its parameters."""

  def lane(params, seed, step):
    return _sampled(study, params, _key(3, seed, step), study.prompts, study.group_size)

  return jax.vmap(lane)(params, seeds, steps)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _update(study: Study, name: str, params: dict, opt_state: Any, batch: Batch):
  """One update of every lane -> (params, opt_state, metrics under the parameters before)."""
  setting = SETTINGS[name]
  objective = losses.objective(setting.preset, **setting.keys)

  def lane(params, opt_state, batch):
    def loss_of(params):
      inputs = losses.LossInputs(
        policy_logprobs=countdown.logprobs(params, batch.prompts, batch.tokens),
        sampler_logprobs=batch.logprobs,
        loss_mask=jnp.ones(batch.tokens.shape, bool),
        rewards=batch.rewards,
        group_ids=jnp.repeat(jnp.arange(study.prompts), study.group_size),
      )
      return objective.loss(inputs, objective.prepare(inputs)), inputs.policy_logprobs

    gradient, policy = jax.grad(loss_of, has_aux=True)(params)
    updates, opt_state = _trainer(study, name).update(gradient, opt_state)
    u = jnp.sum(policy - batch.logprobs, axis=1)
    ess = ratios.effective_sample_size(u, jnp.ones(u.shape, bool))
    metrics = {"reward": jnp.mean(batch.rewards), "log_ratio": jnp.mean(u), "ess": ess}
    return optax.apply_updates(params, updates), opt_state, metrics

  return jax.vmap(lane)(params, opt_state, batch)


class Waiting:
  """Batches that were sampled and not used yet: lag of them for every lag.

  Lanes are ordered by lag, `seeds` of each.
  """

  def __init__(self, study: Study, params: dict, seeds: jax.Array):
    """Version 0 samples for the first steps of every lane."""
    self._study, self._seeds = study, seeds
    self._lags = jnp.repeat(jnp.array(study.lags), study.seeds)
    self._queues = [collections.deque() for _ in study.lags]
    for step in range(max(study.lags)):
      made = _draw(study, params, seeds, jnp.full(seeds.shape, step))
      for number, lag in enumerate(study.lags):
        if step < lag:
          self._queues[number].append(self._part(made, number))

  def _part(self, batch: Batch, number: int) -> Batch:
    own = slice(number * self._study.seeds, (number + 1) * self._study.seeds)
    return jax.tree.map(lambda x: x[own], batch)

  def next(self, params: dict, step: int) -> Batch:
    """The batch of a step; `params`, of version `step`, sample for step + lag."""
    made = _draw(self._study, params, self._seeds, step + self._lags)
    for number, queue in enumerate(self._queues):
      queue.append(self._part(made, number))
    parts = [queue.popleft() for queue in self._queues]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def train(name: str, study: Study, warm: pathlib.Path) -> dict:
  """Trains an objective of SETTINGS at every lag with every seed, from the warm start's file.

  Returns:
    The setting, and per lag pass@1, entropy and metrics of each seed along the way. Ends before
    `study.updates` where the time is up; `updates` says how many were made.
  """
  count, began, curve, metrics = len(study.lags), time.monotonic(), Curve(), []
  seeds = jnp.tile(jnp.arange(study.seeds), count)
  params = jax.tree.map(lambda x: jnp.concatenate([x] * count), _kept(study, warm))
  opt_state = jax.vmap(_trainer(study, name).init)(params)
  waiting = Waiting(study, params, seeds)
  curve.add(0, evaluate(study, params, seeds), [])
  for step in range(study.updates):
    batch = waiting.next(params, step)
    params, opt_state, found = _update(study, name, params, opt_state, batch)
    metrics.append(found)
    if (step + 1) % study.every == 0:
      curve.add(step + 1, evaluate(study, params, seeds), metrics)
      metrics.clear()
      if time.monotonic() - began > study.seconds:
        break
  own = lambda number: slice(number * study.seeds, (number + 1) * study.seeds)
  return {
    "setting": SETTINGS[name]._asdict(),
    "rate_factor": study.rate_factor,
    "updates": curve.steps[-1],
    "seconds": time.monotonic() - began,
    "step": curve.steps,
    "lags": {str(lag): curve.lanes(own(number)) for number, lag in enumerate(study.lags)},
  }
