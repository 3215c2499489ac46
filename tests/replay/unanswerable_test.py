"""Prompts that no sampler can answer: what takes their place depends on them only."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.replay import admission
from offpolicy_rl.replay.dynamic_sampling import DynamicSampling
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger, SetAsideError
from offpolicy_rl.replay.unanswerable import Unanswerable
from tests.replay.dynamic_sampling_test import Example, balance, group

PROMPTS, LAG = 3, LagControl("fixed", 2)


class Stream:
  """As many prompts as there are numbers."""

  def __getitem__(self, index):
    return Example(index % 1000)


def made(most=0) -> admission.Tickets:
  return admission.Tickets(Stream(), LAG, PROMPTS, 2, 1.0, most)


def opened(tickets, step=5):
  aside = Unanswerable(tickets.spare, lambda ticket: f"prompt of {ticket.ticket_id}")
  book = Ledger(lease_seconds=10, set_aside=aside, replace=DynamicSampling(tickets.refill))
  book.add(tickets.for_step(step))
  return book, aside, admission.ticket_ids(step, PROMPTS, LAG)


def work(book, samplers, empty, rng=None):
  """They lease, decline what is in `empty` and answer the rest until nothing is left."""
  left = True
  while left:
    left = False
    for name in samplers if rng is None else rng.sample(samplers, len(samplers)):
      for ticket in book.lease(name, 2, timeout=0, holding=()):
        left = True
        if ticket.ticket_id in empty:
          book.decline(name, {ticket.ticket_id: "empty"})
        else:
          book.finish(group(ticket.ticket_id, 0.0, 1.0), 5)


@pytest.mark.parametrize("samplers", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_one_empty_question_costs_nothing_but_itself(samplers):
  book, aside, ids = opened(made())
  work(book, samplers, {"train/5/1"})
  assert [g.ticket.ticket_id for g in book.take(ids, timeout=0)] == [
    "train/5/0",
    "train/5/4",
    "train/5/2",
  ]
  [line] = aside.messages()
  assert line.startswith("prompt 'prompt of train/5/1' (ticket train/5/1) is set aside: a: empty")
  assert line.endswith("; ticket train/5/4 takes its place")
  assert aside.messages() == [] and aside.count(5) == 1 and aside.count(5) == 0
  assert balance(book)["set_aside"] == 1


def test_spares_are_prompts_of_their_own_with_the_lag_of_their_step():
  tickets, seen = made(most=1), set()
  for step in range(4):
    for number in range(PROMPTS * (2 + admission.SPARES)):
      ticket = tickets.by_id(f"train/{step}/{number}")
      assert (ticket.step, ticket.min_version) == (step, max(0, step - 2))
      seen.add(ticket.group_index)
    assert tickets.by_id(f"train/{step}/{PROMPTS * (2 + admission.SPARES)}") is None
  assert len(seen) == 4 * PROMPTS * (2 + admission.SPARES) and max(seen) < 2**32
  # What a run without such prompts draws does not depend on there being spares.
  assert [made().for_step(step)[0].group_index for step in (0, 1, 2)] == [0, 3, 6]


def test_a_group_without_signal_has_no_claim_to_them():
  tickets = made(most=1)
  [first, second] = [tickets.by_id(f"train/5/{number}") for number in (0, 3)]
  assert tickets.refill(first) == second and tickets.refill(second) is None
  assert tickets.spare(second) == tickets.by_id("train/5/6")


@given(st.sets(st.integers(0, 8)), st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_batch_depends_on_the_prompts_only(numbers, living, rng):
  """Whoever leases when; with refills beside."""
  empty = {f"train/5/{number}" for number in numbers}
  book, _, ids = opened(made(most=1))
  work(book, ["a", "b", "c"][:living], empty, rng)
  expected = []
  for slot in range(PROMPTS):
    chain = (f"train/5/{slot + PROMPTS * attempt}" for attempt in range(9))
    expected.append(next(name for name in chain if name not in empty))
  assert [g.ticket.ticket_id for g in book.take(ids, timeout=0)] == expected
  balance(book)


def test_when_the_spares_are_used_up_the_run_ends_by_name():
  book, aside, ids = opened(made())
  all_of_one = {f"train/5/{1 + PROMPTS * attempt}" for attempt in range(1 + admission.SPARES)}
  work(book, ["a", "b"], all_of_one)
  with pytest.raises(SetAsideError, match=r"can answer ticket train/5/25 \([ab]: empty"):
    book.take(ids, timeout=0)
  assert len(aside.messages()) == 1 + admission.SPARES
  assert aside.messages() == [] and balance(book)["set_aside"] == 1 + admission.SPARES


def test_an_evaluation_goes_on_without_the_problem():
  book, aside, _ = opened(made())
  asked = dataclasses.replace(made().by_id("train/5/0"), ticket_id="eval/x", kind=types.EVAL)
  book.add([asked], first=True)
  work(book, ["a"], {"eval/x"})
  [finished] = book.take(["eval/x"], timeout=0)
  assert finished.group.trajectories == ()
  assert aside.messages() == [
    "held-out prompt 'prompt of eval/x' (ticket eval/x) is set aside: a: empty; it counts as not "
    "solved"
  ]


def test_lines_are_of_bounded_length():
  _, aside, _ = opened(made())
  aside = Unanswerable(made().spare, lambda ticket: "x" * 10_000)
  aside(made().by_id("train/5/0"), "empty")
  assert len(aside.messages()[0]) < 400
  assert np.iinfo(np.uint32).max >= made().by_id("train/5/6").group_index
