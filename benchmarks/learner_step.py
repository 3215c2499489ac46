"""How far is the learner's step from what the machine's products allow, and what is around it?

Command:  python -m benchmarks.learner_step      (--quick: a small model; --dtype=bfloat16; --rows)
A model with 135 M random parameters (SmolLM2's shape, vocabulary 49,152) is trained on 16
completions of 4 prompts, rows of 256 tokens, log-probabilities in chunks. Measured in turn: the
step, a chain of plain matrix products of the model's shapes, reading an array, and what the host
does for a step: assembling its batch, copying it to the devices, taking the copy of the weights
that is published. The floor is the larger of model flops (`model/cost.py`: forward and backward,
nothing computed twice) at the products' rate, and the state's bytes at the reading rate. On
accelerators `mfu` is the share of the data sheet's bfloat16 peak. Writes results/learner_step.json.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine, reading
from benchmarks.sampler import model as sampler_model
from offpolicy_rl import losses, types
from offpolicy_rl.learner import speed, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import attention, cost, policy, sharding
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.system import memory

RESULTS = pathlib.Path(__file__).parent / "results"
GROUP_SIZE = 4


class Size(NamedTuple):
  """A batch: rows, and tokens of each row's prompt and completion."""

  rows: int = 16
  prompt: int = 64
  completion: int = 192

  @property
  def tokens(self) -> int:
    """Of the whole batch."""
    return self.rows * (self.prompt + self.completion)


def groups(vocabulary: int, size: Size) -> list[types.FinishedGroup]:
  """Of completions that are as long as can be."""
  rng = np.random.default_rng(0)
  draw = lambda number: rng.integers(0, vocabulary, number).astype(np.int32)
  versions = np.zeros(size.completion, np.int32)
  found = []
  for g in range(size.rows // GROUP_SIZE):
    ticket = types.Ticket(str(g), types.TRAIN, 0, g, draw(size.prompt), "", 0, 0, GROUP_SIZE, 1.0)
    logprobs = np.full(size.completion, -10.0, np.float32)
    made = tuple(
      types.Trajectory(draw(size.completion), logprobs, versions, True, float(i % 2))
      for i in range(GROUP_SIZE)
    )
    found.append(types.FinishedGroup(ticket, types.Group(str(g), made), 0))
  return found


class Learner:
  """A state, its compiled step, and the parts of what the host does."""

  def __init__(self, config, size: Size, remat: str, mesh: jax.sharding.Mesh):
    self.mesh, self.remat = mesh, remat
    self.groups = groups(config.vocab_size, size)
    self._limits = packing.Limits(
      packing.PADDED, size.prompt, size.completion, size.prompt + size.completion
    )
    optimizer = state_lib.make_optimizer(learning_rate=1e-6, num_steps=1000)
    platform = jax.default_backend()
    form = attention.training_kernel(
      platform, compute_dtype=config.compute_dtype, head_dim=config.head_dim, branches=False
    )
    config = dataclasses.replace(config, remat=remat, attention=form)
    objective = losses.objective("beta_shift", beta=0.1)
    choices = step.StepChoices(config, objective, optimizer, 1.0, logprob_chunk=64)
    self.state = state_lib.create(config, self.mesh, optimizer, 0)
    self._step = step.compile_step(choices, state_lib.shardings(config, self.mesh, optimizer))
    self.assemble()
    self.copy()
    self.flops = cost.train_flops(
      config, cost.work(config, batching.lengths(self.groups), shared=False)
    )
    self.state_bytes = sum(x.nbytes for x in jax.tree.leaves(self.state))

  def assemble(self):
    self.assembled = batching.make_batch(self.groups, self._limits)

  def copy(self):
    self.batch = jax.block_until_ready(state_lib.place_batch(self.mesh, self.assembled))

  def step(self):
    self.state, row = self._step(self.state, self.batch, None)
    jax.block_until_ready((self.state, row))

  def publish(self):
    jax.block_until_ready(policy.copy(self.state.params))


def products(config, tokens: int):
  """(function, its flops): the MLP's three products for so many tokens, several times over."""
  dtype = jnp.dtype(config.compute_dtype)
  x = jnp.ones((tokens, config.width), dtype)
  wide = jnp.ones((config.width, config.mlp_width), dtype)
  narrow = jnp.ones((config.mlp_width, config.width), dtype)

  @jax.jit
  def chain(x):
    for _ in range(6):
      x = (x @ wide) @ narrow / config.mlp_width
    return x

  flops = 6 * 2 * 2 * tokens * config.width * config.mlp_width
  return lambda: jax.block_until_ready(chain(x)), flops


def measure(config, size: Size, rounds: int, remat: str) -> dict:
  """Medians over rounds in which everything takes its turn."""
  mesh = sharding.make_mesh()
  with jax.sharding.set_mesh(mesh):
    return _measured(Learner(config, size, remat, mesh), config, size, rounds)


def _measured(learner: Learner, config, size: Size, rounds: int) -> dict:
  product, flops = products(config, size.tokens)
  read, moved = reading()
  work = {
    "assembling": learner.assemble,
    "copying": learner.copy,
    "step": learner.step,
    "publishing": learner.publish,
    "product": product,
    "read": read,
  }
  took = {name: [] for name in work}
  for _ in range(rounds + 2):  # the first compiles, the second settles
    for name, function in work.items():
      started = time.perf_counter()
      function()
      took[name].append(time.perf_counter() - started)
  seconds = {name: statistics.median(found[2:]) for name, found in took.items()}
  rate, bandwidth = flops / seconds["product"], moved / seconds["read"]
  # State and gradients are read and written once: parameters, two moments, a gradient.
  floors = {
    "products": learner.flops / rate,
    "bytes": (2 * learner.state_bytes + 2 * learner.state_bytes / 3) / bandwidth,
  }
  kind = learner.mesh.devices.flat[0].device_kind
  peak = speed.PEAK_FLOPS.get(kind)
  achieved = learner.flops / seconds["step"]
  return {
    "device": kind,
    "dtype": config.compute_dtype,
    "rows": size.rows,
    "remat": learner.remat,
    "tokens": size.tokens,
    "seconds": seconds,
    "spread": {name: [min(found[2:]), max(found[2:])] for name, found in took.items()},
    "model_flops": learner.flops,
    "flops_per_second": achieved,
    "mfu": peak and achieved / peak,
    "product_flops_per_second": rate,
    "bytes_per_second": bandwidth,
    "floor_seconds": floors,
    "of_floor": max(floors.values()) / seconds["step"],
  }


def small() -> dict[str, float]:
  """Figures for benchmarks/compare.py."""
  memory.keep_freed_memory()
  found = measure(sampler_model(True), Size(), 5, "dots")
  return {"speed, of the floor": found["of_floor"]}


def main() -> None:
  """Measures, prints, writes."""
  memory.keep_freed_memory()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--rows", type=int, default=Size().rows)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots")
  arguments = parser.parse_args()
  config = dataclasses.replace(sampler_model(arguments.quick), compute_dtype=arguments.dtype)
  found = measure(config, Size(arguments.rows), arguments.rounds, arguments.remat)
  seconds = found["seconds"]
  print(
    f"{found['device']}: {found['tokens']} tokens in {seconds['step']:.3f} s, "
    f"{found['flops_per_second'] / 1e9:.0f} GFLOP/s of the model"
    + (f", {found['mfu']:.0%} of the data sheet's peak" if found["mfu"] else "")
    + f"; plain products reach {found['product_flops_per_second'] / 1e9:.0f}, so the step runs at "
    f"{found['of_floor']:.0%} of its floor's speed\n"
    f"host, per step: assembling {seconds['assembling'] * 1e3:.1f} ms, copying "
    f"{seconds['copying'] * 1e3:.1f} ms, taking the published copy "
    f"{seconds['publishing'] * 1e3:.1f} ms"
  )
  if not arguments.quick:
    asked = " ".join(["python -m benchmarks.learner_step", *sys.argv[1:]])
    text = json.dumps({"machine": machine(), "command": asked, **found}, indent=1)
    (RESULTS / "learner_step.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
