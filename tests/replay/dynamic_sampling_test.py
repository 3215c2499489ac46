"""Groups without signal are replaced: by content only, at most so often, and counted."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.replay import admission
from offpolicy_rl.replay.dynamic_sampling import DynamicSampling, has_signal
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.tasks import scoring, shaping
from offpolicy_rl.types import PushStatus

PROMPTS, MOST = 3, 2


class Example:
  environment = ""

  def __init__(self, i):
    self.prompt_tokens, self.answer = np.array([i], np.int32), str(i)


def make_tickets(lag=None, most=MOST) -> admission.Tickets:
  stream = [Example(i) for i in range(200)]
  return admission.Tickets(stream, lag or LagControl("fixed", 2), PROMPTS, 2, 1.0, most)


def group(name: str, *rewards: float, length: int = 3) -> types.Group:
  zeros = np.zeros(length, np.float32)
  rows = [types.Trajectory(zeros.astype(int), zeros, zeros.astype(int), True, r) for r in rewards]
  return types.Group(name, tuple(rows))


def opened(step=5, recover=lambda ticket: None):
  """A ledger with the tickets of one step, and its refills."""
  tickets = make_tickets()
  refills = DynamicSampling(tickets.refill)
  book = Ledger(lease_seconds=10, recover=recover, replace=refills)
  book.add(tickets.for_step(step))
  return book, refills, admission.ticket_ids(step, PROMPTS, LagControl("fixed", 2))


def balance(book):
  audit = book.audit()
  parts = ("queued", "out", "waiting", "taken", "replaced")
  assert audit["added"] == sum(audit[part] for part in parts), audit
  return audit


def test_signal_is_a_difference_in_reward():
  assert has_signal(group("a", 0.0, 1.0)) and has_signal(group("a", 0.5, 0.5, 0.51))
  assert not has_signal(group("a", 0.0, 0.0)) and not has_signal(group("a", 1.0, 1.0))


@pytest.mark.parametrize("shape", [{"length_weight": 0.3}, {"format_reward": 0.1}])
def test_shaping_is_no_signal(shape):
  """Wrong answers that differ in length or form only teach nothing about being right."""
  judged = [scoring.Judgement(0.0, True, False), scoring.Judgement(0.0, False, False)]
  rewards = shaping.rewards(judged, [40, 4], shaping.Shaping(**shape))
  assert rewards[0] != rewards[1]
  of = lambda *verdicts: types.Group(
    "train/5/0",
    tuple(
      dataclasses.replace(t, verdict=verdict)
      for t, verdict in zip(group("a", *rewards).trajectories, verdicts, strict=True)
    ),
  )
  assert has_signal(of(0.0, 1.0)) and not has_signal(of(0.0, 0.0))
  refills = DynamicSampling(make_tickets().refill)
  finished = types.FinishedGroup(make_tickets().by_id("train/5/0"), of(0.0, 0.0), 0)
  assert refills(finished).ticket_id == "train/5/3"
  assert refills.metrics(5)["filtered/reward"] == 0.0


def test_every_ticket_of_a_step_has_prompts_and_keys_of_its_own():
  tickets = make_tickets()
  seen = {}
  for step in range(6):
    for number in range(PROMPTS * (1 + MOST)):
      ticket = tickets.by_id(f"train/{step}/{number}")
      assert (ticket.min_version, ticket.max_version) == (max(0, step - 2),) * 2
      assert ticket.step == step and ticket.answer == str(ticket.group_index)
      seen[ticket.group_index] = ticket.ticket_id
  assert sorted(seen) == list(range(6 * PROMPTS * (1 + MOST)))  # none twice, none left out
  assert [t.group_index for t in make_tickets(most=0).for_step(5)] == [15, 16, 17]


@pytest.mark.parametrize("name", ["5/33", "5/-1", "05/1", "5/01", "5/", "5/٣", "٥/3", "5", ""])
def test_no_other_name_is_a_ticket(name):
  assert make_tickets().by_id("train/5/3").ticket_id == "train/5/3"
  assert make_tickets().by_id(f"train/{name}") is None
  assert make_tickets().by_id("eval/5/1") is None and make_tickets().by_id("") is None


def test_a_group_without_signal_makes_way_for_one_of_the_next_prompt():
  book, refills, ids = opened()
  [first, *_] = book.lease("s", 1, timeout=0)
  assert book.finish(group(first.ticket_id, 1.0, 1.0), 5) is PushStatus.ACCEPTED
  assert book.take(ids, timeout=0) is None
  [again, *others] = book.lease("s", 9, timeout=0)  # before the rest: its step may be waiting
  assert again.ticket_id == "train/5/3" and again.group_index == first.group_index + 1
  assert (again.min_version, again.max_version) == (first.min_version, first.max_version)
  for ticket in (again, *others):
    book.finish(group(ticket.ticket_id, 0.0, 1.0), 5)
  taken = book.take(ids, timeout=0)
  assert [g.ticket.ticket_id for g in taken] == ["train/5/3", "train/5/1", "train/5/2"]
  assert refills.metrics(5) == {
    "filtered/groups": 1,
    "filtered/reward": 1.0,
    "filtered/by_length": {"4": 1},
  }
  assert refills.metrics(6)["filtered/groups"] == 0
  assert balance(book)["taken"] == 3


def test_the_order_of_arrival_leaves_no_trace():
  found = []
  for order in itertools.permutations(enumerate((0.1, 0.2, 0.3))):
    book, refills, _ = opened()
    for number, reward in order:
      book.finish(group(f"train/5/{number}", reward, reward), 5)
    found.append(refills.metrics(5)["filtered/reward"])
  assert len(found) == 6 and len(set(found)) == 1 and found[0] == pytest.approx(0.2)


def test_late_answers_to_any_of_them_are_duplicates():
  book, _, ids = opened()
  named = ["train/5/0", "train/5/3", "train/5/1", "train/5/2"]
  for name in named:
    book.finish(group(name, 0.0, float(name != "train/5/0")), 5)
    assert book.finish(group(name, 0.0, 1.0), 5) is PushStatus.DUPLICATE
  assert len(book.take(ids, timeout=0)) == 3
  assert all(book.finish(group(name, 0.0, 1.0), 5) is PushStatus.DUPLICATE for name in named)
  with pytest.raises(ValueError, match="'train/5/0' was added before"):
    book.add(make_tickets().for_step(5))


def test_when_the_spares_are_used_up_the_last_group_is_used():
  book, refills, ids = opened()
  for number in (0, 3, 6, 1, 2):
    assert book.finish(group(f"train/5/{number}", *[0.5] * 2), 5) is PushStatus.ACCEPTED
    if number in (1, 2):
      for spare in (number + 3, number + 6):
        book.finish(group(f"train/5/{spare}", 0.0, 1.0), 5)
  assert [g.ticket.ticket_id for g in book.take(ids, timeout=0)] == [
    "train/5/6",
    "train/5/4",
    "train/5/5",
  ]
  assert refills.metrics(5)["filtered/groups"] == 4
  balance(book)


def test_evaluation_keeps_its_groups():
  book, _, _ = opened()
  ticket = types.Ticket("eval/a/0", types.EVAL, 5, 0, np.array([1]), "", 0, 9, 2, 1.0)
  book.add([ticket], first=True)
  book.finish(group("eval/a/0", 1.0, 1.0), 5)
  assert len(book.take(["eval/a/0"], timeout=0)) == 1


# Which of a step's nine possible groups have signal, and the order in which answers arrive.
CONTENTS = st.lists(st.booleans(), min_size=9, max_size=9)


@settings(deadline=None)
@given(CONTENTS, st.randoms(use_true_random=False), st.integers(0, 9))
def test_the_batch_depends_on_the_groups_only(signal, draw, survived):
  """Whatever the order of arrival, and wherever the learner was killed in between."""
  contents = {f"train/5/{i}": group(f"train/5/{i}", 0.0, float(signal[i])) for i in range(9)}
  expected = []
  for slot in range(PROMPTS):
    chain = [slot + PROMPTS * attempt for attempt in range(1 + MOST)]
    expected.append(next((i for i in chain if signal[i]), chain[-1]))
  durable = {}
  found = lambda t: durable.get(t.ticket_id) and types.FinishedGroup(t, durable[t.ticket_id], 5)
  for answers in (survived, 9):  # the learner dies after so many answers; the second run ends
    book, refills, ids = opened(recover=found)
    for _ in range(answers):
      leased = book.lease("s", 9, timeout=0)
      if not leased:
        break
      ticket = draw.choice(leased)
      durable[ticket.ticket_id] = contents[ticket.ticket_id]
      book.finish(contents[ticket.ticket_id], 5)
      book.join("s")
      balance(book)
  taken = book.take(ids, timeout=0)
  assert [g.ticket.ticket_id for g in taken] == [f"train/5/{i}" for i in expected]
  assert [g.group for g in taken] == [contents[g.ticket.ticket_id] for g in taken]
  assert refills.metrics(5)["filtered/groups"] == sum(i // PROMPTS for i in expected)
  assert balance(book)["taken"] == PROMPTS


def test_a_replay_begins_with_the_groups_that_were_used():
  from offpolicy_rl.replay import schedule

  recorded = schedule.Schedule("{}", [[0, 0, 0]], [["a"] * 3], [0, 1], [[0, 2, 1]])
  lag = LagControl("replay", recorded=recorded)
  made = make_tickets(lag).for_step(0)
  assert [t.ticket_id for t in made] == ["train/0/0", "train/0/7", "train/0/5"]
  assert [t.ticket_id for t in made] == admission.ticket_ids(0, PROMPTS, lag)
  assert [t.group_index for t in made] == [0, 3 + 2, 6 + 1]


def test_an_answer_to_a_dead_learners_replacement_is_known():
  tickets = make_tickets()
  admit = admission.Admission(
    Ledger(10),
    LagControl("fixed", 2),
    tickets,
    first_step=4,
    num_steps=20,
    reached=lambda *_: None,
    known_steps=9,
  )
  admit.published(4)  # queues up to step 6
  assert admit.ticket_before_restart("train/8/7") == tickets.by_id("train/8/7")
  assert admit.ticket_before_restart("train/8/33") is None  # no such spare
