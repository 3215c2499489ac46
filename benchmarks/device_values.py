"""Does an accelerator compute what the CPU computes? Kernels, gradients, updates, sampling.

The reference is the CPU of the same process, in float32 with plain attention and full precision.
Everything else runs the same batch with the same parameters on the first device, with every kernel
that it has (model/attention.py). Errors are |a - b| / |b| over all numbers together.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import learner_step
from benchmarks import sampler as sampler_benchmark
from offpolicy_rl import losses, types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import attention, decoder, policy, sharding
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.sampler import sizing, stopping


class Form(NamedTuple):
  """A way to compute the same."""

  attention: str
  dtype: str
  precision: str  # of float32 products: "highest", or "default", which may round their inputs
  bound: float  # largest error that is no fault


_FULL = Form(attention.PLAIN, "float32", "highest", 1e-4)
_ROUNDED = Form(attention.PLAIN, "float32", "default", 2e-2)
_HALF = Form(attention.PLAIN, "bfloat16", "default", 5e-2)
FORMS = {
  "cpu": (_HALF,),
  "gpu": (_FULL, _ROUNDED, _HALF, _HALF._replace(attention=attention.CUDNN)),
  "tpu": (
    *(_FULL, _ROUNDED, _HALF),
    _FULL._replace(attention=attention.SPLASH),
    _HALF._replace(attention=attention.SPLASH),
  ),
}


class Size(NamedTuple):
  """Of the comparison."""

  layers: int = 4
  width: int = 512
  batch: learner_step.Size = learner_step.Size(rows=16, prompt=32, completion=96)
  updates: int = 4
  sampled_dtypes: tuple[str, ...] = ("float32", "bfloat16")


SMALL = Size(
  layers=2, width=32, batch=learner_step.Size(8, 8, 8), updates=2, sampled_dtypes=("float32",)
)


class Values(NamedTuple):
  """What one device computes from the same parameters and batch."""

  logprobs: np.ndarray  # [N, M]
  gradient: np.ndarray  # all of it in one row
  losses: np.ndarray  # of consecutive updates
  norms: np.ndarray  # of their gradients


def _config(size: Size, *, is_cpu: bool) -> decoder.DecoderConfig:
  """Heads of 128 channels, which all kernels take; small ones on a CPU."""
  head_dim = 16 if is_cpu else 128
  return dataclasses.replace(
    sampler_benchmark.model(quick=True),
    vocab_size=1024,
    num_layers=size.layers,
    width=size.width,
    mlp_width=2 * size.width,
    num_heads=4,
    num_kv_heads=2,
    head_dim=head_dim,
    qk_norm=True,
  )


def _limits(size: learner_step.Size) -> packing.Limits:
  columns = size.prompt + size.completion
  return packing.Limits(packing.PADDED, size.prompt, size.completion, columns)


def _batch(config: decoder.DecoderConfig, size: learner_step.Size) -> types.Batch:
  """Random groups, sampled by a policy near the uniform one, as fresh parameters are."""
  batch = batching.make_batch(learner_step.groups(config.vocab_size, size), _limits(size))
  noise = 0.1 * np.random.default_rng(0).normal(size=batch.sampler_logprobs.shape)
  return batch._replace(sampler_logprobs=np.float32(noise - math.log(config.vocab_size)))


def _choices(config: decoder.DecoderConfig, size: Size) -> step.StepChoices:
  optimizer = state_lib.make_optimizer(learning_rate=1e-4, num_steps=size.updates)
  objective = losses.objective("grpo")
  return step.StepChoices(config, objective, _remembering(optimizer), 1.0, shown=size.batch.rows)


def _remembering(optimizer: state_lib.Optimizer) -> state_lib.Optimizer:
  """The optimizer with the last gradient beside its state."""

  def init(params):
    return optimizer.init(params), jax.tree.map(jnp.zeros_like, params)

  def update(gradients, state, params, good=True):
    updates, own = optimizer.update(gradients, state[0], params, good)
    return updates, (own, gradients)

  return state_lib.Optimizer(init, update)


def _values(
  config: decoder.DecoderConfig, device: jax.Device, params: dict, batch: types.Batch, size: Size
) -> Values:
  mesh, choices = sharding.make_mesh(devices=[device]), _choices(config, size)
  with jax.default_device(device), jax.sharding.set_mesh(mesh):
    placed = state_lib.place_batch(mesh, batch)
    shardings = policy.param_shardings(mesh, params)
    fresh = jax.tree.map(jax.device_put, params, shardings)
    state = state_lib.from_params(fresh, choices.optimizer, mesh)
    update = step.compile_step(choices, state_lib.shardings(config, mesh, choices.optimizer))
    rows, gradients = [], []
    for _ in range(size.updates):
      state, metrics = update(state, placed, None)
      rows.append(jax.device_get(metrics))
      gradients.append(jax.device_get(state.opt_state[1]))
  return Values(
    logprobs=rows[0]["policy_logprobs"],
    gradient=np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradients[0])]),
    losses=np.array([row["loss"] for row in rows]),
    norms=np.array([row["grad_norm"] for row in rows]),
  )


def error(found: np.ndarray, expected: np.ndarray) -> float:
  """|found - expected| / |expected|, in float64; infinite where a number is not finite."""
  exact = expected.astype(np.float64)
  value = np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact)
  return float(value) if np.isfinite(value) else float("inf")


def _sampling(config: decoder.DecoderConfig, device: jax.Device, params: dict, size: Size) -> dict:
  """Nats between the log-probabilities that the sampler recorded and those of the CPU."""
  shape, mesh = size.batch, sharding.make_mesh(devices=[device])
  sizes = sizing.Sizes(
    slots=shape.rows,
    group_size=learner_step.GROUP_SIZE,
    max_prompt_tokens=shape.prompt,
    max_tokens=shape.completion,
    page_tokens=16,
  )
  tickets = [group.ticket for group in learner_step.groups(config.vocab_size, shape)]
  placed = jax.tree.map(jax.device_put, params, policy.param_shardings(mesh, params))
  engine = engine_lib.Engine(config, sizes, stops=stopping.Stops((-1,)), seed=0, mesh=mesh)
  made = engine.generate(placed, 0, tickets)
  groups = [
    types.FinishedGroup(ticket, types.Group(ticket.ticket_id, tuple(group)), 0)
    for ticket, group in zip(tickets, made, strict=True)
  ]
  part = jax.tree.map(lambda x: x[0], batching.make_batch(groups, _limits(shape)))
  exact = dataclasses.replace(config, attention=attention.PLAIN, compute_dtype="float32")
  with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
    expected = jax.jit(_choices(exact, size).token_stats)(params, part).logprobs
  gaps = np.abs(np.asarray(expected) - part.sampler_logprobs)
  kernel = sizing.with_attention(config, sizes, mesh).attention
  return {
    "attention": kernel,
    "dtype": config.compute_dtype,
    "largest_nats": float(gaps.max()),
    "mean_nats": float(gaps.mean()),
  }


def measure(size: Size) -> dict:
  """Errors of every form, and nats by which a sampler's log-probabilities are off.

  `within`: no error of a form is larger than its bound.
  """
  cpu, device = jax.devices("cpu")[0], jax.devices()[0]
  config = _config(size, is_cpu=device.platform == "cpu")
  with jax.default_device(cpu), jax.default_matmul_precision("highest"):
    params = jax.device_get(policy.init(config, jax.random.key(0)))
    batch = _batch(config, size.batch)
    expected = _values(config, cpu, params, batch, size)
  rows = []
  for form in FORMS[device.platform]:
    own = dataclasses.replace(config, attention=form.attention, compute_dtype=form.dtype)
    with jax.default_matmul_precision(form.precision):
      found = _values(own, device, params, batch, size)
    errors = {name: error(getattr(found, name), getattr(expected, name)) for name in Values._fields}
    within = max(errors.values()) <= form.bound
    rows.append(form._asdict() | {"errors": errors, "within": within})
  sampled = [
    _sampling(dataclasses.replace(config, compute_dtype=dtype), device, params, size)
    for dtype in size.sampled_dtypes
  ]
  return {"within": all(row["within"] for row in rows), "forms": rows, "sampling": sampled}
