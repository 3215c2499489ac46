"""What the learner does when samplers call, and at the end of a run."""

import collections
import concurrent.futures
import threading
import time
import types as types_lib

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.roles.sampler_service import Heartbeats, SamplerService
from offpolicy_rl.transport import bounds, codec, names
from offpolicy_rl.types import PushStatus


def service(say=print) -> SamplerService:
  return SamplerService(
    Ledger(10), None, None, LagControl("async", 1), expected=codec.Expected(9, 9), say=say
  )


def ticket(name: str) -> types.Ticket:
  return types.Ticket(name, types.TRAIN, 0, 0, np.array([1], np.int32), "", 0, 0, 2, 1.0)


def test_a_sampler_that_only_beats_does_not_keep_the_learner_from_ending():
  learner = service()
  learner.join("hung")
  start = time.monotonic()
  learner.dismiss(silent_seconds=60, at_most_seconds=0.3)
  assert 0.3 <= time.monotonic() - start < 5


def test_nobody_is_waited_for_who_has_left_or_fell_silent():
  learner = service()
  learner.join("gone")
  learner.leave("gone")
  learner.join("silent")
  start = time.monotonic()
  learner.dismiss(silent_seconds=0.2, at_most_seconds=60)
  assert time.monotonic() - start < 5 and learner.finished


def test_samplers_of_a_learner_that_was_killed_have_time_to_hear_of_the_end():
  learner = service()
  start = time.monotonic()
  learner.dismiss(silent_seconds=60, at_most_seconds=60, not_before=start + 0.4)
  assert 0.4 <= time.monotonic() - start < 5


def test_two_living_samplers_of_one_name_are_told_apart_and_said():
  said = []
  learner = service(said.append)
  first, second, other = names.unique("node7-1"), names.unique("node7-1"), names.unique("node8-1")
  for sampler_id in (first, other, second):
    learner.join(sampler_id)
  assert said == [f"2 samplers are called node7-1, told apart as {first}, {second}"]
  for _ in range(100):
    learner.join(second)
  assert len(said) == 1
  learner.ledger.add([ticket("a"), ticket("b")])
  assert [t.ticket_id for t in learner.ledger.lease(first, 1, timeout=0, holding=[])] == ["a"]
  assert [t.ticket_id for t in learner.ledger.lease(second, 1, timeout=0, holding=[])] == ["b"]
  assert learner.leave(first) == 1  # not what its namesake has


def test_samplers_may_join_while_others_are_counted():
  """Else the thread that keeps live.json up to date would end, and nobody would hear of the end."""
  learner = service()

  class Joined(collections.Counter):
    def items(self):
      """While somebody looks, another sampler joins, as far as it may."""
      for item in super().items():
        joining = threading.Thread(target=learner.join, args=(names.unique("late"),))
        joining.start()
        joining.join(0.2)
        yield item

  first = names.unique("a")
  learner.join(first)
  learner.join(names.unique("a"))
  learner.leave(first)
  learner._joined = Joined(learner._joined)
  assert learner.restarts() == {"a": 1}


def test_people_are_shown_names_where_these_are_enough():
  a, b, c = (names.unique(name) for name in ("a", "a", "c"))
  assert a != b and names.name_of(a) == "a"
  assert names.display_names([a, b, c, "old"]) == {a: a, b: b, c: "c", "old": "old"}
  with pytest.raises(bounds.WireError, match="--name: got 'a~b'"):
    names.unique("a~b")


def test_a_group_without_an_open_ticket_is_unknown_by_name():
  [outcome] = service().push([types.Group("zzz", ())], b"").result()
  assert outcome == (PushStatus.UNKNOWN, "group.ticket_id: 'zzz' is no open ticket")


def test_what_is_wrong_with_a_group_is_the_reason_of_its_refusal():
  learner = service()
  learner.ledger.add([ticket("a")])
  unreadable, short = bounds.WireError("group.tokens: got 3"), types.Group("a", ())
  first, second = learner.push([unreadable, short], b"").result()
  assert first == (PushStatus.REFUSED, "group.tokens: got 3")
  assert second.status is PushStatus.REFUSED and "2" in second.reason


def test_a_group_that_can_not_be_finished_is_an_error_at_once(monkeypatch):
  """Its sampler does not wait until the time of the call is over."""
  learner = service()
  learner.ledger.add([ticket("a")])
  monkeypatch.setattr(learner, "_check", lambda group: (ticket("a"), None))
  monkeypatch.setattr(learner.ledger, "finish_all", lambda *_: [][0])
  written = concurrent.futures.Future()
  learner.groups = types_lib.SimpleNamespace(put=lambda *_: written)
  pushed = learner.push([types.Group("a", ())], b"")
  written.set_result([True])
  with pytest.raises(IndexError):
    pushed.result(timeout=5)


def test_the_rate_adds_up_the_samplers_heard_of_lately():
  now = [0.0]
  beats = Heartbeats(clock=lambda: now[0])
  beats.record("a", {"tokens_per_second": 5.0})
  now[0] = 6.0
  beats.record("b", {"tokens_per_second": 7.0})
  beats.record("c", {"something_else": 1.0})
  assert beats.metrics() == {"sampler/count": 3, "sampler/tokens_per_second": 12.0}
  beats.record("b", {"tokens_per_second": 9.0, "waiting": 0.25})
  now[0] = 11.0
  assert beats.metrics() == {
    "sampler/count": 2,
    "sampler/tokens_per_second": 9.0,
    "sampler/waiting": 0.25,
  }


def test_new_names_push_out_those_not_beats_of_longest():
  beats = Heartbeats(clock=lambda: 0.0)
  beats.record("faithful", {"tokens_per_second": 3.0})
  for i in range(5000):
    beats.record(f"made-up-{i}", {})
    beats.record("faithful", {"tokens_per_second": 3.0})
  assert len(beats._last) == 1024 and beats.metrics()["sampler/tokens_per_second"] == 3.0


def test_processes_that_came_instead_of_others_are_counted_by_name():
  learner, now = service(), [0.0]
  learner.heartbeats = Heartbeats(clock=lambda: now[0])
  first, second, third = (names.unique("local-0") for _ in range(3))
  learner.join(first)
  learner.join(first)  # the learner was restarted
  learner.join("other~1")
  assert learner.restarts() == {}
  learner.leave(first)
  learner.join(second)
  assert learner.restarts() == {"local-0": 1}
  now[0] = 60.0  # killed
  learner.join(third)
  learner.heartbeat("other~1", {"tokens_per_second": 5.0}, {})
  assert learner.restarts() == {"local-0": 2}
  assert learner.heartbeats.rates() == {"other~1": 5.0}
