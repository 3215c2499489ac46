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
  low, high = lag.versions_for(step)
  tickets = []
  for i, ticket_id in enumerate(ticket_ids(step, prompts_per_step)):
    index = step * prompts_per_step + i
    example = stream[index]
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
    *, first_step: int, num_steps: int,
  ):  # fmt: skip
    self._ledger, self._lag, self._make_tickets = ledger, lag, make_tickets
    self._next_step, self._num_steps = first_step, num_steps

  def published(self, version: int) -> None:
    """Call after each new version: queues every step that it admits."""
    while self._next_step < self._num_steps and self._lag.admits(self._next_step, version):
      self._ledger.add(self._make_tickets(self._next_step))
      self._next_step += 1
