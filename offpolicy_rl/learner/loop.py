"""The learner's loop: batch -> update -> publish -> write."""

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.learner.state import TrainState


class NonFiniteError(RuntimeError):
  """A loss or gradient that is not finite; names the step and the group."""


class Stopped(Exception):
  """Somebody asked the learner to stop while it waited for a batch."""


@dataclasses.dataclass(frozen=True)
class Consumed:
  """One step's groups, assembled."""

  batch: types.Batch
  ticket_ids: list[str]  # one per group, in the order of batch.group_ids
  metrics: dict  # what the host knows: lag, lengths


@dataclasses.dataclass(frozen=True)
class Parts:
  """The functions a learner is made of; the wire, or plain Python in a test, is behind them."""

  next_batch: Callable[[int], Consumed]  # step -> its groups; blocks; may raise Stopped
  train_step: Callable  # (step, state, host batch) -> (state, metrics)
  publish: Callable[[int, dict], None]  # (version, params)
  write: Callable[[int, dict], None]  # (step, metrics)
  after_step: Callable[[int, TrainState], None]  # (version, state): checkpoints, evaluation


def run(state: TrainState, parts: Parts, *, first_step: int, num_steps: int) -> TrainState:
  """Updates until `num_steps` are done; returns the last state, also when stopped early."""
  for step in range(first_step, num_steps):
    started = time.perf_counter()
    try:
      consumed = parts.next_batch(step)
    except Stopped:
      return state
    batched = time.perf_counter()
    state, metrics = parts.train_step(step, state, consumed.batch)
    metrics = {
      key: np.asarray(value).item() for key, value in metrics.items()
    }  # waits for the device
    check_finite(step, metrics, consumed)
    stepped = time.perf_counter()
    parts.publish(step + 1, state.params)
    published = time.perf_counter()
    times = {
      "seconds/waiting": batched - started,
      "seconds/step": stepped - batched,
      "seconds/publishing": published - stepped,
    }
    parts.write(step, metrics | consumed.metrics | times)
    parts.after_step(step + 1, state)
  return state


def check_finite(step: int, metrics: dict, consumed: Consumed) -> None:
  """Raises NonFiniteError for a loss or gradient norm that is NaN or infinite."""
  if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
    return
  row = metrics["first_nonfinite_row"]
  where = "every log-probability is finite"
  if row >= 0:
    group = consumed.batch.group_ids.reshape(-1)[row]
    where = f"first in row {row}, group {consumed.ticket_ids[int(group)]}"
  raise NonFiniteError(
    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {where}"
  )
