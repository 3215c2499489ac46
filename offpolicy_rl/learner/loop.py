"""The learner's loop: batch -> update -> publish -> write."""

import concurrent.futures
import dataclasses
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.learner.speed import Timer
from offpolicy_rl.learner.state import TrainState

T = TypeVar("T")


class NonFiniteError(RuntimeError):
  """A loss or gradient is not finite; names the step and the group."""


class Stopped(Exception):
  """The learner was asked to stop while it waited for a batch."""


@dataclasses.dataclass(frozen=True)
class StepBatch:
  """The batch of a step, on the devices, and its groups."""

  arrays: types.Batch
  versions: frozenset[int]  # that sampled its tokens
  # Only in the first process of a learner:
  groups: tuple[types.FinishedGroup, ...] = ()
  metrics: dict = dataclasses.field(default_factory=dict)  # lag, lengths

  def group_name(self, number: int) -> str:
    """Names a group for an error message, by its ticket and sampler if they are known."""
    if not self.groups:
      return f"group {number}"
    finished = self.groups[number]
    return f"the group of ticket {finished.ticket.ticket_id}, by {finished.group.sampler_id},"


@dataclasses.dataclass(frozen=True)
class Functions:
  """The functions that the loop calls."""

  next_batch: Callable[[int], StepBatch]  # (step); blocks; raises Stopped
  update: Callable[[int, TrainState, StepBatch], tuple[TrainState, dict]]  # (step, state, batch)
  publish: Callable[[int, dict], None]  # (version, params); may work in the background
  write: Callable[[int, dict], None]  # (step, metrics)
  after_step: Callable[[int, TrainState], None]  # (version, state): checkpoints, evaluation


def run(state: TrainState, functions: Functions, *, first_step: int, num_steps: int) -> TrainState:
  """Makes steps up to `num_steps`, or until Stopped; returns the last state."""
  timer = Timer()
  try:
    for step in range(first_step, num_steps):
      with timer("seconds/waiting"):
        batch = functions.next_batch(step)
      with timer("seconds/step"):
        state, metrics = functions.update(step, state, batch)
        metrics = _scalars_on_host(metrics)
        check_finite(step, metrics, batch)
      with timer("seconds/publishing"):
        functions.publish(step + 1, state.params)
      functions.write(step, metrics | batch.metrics | timer.seconds)
      functions.after_step(step + 1, state)
  except Stopped:
    pass
  return state


class Prefetch(Generic[T]):
  """Calls `make(step, wanted)` for the next step in a thread while the current one is used.

  `wanted()` turns False when the result is no longer needed.
  """

  def __init__(self, make: Callable[[int, Callable[[], bool]], T], num_steps: int):
    self._make, self._num_steps = make, num_steps
    self._closed = threading.Event()
    self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    self._upcoming: concurrent.futures.Future[T] | None = None

  def __call__(self, step: int) -> T:
    """Returns what `make` returned for this step, or raises what it raised."""
    result = (self._upcoming or self._start(step)).result()
    self._upcoming = self._start(step + 1) if step + 1 < self._num_steps else None
    return result

  def _start(self, step: int) -> concurrent.futures.Future[T]:
    return self._executor.submit(self._make, step, lambda: not self._closed.is_set())

  def close(self) -> None:
    """Ends the thread."""
    self._closed.set()
    self._executor.shutdown()


def _scalars_on_host(metrics: dict) -> dict:
  """Waits for the device; arrays stay there until they are used."""
  return {k: v if np.ndim(v) else np.asarray(v).item() for k, v in metrics.items()}


def check_finite(step: int, metrics: dict, batch: StepBatch) -> None:
  """Raises NonFiniteError for a loss or gradient norm that is NaN or infinite."""
  if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
    return
  row = int(metrics["first_nonfinite_row"])
  where = "every log-probability is finite" if row < 0 else f"first in row {row}"
  if metrics.get("poisoned_groups", 0) == len(batch.groups) > 0:
    samplers = ", ".join(sorted({g.group.sampler_id for g in batch.groups}))
    where += f"; every group alone does that (of samplers {samplers}): has the policy diverged?"
  if row >= 0 and batch.groups:
    ids = [g.ticket.ticket_id for g in batch.groups for _ in g.group.trajectories]
    where += f", group {ids[row]}"
  raise NonFiniteError(
    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {where}"
  )
