"""The learner's loop with plain functions in place of devices, wire and disk."""

import threading

import numpy as np
import pytest

from offpolicy_rl.learner import loop
from offpolicy_rl.learner.state import TrainState

FINE = {"loss": 1.0, "grad_norm": 1.0, "first_nonfinite_row": -1}
BEGIN = TrainState(0, "params", None)


def functions(calls: list, **changes) -> loop.Functions:
  """Functions that note their calls."""

  def update(step, state, batch):
    calls.append(("update", step))
    return TrainState(step + 1, f"params {step + 1}", None), dict(FINE)

  def next_batch(step):
    calls.append(("batch", step))
    return loop.StepBatch(arrays=step, versions=frozenset())

  note = lambda name: lambda step, *_: calls.append((name, step))
  made = {
    "next_batch": next_batch,
    "update": update,
    "publish": note("publish"),
    "write": note("write"),
    "after_step": note("after"),
  }
  return loop.Functions(**(made | changes))


def of(calls: list, name: str) -> list:
  return [step for called, step in calls if called == name]


def test_every_step_is_made_published_and_written_in_order():
  calls = []
  state = loop.run(BEGIN, functions(calls), first_step=2, num_steps=5)
  assert state.step == 5
  names = ("batch", "update", "publish", "write", "after")
  late = {"publish": 1, "after": 1}  # what these get is the version that the step has made
  assert calls == [(n, s + late.get(n, 0)) for s in (2, 3, 4) for n in names]


def test_scalars_become_numbers_and_arrays_stay_where_they_are():
  array, rows = np.ones((2, 3)), []
  row = FINE | {"loss": np.float32(0.5), "policy_logprobs": array}
  made = lambda step, state, batch: (state, row)
  loop.run(
    BEGIN,
    functions([], update=made, write=lambda _, row: rows.append(row)),
    first_step=0,
    num_steps=1,
  )
  assert type(rows[0]["loss"]) is float and rows[0]["policy_logprobs"] is array


def test_the_time_of_each_part_is_written():
  rows = []
  loop.run(BEGIN, functions([], write=lambda _, row: rows.append(row)), first_step=0, num_steps=2)
  parts = {"seconds/waiting", "seconds/step", "seconds/publishing"}
  assert all(parts <= row.keys() and min(row[part] for part in parts) >= 0 for row in rows)


def test_an_update_that_is_not_finite_stops_the_loop():
  bad = lambda step, state, batch: (state, FINE | {"loss": float("nan")})
  with pytest.raises(loop.NonFiniteError, match="step 0"):
    loop.run(BEGIN, functions([], update=bad), first_step=0, num_steps=9)


def test_the_next_batch_is_made_while_the_one_before_is_used():
  begun = [threading.Event() for _ in range(3)]

  def make(step, wanted):
    begun[step].set()
    return step * 10

  prefetch = loop.Prefetch(make, num_steps=3)
  for step in range(3):
    assert prefetch(step) == step * 10
    if step < 2:
      assert begun[step + 1].wait(10), "nobody asked for the next batch while this one is used"
  prefetch.close()


@pytest.mark.timeout(20)
def test_after_an_error_nobody_waits_for_the_next_batch():
  released = threading.Event()

  def make(step, wanted):
    while step and wanted():
      pass
    released.set()

  prefetch = loop.Prefetch(make, num_steps=9)
  prefetch(0)
  released.clear()
  prefetch.close()
  assert released.is_set()


def test_an_error_while_a_batch_is_made_reaches_who_asks_for_it():
  def make(step, wanted):
    if step:
      raise KeyError("no such ticket")

  prefetch = loop.Prefetch(make, num_steps=9)
  prefetch(0)
  with pytest.raises(KeyError, match="no such ticket"):
    prefetch(1)
  prefetch.close()


def test_a_stop_while_waiting_ends_in_order():
  calls = []

  def next_batch(step):
    if step == 2:
      raise loop.Stopped
    return loop.StepBatch(arrays=step, versions=frozenset())

  state = loop.run(BEGIN, functions(calls, next_batch=next_batch), first_step=0, num_steps=9)
  assert state.step == 2 and of(calls, "after") == [1, 2]
