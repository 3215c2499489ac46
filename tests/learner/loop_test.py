"""The learner's loop with plain functions in place of devices, wire and disk."""

import threading

import numpy as np
import pytest

from offpolicy_rl.learner import loop
from offpolicy_rl.learner.state import TrainState

FINE = {"loss": 1.0, "grad_norm": 1.0, "first_nonfinite_row": -1}
BEGIN = TrainState(0, "params", None)


def parts(calls: list, **changes) -> loop.Parts:
  """Functions that note their calls."""

  def train_step(step, state, consumed):
    calls.append(("train", step))
    return TrainState(step + 1, f"params {step + 1}", None), dict(FINE)

  def next_batch(step, wanted):
    calls.append(("batch", step))
    return loop.Consumed(placed=step, versions=frozenset())

  note = lambda name: lambda step, *_: calls.append((name, step))
  made = {
    "next_batch": next_batch,
    "begin": note("begin"),
    "train_step": train_step,
    "publish": note("publish"),
    "write": note("write"),
    "after_step": note("after"),
  }
  return loop.Parts(**(made | changes))


def of(calls: list, name: str) -> list:
  return [step for called, step in calls if called == name]


def test_every_step_is_booked_made_published_and_written_in_order():
  calls = []
  state = loop.run(BEGIN, parts(calls), first_step=2, num_steps=5)
  assert state.step == 5
  own_thread = [call for call in calls if call[0] != "batch"]
  names = ("begin", "train", "publish", "write", "after")
  late = {"publish": 1, "after": 1}  # what these get is the version that the step has made
  assert own_thread == [(n, s + late.get(n, 0)) for s in (2, 3, 4) for n in names]
  assert of(calls, "batch") == [2, 3, 4]


def test_scalars_become_numbers_and_arrays_stay_where_they_are():
  array, rows = np.ones((2, 3)), []
  row = FINE | {"loss": np.float32(0.5), "policy_logprobs": array}
  made = lambda step, state, consumed: (state, row)
  loop.run(
    BEGIN,
    parts([], train_step=made, write=lambda _, row: rows.append(row)),
    first_step=0,
    num_steps=1,
  )
  assert type(rows[0]["loss"]) is float and rows[0]["policy_logprobs"] is array


def test_the_next_batch_is_made_while_a_step_runs():
  asked, calls = threading.Event(), []

  def next_batch(step, wanted):
    if step == 1:
      asked.set()
    return loop.Consumed(placed=step, versions=frozenset())

  def train_step(step, state, consumed):
    assert asked.wait(10), "nobody asked for the next batch while this step ran"
    return state, dict(FINE)

  loop.run(
    BEGIN, parts(calls, next_batch=next_batch, train_step=train_step), first_step=0, num_steps=2
  )


@pytest.mark.timeout(20)
def test_an_error_in_a_step_does_not_wait_for_the_batch_after_it():
  released = threading.Event()

  def next_batch(step, wanted):
    while step and wanted():
      pass
    if step:
      released.set()
      raise loop.Stopped
    return loop.Consumed(placed=step, versions=frozenset())

  bad = lambda step, state, consumed: (state, FINE | {"loss": float("nan")})
  with pytest.raises(loop.NonFiniteError, match="step 0"):
    loop.run(BEGIN, parts([], next_batch=next_batch, train_step=bad), first_step=0, num_steps=9)
  assert released.is_set()


def test_a_stop_while_waiting_ends_in_order():
  calls = []

  def next_batch(step, wanted):
    if step == 2:
      raise loop.Stopped
    return loop.Consumed(placed=step, versions=frozenset())

  state = loop.run(BEGIN, parts(calls, next_batch=next_batch), first_step=0, num_steps=9)
  assert state.step == 2 and of(calls, "after") == [1, 2]
