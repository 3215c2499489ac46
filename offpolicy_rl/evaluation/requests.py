"""Evaluations that a learner requests from its samplers."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from offpolicy_rl import types
from offpolicy_rl.evaluation import estimates


def tickets(
  examples: Sequence, *, name: str, version: int, step: int, num_samples: int, temperature: float
) -> list[types.Ticket]:
  """One greedy and one sampled ticket per example, for exactly this version."""
  return [
    types.Ticket(
      ticket_id=f"{types.EVAL}/{name}/{index}/{mode}",
      kind=types.EVAL,
      step=step,
      group_index=index,
      prompt_tokens=example.prompt_tokens,
      answer=example.answer,
      min_version=version,
      max_version=version,
      num_completions=count,
      temperature=temp,
      environment=example.environment,
    )
    for index, example in enumerate(examples)
    for mode, count, temp in (("greedy", 1, 0.0), ("sampled", num_samples, temperature))
  ]


class Request(NamedTuple):
  """An evaluation that was requested."""

  step: int
  phase: str  # before, during or after
  version: int
  ticket_ids: list[str]


class EvaluationRequests:
  """Requests evaluations and writes each result when all its groups are back."""

  def __init__(
    self,
    ledger: Any,  # with `add(tickets, first=)` and `take(ticket_ids, timeout)`
    examples: Sequence,
    *,
    samples: int,
    temperature: float,
    write: Callable[[int, dict], None],
    record: Callable[[Sequence[types.FinishedGroup]], None] = lambda groups: None,
  ):
    """Requests nothing yet.

    Args:
      write: will receive each result as (step, metrics).
      record: will receive its groups before that.
    """
    self._ledger, self._examples = ledger, examples
    self._samples, self._temperature = samples, temperature
    self._write, self._record = write, record
    self._pending: collections.deque[Request] = collections.deque()

  def request(self, phase: str, *, version: int, step: int) -> None:
    """Requests an evaluation of `version`, to be answered before any training ticket."""
    requested = tickets(
      self._examples,
      name=f"{phase}-{version}",
      version=version,
      step=step,
      num_samples=self._samples,
      temperature=self._temperature,
    )
    self._ledger.add(requested, first=True)
    ids = [ticket.ticket_id for ticket in requested]
    self._pending.append(Request(step, phase, version, ids))

  def pending(self) -> list[dict]:
    """Requests without a result, for a checkpoint; a resumed run repeats them in this order."""
    return [request._asdict() for request in self._pending]

  def collect(self, timeout: float = 0.0) -> bool:
    """Writes complete results; returns whether none is pending any more."""
    while self._pending:
      request = self._pending[0]
      groups = self._ledger.take(request.ticket_ids, timeout)
      if groups is None:
        return False
      self._pending.popleft()
      self._record(groups)
      tasks = [example.task for example in self._examples]
      metrics = estimates.heldout_metrics(groups, self._samples, tasks)
      self._write(request.step, {"phase": request.phase, "version": request.version, **metrics})
    return True
