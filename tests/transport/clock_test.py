"""One clock for learner and samplers."""

import time

import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import clock
from tests.transport import learners


def test_the_quickest_heartbeat_tells_best():
  """The learner is 100 s ahead; one way takes a second, the other a tenth, or next to nothing."""
  known = clock.LearnerClock()
  assert known.ahead is None
  known.note(10.0, 11.1, told=111.0)
  assert known.ahead == pytest.approx(100.45)  # wrong by half of what it took, at most
  known.note(20.0, 20.002, told=120.001)
  known.note(30.0, 32.0, told=132.0)
  assert known.ahead == pytest.approx(100.0)
  known.note(40.0, 40.001, told=0.0)  # a learner that tells no time
  assert known.ahead == pytest.approx(100.0)
  for i in range(32):  # clocks drift: what is old is forgotten
    known.note(50.0 + i, 50.5 + i, told=160.25 + i)
  assert known.ahead == pytest.approx(110.0)
  known.forget()
  assert known.ahead is None


def test_a_clock_that_is_set_is_noticed_at_once():
  known = clock.LearnerClock()
  known.note(10.0, 10.001, told=110.0005)
  known.note(20.0, 20.5, told=3720.25)  # slower than before, but no delay explains an hour
  assert known.ahead == pytest.approx(3700.0)
  known.note(30.0, 30.001, told=130.0005)
  assert known.ahead == pytest.approx(100.0)


def test_marks_reach_the_learner_by_its_clock_once_a_heartbeat_has_told_it():
  learner = learners.Learner()
  try:
    wire = learners.connect(learner.address)
    learner.book.add([learners.ticket("a"), learners.ticket("b")])
    wire.lease(2)
    here = time.monotonic()
    marks = types.Marks(here, here + 1, here + 2, here + 3, here + 4)
    answer = lambda name: types.Group(name, learners.answer(name).trajectories, marks=marks)
    wire.push([answer("a")])
    wire.heartbeat({}, {})
    wire.push([answer("b")])
    a, b = learner.book.take(["a", "b"], timeout=5)
    wire.close()
  finally:
    learner.stop()
  assert a.group.marks is None
  assert b.group.marks.leased == pytest.approx(time.time(), abs=5.0)
  assert b.group.marks.scored - b.group.marks.leased == pytest.approx(4.0, abs=1e-6)
  assert b.queued <= b.arrived <= time.time()
