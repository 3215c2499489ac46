"""Evaluations that a learner requests."""

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.evaluation import requests
from offpolicy_rl.replay.ledger import Ledger


class Example:
  task = environment = ""

  def __init__(self, token):
    self.prompt_tokens, self.answer = np.array([token], np.int32), "x"


def answer(ticket, rewards, failures=0):
  one = np.ones(1, np.int32)
  return types.Group(
    ticket.ticket_id,
    tuple(types.Trajectory(one, -one.astype(np.float32), one, True, r) for r in rewards),
    failures,
  )


def test_the_learner_writes_each_evaluation_once_when_all_its_groups_are_back():
  ledger, written = Ledger(10), []
  evaluations = requests.EvaluationRequests(
    ledger,
    [Example(3), Example(4)],
    samples=4,
    temperature=0.9,
    write=lambda *row: written.append(row),
  )
  evaluations.request("during", version=20, step=20)
  tickets = ledger.lease("s", 10, timeout=0)
  assert [(t.temperature, t.num_completions) for t in tickets] == [(0.0, 1), (0.9, 4)] * 2
  assert all((t.min_version, t.max_version, t.kind) == (20, 20, types.EVAL) for t in tickets)
  rewards = {
    tickets[0].ticket_id: [1.0],
    tickets[1].ticket_id: [1.0, 0, 0, 0],
    tickets[2].ticket_id: [0.0],
    tickets[3].ticket_id: [0.0] * 4,
  }
  for ticket in tickets[:3]:
    ledger.finish(answer(ticket, rewards[ticket.ticket_id]), 21)
  assert not evaluations.collect() and not written
  [pending] = evaluations.pending()
  ids = [ticket.ticket_id for ticket in tickets]
  assert pending == {"step": 20, "phase": "during", "version": 20, "ticket_ids": ids}
  ledger.finish(answer(tickets[3], rewards[tickets[3].ticket_id], failures=2), 21)
  assert evaluations.collect() and evaluations.collect()
  [(step, row)] = written
  assert step == 20 and row["version"] == 20 and row["phase"] == "during"
  assert row["heldout/greedy"] == 0.5
  assert row["heldout/pass@1"] == pytest.approx(0.125)
  assert row["heldout/pass@k"] == 0.5 and row["heldout/k"] == 4
  assert row["heldout/problems"] == 2 and row["heldout/verifier_failures"] == 2
  assert row["heldout/pass@1_stderr"] == pytest.approx(np.std([0.25, 0]) / np.sqrt(2))
