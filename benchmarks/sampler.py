"""How fast does the sampler decode, how far is that from the floor, and what does refilling bring?

Command:  python -m benchmarks.sampler            (25 minutes; --quick: a small model)
A model with 135 M random parameters (SmolLM2's shape), float32, 64 slots. First table: time of one
decoding step with every slot in use, beside what its products and its bytes take at the rates that
this machine reaches on a plain matrix product of that many rows and on reading an array, measured
in turn with it. Second: completions of ragged lengths, slots refilled as they get free against
whole batches that wait for their longest row, in turn. Third: what new weights cost, once in
`UPDATE_EVERY` dispatches: waiting until what runs has ended, or swapped in flight, the cache kept
or computed again. Writes results/sampler.json.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine, reading
from offpolicy_rl import types
from offpolicy_rl.model import cost, decoder, policy
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.sampler import sizing, stopping
from offpolicy_rl.system import memory

RESULTS = pathlib.Path(__file__).parent / "results"
PROMPT, COMPLETION, GROUP_SIZE = 64, 64, 8
UPDATE_EVERY = 10  # dispatches
UPDATES = ("none", "between_groups", "in_flight, keep", "in_flight, recompute")


def model(quick: bool) -> decoder.DecoderConfig:
  """SmolLM2's shape, or a small one."""
  small = decoder.DecoderConfig(
    vocab_size=4096,
    num_layers=4,
    width=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_width=384,
    rope_theta=1e5,
    norm_eps=1e-5,
    tied_embeddings=True,
    scaled_embeddings=False,
  )
  if quick:
    return small
  return dataclasses.replace(
    small,
    vocab_size=49_152,
    num_layers=30,
    width=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_width=1536,
  )


def make_engine(config, ends: tuple[int, ...], *, slots: int, max_tokens: int):
  """Prompts of 64 tokens in groups of 8."""
  sizes = sizing.Sizes(
    slots=slots, group_size=GROUP_SIZE, max_prompt_tokens=PROMPT, max_tokens=max_tokens
  )
  return engine_lib.Engine(config, sizes, stops=stopping.Stops(ends), seed=0)


def tickets(config, number: int, first: int = 0) -> list[types.Ticket]:
  """Random prompts; others with another `first`."""
  rng = np.random.default_rng(first)
  return [
    types.Ticket(
      f"{i}",
      types.TRAIN,
      0,
      i,
      rng.integers(0, config.vocab_size, PROMPT).astype(np.int32),
      "",
      0,
      0,
      GROUP_SIZE,
      1.0,
    )
    for i in range(first, first + number)
  ]


def seconds(function, *arguments) -> float:
  """Of one call."""
  start = time.perf_counter()
  jax.block_until_ready(function(*arguments))
  return time.perf_counter() - start


def rates(config, slots: int) -> tuple:
  """Functions that take matrix products and that read an array, with their flops and bytes."""
  x = jnp.ones((slots, config.width), config.compute_dtype)
  w = jnp.ones((config.width, 8 * config.mlp_width), config.compute_dtype)
  product, (read, moved) = jax.jit(jnp.matmul), reading()
  jax.block_until_ready((product(x, w), read()))
  many = lambda: [product(x, w) for _ in range(20)]
  return many, 20 * 2 * x.size * w.shape[1], read, moved


def decoding(config, params, slots: int, rounds: int) -> dict:
  """One decoding step, and its floor."""
  product, flops, read, moved = rates(config, slots)
  steps = sizing.Sizes.steps
  machine_ = make_engine(config, (-1,), slots=slots, max_tokens=(rounds + 3) * steps)
  machine_.add(tickets(config, slots // GROUP_SIZE))
  machine_.step(params, 0)  # prefills, compiles
  took, rate, bandwidth = [], [], []
  for _ in range(rounds):
    took.append(seconds(lambda: machine_.step(params, 0)) / steps)
    rate.append(flops / seconds(product))
    bandwidth.append(moved / seconds(read))
  length = PROMPT + (rounds // 2 + 1) * steps
  work = cost.decode_step(config, [length] * slots)
  floors = {
    "products": work.flops / statistics.median(rate),
    "bytes": work.bytes / statistics.median(bandwidth),
  }
  step = statistics.median(took)
  return {
    "slots": slots,
    "tokens_in_cache": length,
    "step_seconds": step,
    "spread": [min(took), max(took)],
    "tokens_per_second": slots / step,
    "gflops": statistics.median(rate) / 1e9,
    "gb_per_second": statistics.median(bandwidth) / 1e9,
    "floor_seconds": floors,
    "of_floor": max(floors.values()) / step,
  }


def static(machine_, params, asked) -> int:
  """Whole batches that fill the slots, each until its longest row is done -> tokens."""
  made, left = 0, list(asked)
  while left:
    some, left = left[: machine_.room // GROUP_SIZE], left[machine_.room // GROUP_SIZE :]
    made += tokens_of(machine_.generate(params, 0, some))
  return made


def refilled(machine_, params, asked) -> int:
  """Slots are filled as they get free -> tokens."""
  return tokens_of(machine_.generate(params, 0, list(asked)))


def tokens_of(groups) -> int:
  return sum(t.tokens.size for group in groups for t in group)


def ragged(config, params, slots: int, rounds: int) -> dict:
  """Lengths as they come when one token in 40 ends a completion, 256 at most."""
  ends = tuple(range(config.vocab_size // 40))
  ways = {"static batches": static, "refilled": refilled}
  machines = {name: make_engine(config, ends, slots=slots, max_tokens=256) for name in ways}
  number = 4 * slots // GROUP_SIZE
  rates_ = {name: [] for name in ways}
  for turn in range(rounds + 1):
    asked = tickets(config, number, first=turn * number)
    for name, way in ways.items():
      if turn == 0:  # compiles
        way(machines[name], params, asked[:1])
        continue
      start = time.perf_counter()
      made = way(machines[name], params, asked)
      rates_[name].append(made / (time.perf_counter() - start))
  pairs = zip(*(rates_[name] for name in ("refilled", "static batches")), strict=True)
  return {
    "completions": number * GROUP_SIZE,
    "tokens_per_second": {name: statistics.median(found) for name, found in rates_.items()},
    "ratio": statistics.median(a / b for a, b in pairs),
  }


class Steady:
  """An engine that never lacks tickets, and gets new weights in one of the ways of `UPDATES`."""

  def __init__(self, config, versions, slots: int, ends: tuple[int, ...], update: str):
    self._config, self._versions, self._slots, self._update = config, versions, slots, update
    self._engine = make_engine(config, ends, slots=slots, max_tokens=256)
    self._asked = self._dispatches = 0
    self.run(2 * UPDATE_EVERY)  # compiles; rows are of all ages

  def run(self, dispatches: int) -> float:
    """Tokens per second of completions that ended meanwhile."""
    start, made = time.perf_counter(), 0
    for _ in range(dispatches):
      self._dispatches += 1
      version = self._dispatches // UPDATE_EVERY if self._update != "none" else 0
      made += self._dispatch(version, fresh=self._dispatches % UPDATE_EVERY == 0)
    return made / (time.perf_counter() - start)

  def _dispatch(self, version: int, *, fresh: bool) -> int:
    engine, made = self._engine, 0
    params = self._versions[version % len(self._versions)]
    if fresh and self._update == "between_groups":
      before = self._versions[(version - 1) % len(self._versions)]
      while not engine.idle:
        made += tokens_of(group for _, group in engine.step(before, version - 1))
    if fresh and self._update == "in_flight, recompute":
      engine.refresh(params)
    while engine.room >= GROUP_SIZE:
      engine.add(tickets(self._config, 1, first=self._asked))
      self._asked += 1
    return made + tokens_of(group for _, group in engine.step(params, version))


def updating(config, params, slots: int, rounds: int) -> dict:
  """Tokens per second under each way, and their ratio to a sampler without updates."""
  ends = tuple(range(config.vocab_size // 40))
  versions = [params, policy.copy(params)]
  ways = {name: Steady(config, versions, slots, ends, name) for name in UPDATES}
  rates_ = {name: [] for name in ways}
  for _ in range(rounds):
    for name, way in ways.items():
      rates_[name].append(way.run(3 * UPDATE_EVERY))
  ratio = lambda name: statistics.median(
    a / b for a, b in zip(rates_[name], rates_["none"], strict=True)
  )
  return {
    "dispatches_per_update": UPDATE_EVERY,
    "tokens_per_second": {name: statistics.median(found) for name, found in rates_.items()},
    "ratio": {name: ratio(name) for name in ways},
  }


def listed(numbers: dict[str, float], form: str) -> str:
  """In words."""
  return "; ".join(f"{name}: {number:{form}}" for name, number in numbers.items())


def small() -> dict[str, float]:
  """Figures for benchmarks/compare.py."""
  memory.keep_freed_memory()
  config, slots = model(quick=True), 16
  params = policy.init(config, jax.random.key(0))
  updates = updating(config, params, slots, 3)["ratio"]
  return {
    "decoding, speed of the floor": decoding(config, params, slots, 5)["of_floor"],
    "refilled slots / static batches": ragged(config, params, slots, 2)["ratio"],
    "weights in flight, kept / none": updates["in_flight, keep"],
    "weights in flight, recomputed / none": updates["in_flight, recompute"],
  }


def main() -> None:
  """Measures, prints, writes."""
  memory.keep_freed_memory()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  config, slots = model(arguments.quick), 16 if arguments.quick else 64
  params = policy.init(config, jax.random.key(0))
  parameters = sum(x.size for x in jax.tree.leaves(params))
  print(f"{machine()}, {parameters / 1e6:.0f} M parameters")
  one = decoding(config, params, slots, arguments.rounds)
  print(
    f"decoding: {one['step_seconds'] * 1e3:.0f} ms per step of {slots} slots, "
    f"{one['tokens_per_second']:.0f} tokens/s; floor: products "
    f"{one['floor_seconds']['products'] * 1e3:.0f} ms at {one['gflops']:.0f} GFLOP/s, bytes "
    f"{one['floor_seconds']['bytes'] * 1e3:.0f} ms at {one['gb_per_second']:.0f} GB/s; "
    f"{one['of_floor']:.0%} of the floor's speed",
    flush=True,
  )
  many = ragged(config, params, slots, max(1, arguments.rounds // 2))
  print(
    f"ragged lengths: {listed(many['tokens_per_second'], '.0f')} tokens/s; "
    f"ratio {many['ratio']:.2f}",
    flush=True,
  )
  bubble = updating(config, params, slots, max(1, arguments.rounds // 2))
  print(f"new weights, tokens/s against none: {listed(bubble['ratio'], '.2f')}")
  if not arguments.quick:
    found = {"machine": machine(), "parameters": parameters, "decoding": one}
    found |= {"ragged": many, "updates": bubble}
    (RESULTS / "sampler.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  main()
