"""The worker's decisions, with an engine and a learner of plain Python."""

import collections
import itertools
import threading
import time

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.sampler import worker


def ticket(name: str, low=0, high=9) -> types.Ticket:
  return types.Ticket(name, types.TRAIN, 0, 0, np.zeros(1, np.int32), "", low, high, 1, 1.0)


class Engine:
  """Every ticket takes `steps` steps and as many tokens."""

  def __init__(self, slots=2, steps=3):
    self._slots, self._steps = slots, steps
    self._open: dict[str, tuple[types.Ticket, list[int]]] = {}
    self.started: dict[str, float] = {}
    self.log = []  # (params, version, ids that are open) of every step

  @property
  def idle(self):
    return not self._open

  @property
  def room(self):
    return self._slots - len(self._open)

  @property
  def busy(self):
    return len(self._open)

  @property
  def room_soon(self):
    return self.room

  @property
  def progress(self):
    return {name: len(versions) for name, (_, versions) in self._open.items()}

  def pop_started(self, ticket_id):
    return self.started.pop(ticket_id, None)

  def add(self, tickets):
    self._open |= {t.ticket_id: (t, []) for t in tickets}

  def step(self, params, version):
    self.log.append((params, version, tuple(self._open)))
    time.sleep(0.002)
    for name in self._open:
      self.started.setdefault(name, time.monotonic())
    for _, versions in self._open.values():
      versions.append(version)
    done = [name for name, (_, v) in self._open.items() if len(v) == self._steps]
    return [(t, [trajectory(v)]) for t, v in (self._open.pop(name) for name in done)]


def trajectory(versions) -> types.Trajectory:
  zeros = np.zeros(len(versions))
  return types.Trajectory(zeros.astype(np.int32), zeros, np.array(versions), True)


class Learner:
  """Hands out tickets, takes groups; a version can be published at any moment."""

  def __init__(self, tickets, newest=0):
    self.tickets = collections.deque(tickets)
    self.newest_version, self.session = newest, "one"
    self.pushed, self.pulls, self.had = [], [], []
    self.pushing = threading.Event()
    self.pushing.set()

  def lease(self, room, have):
    self.had.append(tuple(have))
    if len(have) == 5:
      self.pushing.set()
    if not self.tickets:
      return None
    return [self.tickets.popleft() for _ in range(min(room, len(self.tickets)))]

  def pull_weights(self, low, high):
    version = min(high, self.newest_version)
    if version < low:
      return None
    self.pulls.append(version)
    return version, f"{self.session}/{version}"

  def push(self, groups):
    self.pushing.wait(30)
    self.pushed += groups


def score(tickets, found) -> list[types.Group]:
  return [types.Group(t.ticket_id, tuple(f)) for t, f in zip(tickets, found, strict=True)]


def run(learner, engine, stats=None, **options):
  worker.run(engine, learner, score, stats or worker.Stats(), **options)


def names(groups) -> list[str]:
  return sorted(group.ticket_id for group in groups)


def test_every_ticket_is_answered_once_and_held_until_it_is_pushed():
  learner, engine = Learner([ticket(f"{i}") for i in range(9)]), Engine()
  stats = worker.Stats()
  run(learner, engine, stats)
  assert names(learner.pushed) == [f"{i}" for i in range(9)]
  assert (stats.groups, stats.tokens) == (9, 27)
  assert learner.pulls == [0]  # nothing newer: not asked again
  running = {name for _, _, names in engine.log for name in names}
  assert running == {f"{i}" for i in range(9)}
  assert learner.had[0] == () and any(learner.had)


def test_a_ticket_handed_out_twice_is_answered_once():
  """By a learner that does not believe what we say we have."""
  learner, engine = Learner([ticket(f"{i}") for i in range(4)]), Engine(slots=3, steps=9)
  lease, given = learner.lease, []

  def again(room, have):
    given.extend(tickets := lease(room, have) or [])
    repeated = [t for t in given if t.ticket_id in have][:1]
    return repeated + tickets or None

  learner.lease = again
  run(learner, engine)
  assert names(learner.pushed) == [f"{i}" for i in range(4)]


def test_progress_is_told_of_every_ticket_that_a_worker_has():
  learner, engine, stats = Learner([ticket("0"), ticket("1")]), Engine(slots=1), worker.Stats()
  learner.pushing.clear()
  seen = []
  step = engine.step

  def stepped(*args):
    seen.append(dict(stats.progress))
    if seen[-1].get("1"):
      learner.pushing.set()
    return step(*args)

  engine.step = stepped
  run(learner, engine, stats)
  assert {"0": 1} in seen and {"0": 2} in seen
  assert {"0": 4, "1": 1} in seen  # complete, but not acknowledged
  assert stats.progress == {}


@pytest.mark.parametrize("steps", [1, 3])
def test_generation_goes_on_while_groups_are_pushed(monkeypatch, steps):
  """At once, also if all slots have become free in the same step."""
  monkeypatch.setattr(worker, "_WAIT_SECONDS", 40)
  learner, engine = Learner([ticket(f"{i}") for i in range(6)]), Engine(slots=1, steps=steps)
  learner.pushing.clear()  # until five are held
  begun = time.monotonic()
  run(learner, engine)
  assert time.monotonic() - begun < 20
  assert names(learner.pushed) == [f"{i}" for i in range(6)]
  assert max(map(len, learner.had)) >= 5  # generated, and not acknowledged yet


def test_the_next_tickets_are_leased_before_the_slots_are_free():
  class Foreseeing(Engine):
    @property
    def room_soon(self):
      return self.room + len(self.ending())

    def ending(self):
      return [int(name) for name, (_, v) in self._open.items() if len(v) == self._steps - 1]

    def step(self, params, version):
      for index in self.ending():  # goes on once the lease after this ticket's has begun
        end = time.monotonic() + 5
        while len(begun) < index + 2 and time.monotonic() < end:
          time.sleep(0.001)
      return super().step(params, version)

  begun = []
  learner, engine = Learner([ticket(f"{i}") for i in range(4)]), Foreseeing(slots=1)
  lease = learner.lease
  learner.lease = lambda *args: begun.append(tuple(engine._open)) or lease(*args)
  run(learner, engine)
  assert names(learner.pushed) == [f"{i}" for i in range(4)]
  assert begun == [(), ("0",), ("1",), ("2",), ("3",)]


def publishing(engine, learner, version, at):
  """Publishes `version` at the engine's step number `at`."""
  step, count = engine.step, itertools.count()

  def counted(*args):
    if next(count) == at:
      learner.newest_version = version
    return step(*args)

  engine.step = counted


def test_between_groups_what_runs_is_finished_with_the_weights_it_began_with():
  learner, engine = Learner([ticket(f"{i}") for i in range(8)]), Engine(slots=2, steps=3)
  publishing(engine, learner, 4, at=1)
  run(learner, engine)
  assert learner.pulls == [0, 4]
  for group in learner.pushed:
    assert len(set(group.trajectories[0].versions)) == 1
  assert {g.trajectories[0].versions[0] for g in learner.pushed} == {0, 4}
  assert all(params == f"one/{version}" for params, version, _ in engine.log)


def test_in_flight_completions_go_on_with_newer_weights_that_their_tickets_allow():
  tickets = [ticket("a"), ticket("b", high=2)]
  learner, engine = Learner(tickets), Engine(slots=2, steps=30)
  publishing(engine, learner, 4, at=5)
  run(learner, engine, weight_update=types.IN_FLIGHT)
  for group in learner.pushed:
    versions = group.trajectories[0].versions
    assert set(versions) == {0, 2} and (np.diff(versions) >= 0).all()


def test_exact_versions_are_waited_for():
  """A ticket that asks for version 1 is not begun while one of version 0 runs."""
  tickets = [ticket("a", 0, 0), ticket("b", 1, 1)]
  for update in (types.BETWEEN_GROUPS, types.IN_FLIGHT):
    learner, engine = Learner([tickets[0]], newest=1), Engine(slots=2, steps=4)
    later = collections.deque([[tickets[1]], None])
    first = learner.lease

    def lease(room, have, first=first, later=later, learner=learner):
      return first(room, have) if learner.tickets else later.popleft()

    learner.lease = lease
    run(learner, engine, weight_update=update)
    assert {g.ticket_id: set(g.trajectories[0].versions) for g in learner.pushed} == {
      "a": {0},
      "b": {1},
    }


def test_weights_of_another_session_are_pulled_again():
  learner, engine = Learner([ticket(f"{i}") for i in range(6)], newest=3), Engine(slots=1)
  step, count = engine.step, itertools.count()

  def restarted(*args):
    if next(count) == 4:
      learner.session = "two"
    return step(*args)

  engine.step = restarted
  run(learner, engine)
  assert learner.pulls == [3, 3]
  assert {params for params, _, _ in engine.log} == {"one/3", "two/3"}


def test_tickets_of_versions_that_are_gone_are_left_to_others():
  learner, engine = Learner([ticket("a", 5, 6), ticket("b")]), Engine(slots=1)
  run(learner, engine)
  assert names(learner.pushed) == ["b"]


def test_a_request_to_stop_finishes_what_was_begun():
  learner, engine = Learner([ticket(f"{i}") for i in range(50)]), Engine(slots=2, steps=3)
  run(learner, engine, should_stop=lambda: len(engine.log) > 4)
  begun = {name for _, _, names in engine.log for name in names}
  assert names(learner.pushed) == sorted(begun) and len(begun) < 50


def test_tickets_that_come_after_a_request_to_stop_are_not_begun():
  """Their lease was under way; what runs still has to be finished in time."""
  learner, engine = Learner([ticket("0"), ticket("1")]), Engine(slots=2, steps=200)
  stop, lease = threading.Event(), learner.lease

  def lease_one(_, have):
    if learner.had:
      while not engine.log:
        time.sleep(0.001)
      stop.set()
    return lease(1, have)

  learner.lease = lease_one
  run(learner, engine, should_stop=stop.is_set)
  assert len(learner.had) == 2 and names(learner.pushed) == ["0"]


@pytest.mark.parametrize("where", ["lease", "pull_weights", "push"])
def test_what_goes_wrong_in_the_background_ends_the_worker(where):
  learner = Learner([ticket(f"{i}") for i in range(4)])

  def broken(*_):
    raise OSError(f"{where} broke")

  setattr(learner, where, broken)
  with pytest.raises(OSError, match=f"{where} broke"):
    run(learner, Engine())


def test_a_group_is_marked_with_when_it_was_where():
  def score_slowly(tickets, found):
    time.sleep(0.03)
    return score(tickets, found)

  learner, begin = Learner([ticket("a"), ticket("b")]), time.monotonic()
  worker.run(Engine(steps=5), learner, score_slowly, worker.Stats())
  for group in learner.pushed:
    marks = group.marks
    assert begin <= marks.leased <= marks.begun <= marks.started < marks.decoded < marks.scored
    assert marks.scored < time.monotonic()
    assert marks.decoded - marks.started > 4 * 0.002  # the later ones of five steps
    assert marks.scored - marks.decoded >= 0.03
