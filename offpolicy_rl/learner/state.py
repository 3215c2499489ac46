"""The learner's state, born sharded, and its optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from offpolicy_rl import types
from offpolicy_rl.model import decoder, lora, policy, sharding


class TrainState(NamedTuple):
  """Everything that an update changes."""

  step: jax.Array  # int32, version of the parameters
  params: Any  # the trained ones: all, or only the adapters (model/lora.py)
  opt_state: Any


class Optimizer(NamedTuple):
  """Like `optax.GradientTransformation`, with the memory that its state is kept in."""

  init: Callable
  update: Callable  # (gradients, state, params, good) -> (updates, state)
  in_host_memory: bool = False


def make_optimizer(
  *,
  learning_rate: float,
  num_steps: int,
  warmup_steps: int = 0,
  schedule: str = "constant",
  adam: tuple[float, float, float] = (0.9, 0.99, 1e-8),
  weight_decay: float = 0.0,
  max_grad_norm: float = 1.0,
  in_host_memory: bool = False,
) -> Optimizer:
  """AdamW (arXiv 1711.05101) behind a clip of the gradient's global norm.

  `adam`: decay of the first and second moment, and epsilon.
  `in_host_memory`: its moments (twice the parameters' size) are on the devices only in updates.
  """
  if schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(
      0.0 if warmup_steps else learning_rate,
      learning_rate,
      warmup_steps,
      max(num_steps, warmup_steps + 1),
    )
  else:
    rate = optax.linear_schedule(
      0.0 if warmup_steps else learning_rate, learning_rate, max(warmup_steps, 1)
    )
  adamw = optax.chain(
    optax.clip_by_global_norm(max_grad_norm), optax.adamw(rate, *adam, weight_decay=weight_decay)
  )

  def update(gradients, state, params, good=True):
    """Adam's update; if `good` (bool, may be traced) is False, none and the same state."""
    updates, new = adamw.update(gradients, state, params)
    return jax.tree.map(
      lambda x, otherwise: jnp.where(good, x, otherwise),
      (updates, new),
      (jax.tree.map(jnp.zeros_like, updates), state),
    )

  def update_from_host(gradients, state, params, good=True):
    on_device = jax.device_put(state, jax.memory.Space.Device)
    updates, state = update(gradients, on_device, params, good)
    return updates, jax.device_put(state, jax.memory.Space.Host)

  return Optimizer(adamw.init, update_from_host if in_host_memory else update, in_host_memory)


def shapes(config: decoder.DecoderConfig, optimizer: Optimizer) -> TrainState:
  """Shape and dtype of every leaf, without allocating arrays."""
  return jax.eval_shape(lambda: _fresh(config, optimizer, jax.random.key(0)))


def shardings(config: decoder.DecoderConfig, mesh: Mesh, optimizer: Optimizer) -> TrainState:
  """NamedSharding of every leaf, without allocating arrays."""
  return _shardings(shapes(config, optimizer), mesh, optimizer)


def _shardings(like: TrainState, mesh, optimizer) -> TrainState:
  on_device = policy.param_shardings(mesh, like)
  if not optimizer.in_host_memory:
    return on_device
  to_host = lambda x: x.with_memory_kind("pinned_host")
  return on_device._replace(opt_state=jax.tree.map(to_host, on_device.opt_state))


def create(
  config: decoder.DecoderConfig, mesh: Mesh, optimizer: Optimizer, seed: int
) -> TrainState:
  """Makes a fresh state; every array is created on the devices that keep it."""
  make = lambda key: _fresh(config, optimizer, key)
  return _init(make, mesh, shardings(config, mesh, optimizer), seed)


def create_params(config: decoder.DecoderConfig, mesh: Mesh, seed: int) -> policy.Params:
  """Makes fresh parameters, like those of `create`."""
  shardings = policy.param_shardings(mesh, policy.shapes(config))
  return _init(lambda key: policy.init(config, key), mesh, shardings, seed)


def _init(make, mesh, shardings, seed: int):
  # On CPU this level compiles in a quarter of the time, to the same bits.
  quick = {"xla_backend_optimization_level": 2}
  options = quick if mesh.devices.flat[0].platform == "cpu" else None
  return jax.jit(make, out_shardings=shardings, compiler_options=options)(jax.random.key(seed))


def from_params(params: policy.Params, optimizer: Optimizer, mesh: Mesh) -> TrainState:
  """Makes the state of step 0 from parameters, whose memory is reused."""
  init = lambda params: TrainState(jnp.int32(0), params, optimizer.init(params))
  shardings = _shardings(jax.eval_shape(init, params), mesh, optimizer)
  return jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)


def _fresh(config: decoder.DecoderConfig, optimizer, key) -> TrainState:
  params = lora.trained(config, policy.init(config, key))
  return TrainState(jnp.int32(0), params, optimizer.init(params))


def place_batch(mesh: Mesh, batch: types.Batch) -> types.Batch:
  """Puts host arrays on the devices, splitting the rows or completions of each part.

  Every process must have the whole batch.
  """

  def place(x):
    split = sharding.batch_sharding(mesh, x.ndim)
    return jax.make_array_from_callback(x.shape, split, lambda index: x[index])

  return jax.tree.map(place, batch)
