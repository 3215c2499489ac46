"""A run with fixed lag in one process: no wire, no leases, the same to the bit.

The engine, the warm start and the update are those of a run over the wire; what is between them is
left out. tests/end_to_end_test.py compares the two.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.model import sharding
from offpolicy_rl.replay import admission, batching, lag
from offpolicy_rl.roles import build, build_learner, prompts, teacher, training
from offpolicy_rl.tasks import catalog, scoring, stream


class Version(NamedTuple):
  """A version of the policy, and the update that made it."""

  number: int
  params: dict
  metrics: dict  # of the update; {} for version 0
  batch: types.Batch | None  # what it will be trained on; None for the last version


class Run:
  """Prompts and compiled programs of a configuration with lag.mode=fixed."""

  def __init__(self, config: ConfigDict):
    """Reads the prompts; raises ValueError for another lag mode, or with an environment."""
    for name, key in config_lib.environments(config).items():
      raise ValueError(f"{key}: got {name!r}, expected ''")
    if config.lag.mode != lag.FIXED:
      raise ValueError(f"lag.mode: got {config.lag.mode!r}, expected {lag.FIXED!r}")
    group_size = config.learner.group_size
    self.config, self.policy = config, build.make_policy(config, None)
    self.mesh = sharding.make_mesh(**config.mesh)
    self.choices = build_learner.step_choices(config, self.policy.model, self.mesh)
    self._teacher = teacher.find(config, self.policy)
    self.prompts = prompts.read(config, self.policy)
    made = build.engine_of(
      config, self.policy, group_size=group_size, max_prompt_tokens=config.task.max_prompt_tokens
    )
    self._engine = contextlib.ExitStack().enter_context(made)  # it has no processes to end
    self._verify = scoring.resolve(catalog.select(config.task).verifier)
    self._limits = build.limits(config, group_size=group_size)
    self._tickets = admission.Tickets(
      stream.make_stream(self.prompts.train, config.seed),
      build_learner.lag_control(config),
      prompts_per_step=config.learner.prompts_per_step,
      group_size=group_size,
      temperature=config.sampler.temperature,
    )

  def warm_start(self) -> dict:
    """Parameters of version 0, on the devices."""
    with jax.sharding.set_mesh(self.mesh):
      state, _ = training.initial_state(_warm_start(self))
    return state.params

  def saved_warm_start(self, path: pathlib.Path) -> dict:
    """Parameters of version 0 from a file, which is written if it is missing."""
    if not path.exists():
      flat = policy_lib.flatten(jax.tree.map(np.array, self.warm_start()))
      path.parent.mkdir(parents=True, exist_ok=True)
      half = path.with_suffix(f".{os.getpid()}")
      with half.open("wb") as file:
        np.savez(file, **flat)
      half.rename(path)
    with np.load(path) as kept:
      params = policy_lib.unflatten(dict(kept))
    shardings = policy_lib.param_shardings(self.mesh, policy_lib.shapes(self.policy.model))
    return jax.tree.map(jax.device_put, params, shardings)

  def evaluate(
    self, params: dict, version: int, *, problems: int, completions: int
  ) -> list[types.FinishedGroup]:
    """Completions of the first held-out problems, drawn with the same keys at every version."""
    tickets = [
      types.Ticket(
        ticket_id=f"{types.EVAL}/{version}/{index}",
        kind=types.EVAL,
        step=version,
        group_index=index,
        prompt_tokens=example.prompt_tokens,
        answer=example.answer,
        min_version=version,
        max_version=version,
        num_completions=completions,
        temperature=self.config.sampler.temperature,
      )
      for index, example in enumerate(self.prompts.heldout[:problems])
    ]
    return self.sample(jax.tree.map(np.array, params), version, tickets)

  def sample(
    self, params: dict, version: int, tickets: list[types.Ticket]
  ) -> list[types.FinishedGroup]:
    """Completions of tickets, with rewards."""
    groups = self._engine.generate(params, version, tickets)
    return [
      types.FinishedGroup(
        ticket,
        types.Group(ticket.ticket_id, tuple(self._judged(t, ticket.answer) for t in group)),
        version,
      )
      for ticket, group in zip(tickets, groups, strict=True)
    ]

  def _judged(self, trajectory: types.Trajectory, answer: str) -> types.Trajectory:
    text = self.policy.tokenizer.decode(trajectory.tokens.tolist())
    verdict = float(trajectory.finished and self._verify(text, answer))
    return dataclasses.replace(trajectory, reward=verdict, verdict=verdict)

  def batch(self, groups: Sequence[types.FinishedGroup]) -> types.Batch:
    """The batch of a step, on the devices."""
    return state_lib.place_batch(self.mesh, batching.make_batch(list(groups), self._limits))

  def train(self, params: dict, seen: Callable[[Version], None]) -> state_lib.TrainState:
    """Trains from version 0, whose memory is not reused; `seen` gets every version in turn."""
    num_steps, bound = self.config.learner.steps, self.config.lag.max_lag
    waiting: collections.deque[list[types.FinishedGroup]] = collections.deque()
    with jax.sharding.set_mesh(self.mesh):
      copied = jax.tree.map(np.array, params)
      state = state_lib.from_params(
        jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), copied, params),
        self.choices.optimizer,
        self.mesh,
      )
      update = step.compile_step(
        self.choices, state_lib.shardings(self.choices.model, self.mesh, self.choices.optimizer)
      )
      judged = lambda batch: batch
      if self._teacher is not None:
        judged = teacher.make(self.config, self._teacher, self.mesh)
      metrics: dict = {}
      sampled = 0  # steps whose groups were sampled
      for at in range(num_steps):
        host = jax.tree.map(np.array, state.params)
        while sampled < min(num_steps, at + bound + 1):  # version `at` samples for step at + bound
          waiting.append(self.sample(host, at, self._tickets.for_step(sampled)))
          sampled += 1
        batch = self.batch(waiting.popleft())
        seen(Version(at, state.params, metrics, batch))
        state, metrics = update(state, judged(batch), None)
      seen(Version(num_steps, state.params, metrics, None))
    return state


@dataclasses.dataclass(frozen=True)
class _WarmStart(training.Process):
  """What a warm start needs of a learner's process."""

  batch: Callable[[int], types.Batch]

  def demonstrations(self, at_step: int) -> types.Batch:
    return state_lib.place_batch(self.mesh, self.batch(at_step))


def _warm_start(run: Run) -> _WarmStart:
  batch, _ = prompts.demonstrations(run.config, run.prompts.train)
  checkpoints, publisher = cast(Any, None), cast(Any, _Nowhere())
  return _WarmStart(run.config, run.choices, run.mesh, checkpoints, None, publisher, None, batch)


class _Nowhere:
  """Instead of a publisher."""

  def publish_now(self, version: int, params: dict) -> None:
    """Does nothing."""
