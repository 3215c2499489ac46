"""Turns prompts into tickets, step by step, as soon as lag control admits them."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from offpolicy_rl import types
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger

SPARES = 8  # prompts of a group that can replace one that no sampler can answer
_ID = re.compile(rf"{types.TRAIN}/(0|[1-9][0-9]*)/(0|[1-9][0-9]*)")


def ticket_ids(step: int, prompts_per_step: int, lag: LagControl) -> list[str]:
  """Ids of the groups that `step` consumes, in the order of its batch.

  Number i + j * prompts_per_step is the j-th replacement of group i; a replay starts with the one
  that the recorded run used in the end.
  """
  numbers = (i + lag.attempt(step, i) * prompts_per_step for i in range(prompts_per_step))
  return [f"{types.TRAIN}/{step}/{number}" for number in numbers]


def _step_and_number(ticket_id: str) -> tuple[int, int] | None:
  """Inverse of `ticket_ids` for one id; None for any other."""
  match = _ID.fullmatch(ticket_id)
  return (int(match[1]), int(match[2])) if match else None


def _parts(ticket: types.Ticket) -> tuple[int, int]:
  parsed = _step_and_number(ticket.ticket_id)
  assert parsed is not None, ticket.ticket_id
  return parsed


@dataclasses.dataclass(frozen=True)
class Tickets:
  """The training tickets of a run: functions of the step, so that a resumed run makes the same.

  `stream[i]` is the i-th prompt of the run, as `prompts.Example` has one. Each group of a step has
  its next 1 + max_refills prompts, and `SPARES` more, from a place in the stream that no run
  reaches, to replace those that no sampler can answer.
  """

  stream: Any
  lag: LagControl
  prompts_per_step: int
  group_size: int
  temperature: float
  max_refills: int = 0

  def for_step(self, step: int) -> list[types.Ticket]:
    """The tickets that a step begins with."""
    tickets = []
    for name in ticket_ids(step, self.prompts_per_step, self.lag):
      ticket = self.by_id(name)
      assert ticket is not None, name  # a replay that asks for too many was refused
      tickets.append(ticket)
    return tickets

  def by_id(self, ticket_id: str) -> types.Ticket | None:
    """The ticket with an id; None if there can be none."""
    parsed = _step_and_number(ticket_id)
    if parsed is None:
      return None
    step, number = parsed
    attempt, slot = divmod(number, self.prompts_per_step)
    index = self._index(step * self.prompts_per_step + slot, attempt)
    if index is None:
      return None
    example = self.stream[index]
    low, high = self.lag.versions_for(step, slot)
    return types.Ticket(
      ticket_id=ticket_id,
      kind=types.TRAIN,
      step=step,
      group_index=index,
      prompt_tokens=example.prompt_tokens,
      answer=example.answer,
      min_version=low,
      max_version=high,
      num_completions=self.group_size,
      temperature=self.temperature,
      environment=example.environment,
    )

  def _index(self, group: int, attempt: int) -> int | None:
    """Index in the stream; `group`: number among all groups of the run."""
    if attempt <= self.max_refills:
      return group * (1 + self.max_refills) + attempt
    spare = attempt - self.max_refills - 1
    return types.FIRST_SPARE + group * SPARES + spare if spare < SPARES else None

  def refill(self, ticket: types.Ticket) -> types.Ticket | None:
    """The ticket that replaces one whose group has no signal; None if none is left."""
    attempt = _parts(ticket)[1] // self.prompts_per_step
    return self.spare(ticket) if attempt < self.max_refills else None

  def spare(self, ticket: types.Ticket) -> types.Ticket | None:
    """The ticket that replaces one that can't be answered; None if none is left."""
    step, number = _parts(ticket)
    return self.by_id(f"{types.TRAIN}/{step}/{number + self.prompts_per_step}")


class Admission:
  """Hands the tickets of steps to the ledger."""

  def __init__(
    self,
    ledger: Ledger,
    lag: LagControl,
    tickets: Tickets,
    *,
    first_step: int,
    num_steps: int,
    reached: Callable[[int, int], None],
    known_steps: int = 0,
  ):
    """`reached(version, next step)` notes progress durably before any ticket goes out.

    `known_steps`: tickets of earlier steps were out before a restart, so answers may come for them.
    """
    self._ledger, self._lag, self._tickets = ledger, lag, tickets
    self._next_step, self._num_steps = first_step, num_steps
    self._reached, self._known_steps = reached, known_steps

  def published(self, version: int) -> None:
    """Queues every step that a new version admits."""
    next_step = self._next_step
    while next_step < self._num_steps and self._lag.admits(next_step, version):
      next_step += 1
    self._known_steps = max(self._known_steps, next_step)
    self._reached(version, next_step)
    for step in range(self._next_step, next_step):
      self._ledger.add(self._tickets.for_step(step))
    self._next_step = next_step  # last: until then `ticket_before_restart` still knows them

  def is_consumed(self, ticket_id: str, version: int) -> bool:
    """Whether this is the ticket of a step that `version` has consumed."""
    parsed = _step_and_number(ticket_id)
    return parsed is not None and parsed[0] < version

  def ticket_before_restart(self, ticket_id: str) -> types.Ticket | None:
    """The ticket of a group that answers an earlier start of this learner.

    None unless it was out before the restart and is not queued yet in this session.
    """
    parsed = _step_and_number(ticket_id)
    if parsed is None or not self._next_step <= parsed[0] < min(self._known_steps, self._num_steps):
      return None
    return self._tickets.by_id(ticket_id)
