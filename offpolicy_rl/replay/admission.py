"""Turns prompts into tickets, step by step, as soon as lag control admits them."""

from collections.abc import Callable

from offpolicy_rl import types
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger


def ticket_ids(step: int, prompts_per_step: int) -> list[str]:
  """Ids of the groups that `step` consumes, in the order of its batch."""
  return [f"{types.TRAIN}/{step}/{i}" for i in range(prompts_per_step)]


def train_tickets(
  step: int, stream, lag: LagControl, *, prompts_per_step: int, group_size: int, temperature: float
) -> list[types.Ticket]:
  """The tickets of one step: a pure function of the step, so a resumed run makes the same ones.

  `stream[i]` is the i-th prompt of the run, with `prompt_tokens` and `answer`.
  """
  tickets = []
  for i, ticket_id in enumerate(ticket_ids(step, prompts_per_step)):
    index = step * prompts_per_step + i
    example = stream[index]
    low, high = lag.versions_for(step, i)
    tickets.append(
      types.Ticket(
        ticket_id=ticket_id,
        kind=types.TRAIN,
        step=step,
        group_index=index,
        prompt_tokens=example.prompt_tokens,
        answer=example.answer,
        min_version=low,
        max_version=high,
        num_completions=group_size,
        temperature=temperature,
      )
    )
  return tickets


class Admission:
  """Remembers up to which step tickets were handed to the ledger."""

  def __init__(
    self, ledger: Ledger, lag: LagControl, make_tickets: Callable[[int], list[types.Ticket]],
    *, first_step: int, num_steps: int, reached: Callable[[int, int], None], known_steps: int = 0,
  ):  # fmt: skip
    """`reached(version, next step)` notes progress durably before any ticket goes out.

    `known_steps`: tickets of earlier steps were out before a restart, so answers may come for them.
    """
    self._ledger, self._lag, self._make_tickets = ledger, lag, make_tickets
    self._next_step, self._num_steps = first_step, num_steps
    self._reached, self._known_steps = reached, known_steps

  def published(self, version: int) -> None:
    """Call after each new version: queues every step that it admits."""
    next_step = self._next_step
    while next_step < self._num_steps and self._lag.admits(next_step, version):
      next_step += 1
    self._known_steps = max(self._known_steps, next_step)
    self._reached(version, next_step)
    for step in range(self._next_step, next_step):
      self._ledger.add(self._make_tickets(step))
    self._next_step = next_step  # last: until then `ticket_before_restart` still knows them

  def ticket_before_restart(self, ticket_id: str, version: int) -> types.Ticket | str | None:
    """The ticket of a group that answers a learner which died since.

    Not queued yet in this session but known to be out: the ticket. Of a step that `version` has
    consumed: "duplicate". Otherwise None.
    """
    kind, _, rest = ticket_id.partition("/")
    step, _, index = rest.partition("/")
    if kind != types.TRAIN or not (step.isdigit() and index.isdigit()):
      return None
    if int(step) < version:
      return "duplicate"
    if not self._next_step <= int(step) < min(self._known_steps, self._num_steps):
      return None
    return next((t for t in self._make_tickets(int(step)) if t.ticket_id == ticket_id), None)
