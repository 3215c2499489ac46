"""What an accelerator reaches: the learner's MFU, decoding against its floor, async against sync.

Models have random parameters, completions are as long as they can be.
"""

import concurrent.futures
import dataclasses
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import learner_step
from benchmarks import sampler as sampler_benchmark
from offpolicy_rl import losses, types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import attention, decoder, families, policy, sharding
from offpolicy_rl.planning import architectures
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.sampler import sizing, stopping


class Size(NamedTuple):
  """Of what `learner` and `decoding` measure."""

  model: str = "qwen3-0.6b"  # of planning/architectures.py; "" = a small one
  batch: learner_step.Size = learner_step.Size(rows=16, prompt=256, completion=768)
  rounds: int = 5
  slots: tuple[int, ...] = (64, 256)


SMALL = Size(model="", batch=learner_step.Size(8, 8, 8), rounds=1, slots=(8,))


def learner(size: Size) -> dict:
  """The learner's step as `learner_step.measure` measures it, with `mfu` on a known accelerator."""
  found = learner_step.measure(_model(size), size.batch, size.rounds, "dots")
  return {"model": size.model, **found}


def decoding(size: Size) -> dict:
  """Decoding as `sampler.decoding` measures it, for every number of slots.

  `of_bandwidth`: what a step would take that only read the weights and each row's keys and values,
  at the rate at which the device reads an array, over what it takes.
  """
  config = _model(size)
  params = policy.cast(config, policy.init(config, jax.random.key(0)))
  rows = [sampler_benchmark.decoding(config, params, n, size.rounds) for n in size.slots]
  for row in rows:
    row["of_bandwidth"] = row["floor_seconds"]["bytes"] / row["step_seconds"]
  return {"model": size.model, "dtype": config.compute_dtype, "slots": rows}


def _model(size: Size) -> decoder.DecoderConfig:
  if size.model:
    config = families.read(architectures.KNOWN[size.model])
    return dataclasses.replace(config, compute_dtype="bfloat16")
  return dataclasses.replace(
    sampler_benchmark.model(quick=True), vocab_size=256, num_layers=2, width=32, mlp_width=64
  )


class LoopSize(NamedTuple):
  """Of what `overlap` measures."""

  layers: int = 12
  width: int = 768
  vocabulary: int = 8192
  prompts: int = 16
  group_size: int = 8
  prompt: int = 64
  completion: int = 128
  updates: int = 6  # of a round
  rounds: int = 3


LOOP_SMALL = LoopSize(2, 32, 256, prompts=2, group_size=4, prompt=8, completion=8, updates=2)


class Loop:
  """A learner on the first device, a sampler on the last one: the same where there is only one."""

  def __init__(self, size: LoopSize):
    heads = max(2, size.width // 64)
    config = dataclasses.replace(
      sampler_benchmark.model(quick=True),
      vocab_size=size.vocabulary,
      num_layers=size.layers,
      width=size.width,
      num_heads=heads,
      num_kv_heads=heads,
      head_dim=size.width // heads,
      mlp_width=4 * size.width,
      compute_dtype="float32" if jax.default_backend() == "cpu" else "bfloat16",
    )
    devices = jax.devices()
    self._learners, self._samplers = (sharding.make_mesh(devices=[devices[i]]) for i in (0, -1))
    self._size, self._vocabulary, self._asked = size, size.vocabulary, 0
    sizes = sizing.Sizes(
      slots=size.prompts * size.group_size,
      group_size=size.group_size,
      max_prompt_tokens=size.prompt,
      max_tokens=size.completion,
    )
    stops = stopping.Stops((-1,))
    self._engine = engine_lib.Engine(config, sizes, stops=stops, seed=0, mesh=self._samplers)
    form = attention.training_kernel(
      devices[0].platform,
      compute_dtype=config.compute_dtype,
      head_dim=config.head_dim,
      branches=False,
    )
    model = dataclasses.replace(config, attention=form, remat="dots")
    optimizer = state_lib.make_optimizer(learning_rate=1e-6, num_steps=1000)
    choices = step.StepChoices(model, losses.objective("grpo"), optimizer, 1.0)
    with jax.sharding.set_mesh(self._learners):
      self._state = state_lib.create(model, self._learners, optimizer, 0)
      shardings = state_lib.shardings(model, self._learners, optimizer)
    self._update_state = step.compile_step(choices, shardings)
    self._limits = packing.Limits(
      packing.PADDED, size.prompt, size.completion, size.prompt + size.completion
    )

  def devices(self) -> list[jax.Device]:
    """The learner's and the sampler's."""
    return [self._learners.devices.flat[0], self._samplers.devices.flat[0]]

  def weights(self) -> dict:
    """A copy of the learner's parameters where the sampler takes them."""
    copied = policy.copy(self._state.params)
    return jax.tree.map(jax.device_put, copied, policy.param_shardings(self._samplers, copied))

  def sample(self, params: dict, version: int) -> list[types.FinishedGroup]:
    """New groups; their rewards are as good as random."""
    size, rng = self._size, np.random.default_rng(self._asked)
    tickets = []
    for _ in range(size.prompts):
      prompt = rng.integers(0, self._vocabulary, size.prompt).astype(np.int32)
      name, at = str(self._asked), self._asked
      tickets.append(
        types.Ticket(name, types.TRAIN, 0, at, prompt, "", version, version, size.group_size, 1.0)
      )
      self._asked += 1
    groups = []
    for ticket, made in zip(tickets, self._engine.generate(params, version, tickets), strict=True):
      rewards = [float(trajectory.tokens[0] % 2) for trajectory in made]
      scored = tuple(
        dataclasses.replace(trajectory, reward=reward, verdict=reward)
        for trajectory, reward in zip(made, rewards, strict=True)
      )
      groups.append(types.FinishedGroup(ticket, types.Group(ticket.ticket_id, scored), version))
    return groups

  def update(self, groups: list[types.FinishedGroup]) -> None:
    """One update, until it is done."""
    batch = batching.make_batch(groups, self._limits)
    with jax.sharding.set_mesh(self._learners):
      placed = state_lib.place_batch(self._learners, batch)
      self._state, metrics = self._update_state(self._state, placed, None)
    jax.block_until_ready(metrics)

  def waiting(self, updates: int) -> float:
    """Seconds per update where learner and sampler wait for each other: lag 0."""
    began = time.perf_counter()
    for at in range(updates):
      self.update(self.sample(self.weights(), at))
    return (time.perf_counter() - began) / updates

  def behind(self, updates: int) -> float:
    """Seconds per update where version t samples while the update of step t is made: lag 1."""
    ready = self.sample(self.weights(), 0)
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(1) as sampler:
      for at in range(updates):
        coming = sampler.submit(self.sample, self.weights(), at)
        self.update(ready)
        ready = coming.result()
    return (time.perf_counter() - began) / updates

  def parts(self) -> dict[str, float]:
    """Seconds of one sampling and of one update by themselves."""
    began = time.perf_counter()
    groups = self.sample(self.weights(), 0)
    sampled = time.perf_counter()
    self.update(groups)
    return {"sampling": sampled - began, "update": time.perf_counter() - sampled}


def overlap(size: LoopSize) -> dict:
  """Seconds per update of both ways, in turn, and how many times as fast a sampler behind is."""
  loop = Loop(size)
  loop.waiting(1)  # compiles
  pairs = [(loop.waiting(size.updates), loop.behind(size.updates)) for _ in range(size.rounds)]
  ratios = [waiting / behind for waiting, behind in pairs]
  tokens = size.prompts * size.group_size * size.completion
  return {
    "devices_used": len({*loop.devices()}),
    "seconds": {
      "waiting": statistics.median(pair[0] for pair in pairs),
      "one version behind": statistics.median(pair[1] for pair in pairs),
      **loop.parts(),
    },
    "completion_tokens_per_update": tokens,
    "ratio": statistics.median(ratios),
    "spread": [min(ratios), max(ratios)],
  }
