"""The learner's loop: batch -> update -> publish -> write."""

import concurrent.futures
import dataclasses
import math
import threading
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

  placed: types.Batch  # on the devices
  versions: frozenset[int]  # that sampled its tokens
  # What the first process of a learner knows; empty in the others.
  groups: list[types.FinishedGroup] = dataclasses.field(default_factory=list)
  metrics: dict = dataclasses.field(default_factory=dict)  # lag, lengths


@dataclasses.dataclass(frozen=True)
class Parts:
  """The functions a learner is made of; the wire, or plain Python in a test, is behind them."""

  # (step, whether anybody still wants it) -> its groups. Blocks; runs a step ahead in a thread of
  # its own; raises Stopped
  next_batch: Callable[[int, Callable[[], bool]], Consumed]
  begin: Callable[[int, Consumed], None]  # books what the step uses; raises Stopped
  train_step: Callable  # (step, state, Consumed) -> (state, metrics)
  publish: Callable[[int, dict], None]  # (version, params); may go on in the background
  write: Callable[[int, dict], None]  # (step, metrics)
  after_step: Callable[[int, TrainState], None]  # (version, state): checkpoints, evaluation


def run(state: TrainState, parts: Parts, *, first_step: int, num_steps: int) -> TrainState:
  """Updates until `num_steps` are done; returns the last state, also when stopped early.

  The next batch is waited for, assembled and copied to the devices while a step runs.
  """
  over = threading.Event()
  wanted = lambda: not over.is_set()
  with concurrent.futures.ThreadPoolExecutor(1) as ahead:
    try:
      upcoming = ahead.submit(parts.next_batch, first_step, wanted)
      for step in range(first_step, num_steps):
        started = time.perf_counter()
        consumed = upcoming.result()
        parts.begin(step, consumed)
        batched = time.perf_counter()
        more = step + 1 < num_steps
        upcoming = ahead.submit(parts.next_batch, step + 1, wanted) if more else None
        state, metrics = parts.train_step(step, state, consumed)
        # Waits for the device, where arrays stay until somebody looks at them.
        metrics = {k: v if np.ndim(v) else np.asarray(v).item() for k, v in metrics.items()}
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
    except Stopped:
      pass
    finally:
      over.set()
  return state


def check_finite(step: int, metrics: dict, consumed: Consumed) -> None:
  """Raises NonFiniteError for a loss or gradient norm that is NaN or infinite."""
  if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
    return
  row = int(metrics["first_nonfinite_row"])
  where = "every log-probability is finite" if row < 0 else f"first in row {row}"
  if metrics.get("poisoned_groups", 0) == len(consumed.groups) > 0:
    samplers = ", ".join(sorted({g.group.sampler_id for g in consumed.groups}))
    where += f"; every group alone makes it so (of samplers {samplers}): has the policy diverged?"
  if row >= 0 and consumed.groups:
    each = [g.ticket.ticket_id for g in consumed.groups for _ in g.group.trajectories]
    where += f", group {each[row]}"
  raise NonFiniteError(
    f"step {step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; {where}"
  )


def poisoned(step: int, number: int, consumed: Consumed) -> str:
  """Names a group, by its number in the batch, without which a step is made."""
  name = f"group {number}"
  if consumed.groups:
    finished = consumed.groups[number]
    name = f"the group of ticket {finished.ticket.ticket_id}, by {finished.group.sampler_id},"
  return f"step {step}: {name} makes the loss or its gradient infinite or nan, and is left out"
