"""Tickets and groups: every ticket enters exactly one batch, whatever samplers do."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from offpolicy_rl import types
from offpolicy_rl.replay.ledger import Ledger, SetAsideError
from offpolicy_rl.types import PushStatus


def ticket(name: str, low: int = 0, high: int = 0) -> types.Ticket:
  return types.Ticket(name, types.TRAIN, 0, 0, np.array([1], np.int32), "", low, high, 2, 1.0)


def group(name: str) -> types.Group:
  return types.Group(name, ())


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def names(tickets):
  return [t.ticket_id for t in tickets]


def test_tickets_are_leased_in_order_and_evaluation_first():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a"), ticket("b")])
  book.add([ticket("e0"), ticket("e1")], first=True)
  assert names(book.lease("s", 3, timeout=0)) == ["e0", "e1", "a"]
  assert names(book.lease("t", 3, timeout=0)) == ["b"]
  assert book.lease("s", 3, timeout=0) == []


def test_a_lease_holds_only_tickets_that_one_version_can_serve():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a", 0, 2), ticket("b", 1, 3), ticket("c", 2, 2), ticket("d", 3, 3)])
  assert names(book.lease("s", 9, timeout=0)) == ["a", "b", "c"]
  assert names(book.lease("s", 9, timeout=0)) == ["d"]


def test_an_expired_lease_goes_back_to_the_front():
  clock = Clock()
  book = Ledger(lease_seconds=10, clock=clock)
  book.add([ticket("a"), ticket("b"), ticket("c")])
  assert names(book.lease("dead", 2, timeout=0)) == ["a", "b"]
  clock.now = 9
  assert names(book.lease("alive", 2, timeout=0)) == ["c"]
  clock.now = 11
  assert names(book.lease("alive", 2, timeout=0)) == ["a", "b"]
  assert book.audit()["expired"] == 2


def test_a_heartbeat_keeps_a_lease():
  clock = Clock()
  book = Ledger(lease_seconds=10, clock=clock)
  book.add([ticket("a")])
  book.lease("slow", 1, timeout=0)
  for clock.now in (8, 16, 24):
    book.heartbeat("slow", {})
    assert book.lease("other", 1, timeout=0) == []
  clock.now = 35
  assert names(book.lease("other", 1, timeout=0)) == ["a"]


def test_the_first_answer_wins_and_the_second_is_a_duplicate():
  clock = Clock()
  book = Ledger(lease_seconds=10, clock=clock)
  book.add([ticket("a")])
  book.lease("slow", 1, timeout=0)
  clock.now = 20
  book.lease("quick", 1, timeout=0)
  assert book.finish(group("a"), 5) is PushStatus.ACCEPTED
  assert book.finish(group("a"), 5) is PushStatus.DUPLICATE
  [taken] = book.take(["a"], timeout=0)
  assert taken.arrival_version == 5
  assert book.finish(group("a"), 6) is PushStatus.DUPLICATE  # also after it was used


def test_an_answer_to_an_expired_lease_still_counts_once():
  clock = Clock()
  book = Ledger(lease_seconds=10, clock=clock)
  book.add([ticket("a")])
  book.lease("slow", 1, timeout=0)
  clock.now = 20
  book.lease("nobody", 0, timeout=0)  # notices the expiry, the ticket is queued again
  assert book.finish(group("a"), 0) is PushStatus.ACCEPTED
  assert book.lease("other", 1, timeout=0) == []


def test_unknown_tickets_are_told_apart():
  assert Ledger(10).finish(group("never"), 0) is PushStatus.UNKNOWN


def test_a_ticket_can_not_be_added_twice():
  book = Ledger(10)
  book.add([ticket("a")])
  with pytest.raises(ValueError, match="'a' was added before"):
    book.add([ticket("a")])


def test_take_waits_for_all_groups_and_keeps_the_order_asked_for():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a"), ticket("b")])
  book.finish(group("b"), 0)
  assert book.take(["a", "b"], timeout=0.01) is None
  threading.Timer(0.1, book.finish, (group("a"), 0)).start()
  assert [g.ticket.ticket_id for g in book.take(["b", "a"], timeout=5)] == ["b", "a"]


def test_lease_waits_for_a_ticket_and_close_wakes_it():
  book = Ledger(lease_seconds=10)
  threading.Timer(0.1, book.add, ([ticket("a")],)).start()
  assert names(book.lease("s", 1, timeout=5)) == ["a"]
  threading.Timer(0.1, book.close).start()
  start = time.monotonic()
  assert book.lease("s", 1, timeout=5) == []
  assert time.monotonic() - start < 2


def test_tickets_that_come_back_wake_who_waits():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a")])
  book.lease("s", 1, timeout=0)  # this reply is lost
  with concurrent.futures.ThreadPoolExecutor() as pool:
    waiting = pool.submit(book.lease, "other", 1, timeout=5)
    while book._leases.living(book._clock()) < 2:
      time.sleep(0.01)
    start = time.monotonic()
    book.lease("s", 0, timeout=0, holding=())
    assert names(waiting.result()) == ["a"]
  assert time.monotonic() - start < 2


def test_needed_versions_are_those_samplers_will_ask_for():
  book = Ledger(lease_seconds=10)
  book.add([ticket("exact", 3, 3), ticket("range", 2, 9), ticket("done", 1, 1)])
  book.finish(group("done"), 0)
  assert book.needed_versions(newest=7) == {3, 7}


def test_a_sampler_that_leaves_returns_its_tickets_at_once():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a"), ticket("b")])
  book.lease("leaver", 2, timeout=0)
  assert book.leave("leaver") == 2
  assert names(book.lease("other", 3, timeout=0)) == ["a", "b"]
  assert book.leave("leaver") == 0
  assert book.audit()["returned"] == 2


def test_what_was_on_the_way_when_a_sampler_left_gets_it_nothing():
  """Its request for tickets that still waits, and a heartbeat that arrives late."""
  book = Ledger(lease_seconds=10)
  with concurrent.futures.ThreadPoolExecutor() as pool:
    waiting = pool.submit(book.lease, "leaver", 2, timeout=5)
    while not book._leases.living(book._clock()):
      time.sleep(0.01)
    book.leave("leaver")
    book.add([ticket("a"), ticket("b")])
    assert waiting.result() == []
  assert not book.heartbeat("leaver", {"a": 3})
  assert book.lease("leaver", 2, timeout=5) == []
  assert book.audit()["out"] == 0
  book.join("leaver")
  assert names(book.lease("leaver", 2, timeout=0)) == ["a", "b"]


def test_tickets_that_never_reached_their_sampler_are_queued_again():
  book = Ledger(lease_seconds=10)
  book.add([ticket("a"), ticket("b"), ticket("c")])
  assert names(book.lease("s", 2, timeout=0)) == ["a", "b"]  # this reply is lost
  assert names(book.lease("s", 2, timeout=0, holding=())) == ["a", "b"]
  assert names(book.lease("s", 2, timeout=0, holding={"b"})) == ["a", "c"]
  assert book.lease("other", 2, timeout=0) == []


def test_what_a_sampler_says_it_has_is_not_handed_to_it_again():
  """After a pause of it that was longer than its lease, alone or beside others."""
  clock = Clock()
  book = Ledger(lease_seconds=3, clock=clock)
  book.add([ticket("a"), ticket("b")])
  assert names(book.lease("s", 1, timeout=0, holding=())) == ["a"]
  clock.now = 10
  assert names(book.lease("s", 4, timeout=0, holding=["a"])) == ["b"]
  clock.now = 20
  assert names(book.lease("t", 1, timeout=0, holding=())) == ["a"]  # it expired, and was let go
  assert names(book.lease("s", 4, timeout=0, holding=["a", "b"])) == []
  assert names(book.lease("u", 4, timeout=0, holding=())) == []  # s has b again
  assert book.audit()["reclaimed"] == 2 and book.audit()["out"] == 2
  assert book.finish(group("a"), 0) is PushStatus.ACCEPTED
  assert names(book.lease("s", 4, timeout=0, holding=["a", "b"])) == []


def test_what_a_sampler_has_from_a_learner_that_died_is_not_handed_to_it_again():
  book = Ledger(lease_seconds=3)
  assert book.lease("s", 4, timeout=0, holding=["a"]) == []  # not queued again yet
  book.add([ticket("a"), ticket("b")])
  assert names(book.lease("s", 4, timeout=0, holding=["a", "gone"])) == ["b"]
  assert names(book.lease("t", 4, timeout=0, holding=())) == []


def test_tickets_queued_while_a_sampler_waits_are_not_those_that_it_has():
  book = Ledger(lease_seconds=3)
  threading.Timer(0.1, book.add, ([ticket("a"), ticket("b")],)).start()
  assert names(book.lease("s", 4, timeout=5, holding=["a"])) == ["b"]


def test_a_heartbeat_takes_back_what_expired():
  clock = Clock()
  book = Ledger(lease_seconds=3, clock=clock)
  book.add([ticket("a")])
  book.lease("s", 1, timeout=0)
  clock.now = 10
  book.lease("t", 0, timeout=0)  # notices
  assert book.audit()["queued"] == 1
  book.heartbeat("s", {"a": 7, "never": 1})
  assert book.lease("t", 1, timeout=0) == []
  assert book.audit()["queued"] == 0 and book.audit()["out"] == 1


def test_a_long_rollout_that_goes_on_is_not_issued_again():
  clock = Clock()
  book = Ledger(lease_seconds=10, reissue_seconds=30, clock=clock)
  book.add([ticket("a")])
  book.lease("slow", 1, timeout=0)
  for clock.now in range(8, 400, 8):
    book.heartbeat("slow", {"a": clock.now})
    assert book.lease("idle", 1, timeout=0) == []
  for clock.now in range(400, 424, 8):  # 392 was its last token
    book.heartbeat("slow", {"a": 392})
    assert book.lease("idle", 1, timeout=0) == []
  clock.now = 424
  book.heartbeat("slow", {"a": 392})
  assert names(book.lease("idle", 1, timeout=0)) == ["a"]
  assert book.audit()["reissued"] == 1


def test_a_declined_ticket_goes_to_others_and_after_two_of_them_to_nobody():
  told, other = [], ticket("b")
  set_aside = lambda ticket, why: told.append((ticket.ticket_id, why)) or other
  book = Ledger(lease_seconds=10, set_aside=set_aside)
  book.add([ticket("a")])
  for sampler in ("s", "t"):
    book.heartbeat(sampler, {})
  assert names(book.lease("s", 1, timeout=0)) == ["a"]
  book.decline("s", {"a": "too long", "never": "x"})
  book.decline("s", {"a": "said again"})  # its reply got lost
  assert book.lease("s", 1, timeout=0) == [] and told == []
  book.heartbeat("s", {"a": 0})  # does not take it back
  assert names(book.lease("t", 1, timeout=0)) == ["a"]
  book.decline("t", {"a": "empty"})
  assert told == [("a", "s: too long; t: empty")]
  assert names(book.lease("s", 1, timeout=0)) == ["b"]
  assert book.finish(group("a"), 0) is PushStatus.DUPLICATE
  assert book.finish(group("b"), 0) is PushStatus.ACCEPTED
  assert names(g.ticket for g in book.take(["a"], timeout=0)) == ["b"]
  audit = book.audit()
  assert (audit["declined"], audit["set_aside"], audit["replaced"]) == (2, 1, 1)
  assert audit["added"] == audit["taken"] + audit["replaced"] == 2


def test_one_refusal_is_enough_where_no_other_sampler_lives():
  clock, told, ticket_z = Clock(), [], ticket("z")
  set_aside = lambda ticket, why: told.append(ticket.ticket_id) or ticket_z
  book = Ledger(lease_seconds=10, clock=clock, set_aside=set_aside)
  book.add([ticket("a")])
  book.heartbeat("other", {})
  clock.now = 8
  book.lease("s", 1, timeout=0)
  book.decline("s", {"a": "empty"})
  assert told == []  # the other one may be able to
  clock.now = 11
  assert names(book.lease("s", 1, timeout=0)) == ["z"] and told == ["a"]


def test_a_step_that_nothing_can_complete_is_an_error_and_evaluation_goes_on():
  book = Ledger(lease_seconds=10)
  asked = types.Ticket("eval/0", types.EVAL, 0, 0, np.array([1], np.int32), "", 0, 0, 2, 1.0)
  book.add([ticket("a"), asked])
  book.lease("s", 2, timeout=0)
  book.decline("s", {"eval/0": "empty"})
  [finished] = book.take(["eval/0"], timeout=0)
  assert finished.ticket == asked and finished.group.trajectories == ()
  book.decline("s", {"a": "empty"})
  with pytest.raises(SetAsideError, match=r"no sampler can answer ticket a \(s: empty\)"):
    book.take(["a"], timeout=5)


def test_a_ticket_out_for_long_goes_to_a_second_sampler_and_in_time_to_a_third():
  clock = Clock()
  book = Ledger(lease_seconds=10, reissue_seconds=30, clock=clock)
  book.add([ticket("a"), ticket("b")])
  assert names(book.lease("slow", 1, timeout=0)) == ["a"]
  for clock.now in (8, 16, 24, 31):
    book.heartbeat("slow", {})
  assert names(book.lease("slow", 5, timeout=0)) == ["b"]  # not its own again
  assert names(book.lease("second", 5, timeout=0)) == ["a"]
  assert book.lease("third", 5, timeout=0) == []
  assert book.audit()["out"] == 2 and book.audit()["reissued"] == 1
  for clock.now in (40, 48, 56, 62):
    for sampler in ("slow", "second"):
      book.heartbeat(sampler, {})
  assert names(book.lease("third", 5, timeout=0)) == ["a", "b"]
  assert book.finish(group("a"), 0) is PushStatus.ACCEPTED
  assert book.finish(group("a"), 0) is PushStatus.DUPLICATE


def test_the_slow_sampler_may_win_before_anybody_took_the_second_issue():
  clock = Clock()
  book = Ledger(lease_seconds=100, reissue_seconds=30, clock=clock)
  book.add([ticket("a")])
  book.lease("slow", 1, timeout=0)
  clock.now = 31
  assert book.lease("slow", 1, timeout=0) == []  # queued for somebody else
  assert book.finish(group("a"), 0) is PushStatus.ACCEPTED
  assert book.lease("quick", 1, timeout=0) == []


def test_a_ticket_answered_before_a_restart_is_finished_at_once():
  before = types.FinishedGroup(ticket("b"), group("b"), arrival_version=7)
  book = Ledger(lease_seconds=10, recover=lambda t: before if t.ticket_id == "b" else None)
  book.add([ticket("a"), ticket("b")])
  assert names(book.lease("s", 5, timeout=0)) == ["a"]
  assert book.finish(group("b"), 9) is PushStatus.DUPLICATE
  assert book.take(["b"], timeout=0) == [before]
  assert book.audit()["recovered"] == 1


class LedgerMachine(RuleBasedStateMachine):
  """Any order of additions, leases, deaths, answers and batches loses and doubles nothing."""

  def __init__(self):
    super().__init__()
    self.clock = Clock()
    self.book = Ledger(lease_seconds=10, reissue_seconds=20, clock=self.clock)
    self.added, self.finished, self.taken = [], set(), []
    self.held = {name: set() for name in "xyz"}  # what each sampler knows it has

  @rule(count=st.integers(1, 4))
  def add(self, count):
    fresh = [f"t{len(self.added) + i}" for i in range(count)]
    self.book.add([ticket(name) for name in fresh])
    self.added += fresh

  @rule(sampler=st.sampled_from("xyz"), limit=st.integers(1, 5), lost=st.booleans())
  def lease(self, sampler, limit, lost):
    held = self.held[sampler] - self.finished
    leased = names(self.book.lease(sampler, limit, timeout=0, holding=held))
    assert not set(leased) & (self.finished | held)
    self.held[sampler] = held | (set() if lost else set(leased))

  @rule(sampler=st.sampled_from("xyz"), tokens=st.integers(0, 9))
  def beat_with_tokens(self, sampler, tokens):
    self.book.heartbeat(sampler, dict.fromkeys(self.held[sampler], tokens))

  @rule(seconds=st.floats(0, 15))
  def wait(self, seconds):
    self.clock.now += seconds

  @rule(sampler=st.sampled_from("xyz"))
  def beat(self, sampler):
    self.book.heartbeat(sampler, {})

  @rule(sampler=st.sampled_from("xyz"))
  def leave(self, sampler):
    self.book.leave(sampler)
    self.book.heartbeat(sampler, dict.fromkeys(self.held[sampler], 1))  # it was on the way
    self.book.join(sampler)
    self.held[sampler] = set()

  @rule(data=st.data())
  def answer(self, data):
    if self.added:
      name = data.draw(st.sampled_from(self.added))
      first = name not in self.finished
      expected = PushStatus.ACCEPTED if first else PushStatus.DUPLICATE
      assert self.book.finish(group(name), 0) is expected
      self.finished.add(name)

  @rule()
  def take_all_finished(self):
    ready = [n for n in self.added if n in self.finished and n not in self.taken]
    groups = self.book.take(ready, timeout=0)
    assert [g.ticket.ticket_id for g in groups] == ready
    self.taken += ready

  @invariant()
  def the_books_balance(self):
    audit = self.book.audit()
    assert audit["queued"] + audit["out"] + audit["waiting"] + audit["taken"] == len(self.added)
    assert len(self.taken) == len(set(self.taken)) == audit["taken"]


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
