"""The front desk at the end of a run."""

import time

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.roles.sampler_service import Front
from offpolicy_rl.transport import bounds, names


def front() -> Front:
  return Front(
    book=Ledger(10),
    groups=None,
    weights=None,
    vocab_size=9,
    max_tokens=9,
    control=LagControl("async", 1),
  )


def ticket(name: str) -> types.Ticket:
  return types.Ticket(name, types.TRAIN, 0, 0, np.array([1], np.int32), "", 0, 0, 2, 1.0)


def test_a_sampler_that_only_beats_does_not_keep_the_learner_from_ending():
  desk = front()
  desk.join("hung")
  start = time.monotonic()
  desk.dismiss(silent_seconds=60, at_most_seconds=0.3)
  assert 0.3 <= time.monotonic() - start < 5


def test_nobody_is_waited_for_who_has_left_or_fell_silent():
  desk = front()
  desk.join("gone")
  desk.leave("gone")
  desk.join("silent")
  start = time.monotonic()
  desk.dismiss(silent_seconds=0.2, at_most_seconds=60)
  assert time.monotonic() - start < 5 and desk.finished


def test_two_living_samplers_of_one_name_are_told_apart_and_said():
  desk, said = front(), []
  desk.say = said.append
  first, second, other = names.unique("node7-1"), names.unique("node7-1"), names.unique("node8-1")
  for sampler_id in (first, other, second):
    desk.join(sampler_id)
  assert said == [f"2 samplers are called node7-1, told apart as {first}, {second}"]
  for _ in range(100):
    desk.join(second)
  assert len(said) == 1
  desk.book.add([ticket("a"), ticket("b")])
  assert [t.ticket_id for t in desk.book.lease(first, 1, timeout=0, holding=[])] == ["a"]
  assert [t.ticket_id for t in desk.book.lease(second, 1, timeout=0, holding=[])] == ["b"]
  assert desk.leave(first) == 1  # not what its namesake has


def test_people_are_shown_names_where_these_are_enough():
  a, b, c = (names.unique(name) for name in ("a", "a", "c"))
  assert a != b and names.name_of(a) == "a"
  assert names.shown([a, b, c, "old"]) == {a: a, b: b, c: "c", "old": "old"}
  with pytest.raises(bounds.WireError, match="--name: got 'a~b'"):
    names.unique("a~b")
