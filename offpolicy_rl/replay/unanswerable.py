"""Replaces prompts that no sampler can answer by spare ones, and reports which and why.

The replacement depends on the ticket only, so a repeated or resumed run with exact lag finds the
same one again.
"""

import collections
from collections.abc import Callable

from offpolicy_rl import types

_TEXT = 200  # characters of a prompt that people are shown


class Unanswerable:
  """`set_aside` of a Ledger. It is called under a lock, so lines for people wait for `messages`."""

  def __init__(
    self, spare: Callable[[types.Ticket], types.Ticket | None], text: Callable[[types.Ticket], str]
  ):
    """`spare(ticket)`: its replacement; None when they are used up. `text`: text of its prompt."""
    self._spare, self._text = spare, text
    self._lines: collections.deque[str] = collections.deque()
    self._counts = collections.Counter()  # step -> prompts

  def __call__(self, ticket: types.Ticket, why: str) -> types.Ticket | None:
    """The replacement of a ticket that samplers declined for the reasons `why`."""
    text = self._text(ticket)[:_TEXT]
    prompt = f"prompt {text!r} (ticket {ticket.ticket_id}) is set aside: {why}"
    if ticket.kind == types.EVAL:
      self._lines.append(f"held-out {prompt}; it counts as not solved")
      return None
    self._counts[ticket.step] += 1
    spare = self._spare(ticket)
    instead = f"ticket {spare.ticket_id} takes its place" if spare else "nothing can take its place"
    self._lines.append(f"{prompt}; {instead}")
    return spare

  def messages(self) -> list[str]:
    """Lines for people since the last call."""
    return [self._lines.popleft() for _ in range(len(self._lines))]

  def count(self, step: int) -> int:
    """Number of training prompts set aside in a step; call it once all its groups are there."""
    return self._counts.pop(step, 0)
