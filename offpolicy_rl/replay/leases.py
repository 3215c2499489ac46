"""Leases: the samplers of each ticket, until when, and the tokens sampled so far.

Not thread-safe: the ledger holds the lock. Times are in seconds of the ledger's clock.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping


@dataclasses.dataclass
class Lease:
  """A ticket in one sampler's hands."""

  sampler_id: str
  deadline: float
  moved: float  # when `tokens` last changed
  tokens: int = 0  # sampled so far, as its sampler reports


class Leases:
  """All leases; a ticket has more than one when its first sampler is slow."""

  def __init__(self, seconds: float):
    """`seconds`: duration of a lease after its sampler's last sign of life."""
    self._seconds = seconds
    self._leases: dict[str, list[Lease]] = {}
    self._heard: dict[str, float] = {}  # sampler -> its last sign of life

  def tickets(self) -> Collection[str]:
    """The leased tickets."""
    return self._leases.keys()

  def holds(self, sampler_id: str, ticket_id: str) -> bool:
    """Whether this sampler has a lease of this ticket."""
    return any(lease.sampler_id == sampler_id for lease in self._leases.get(ticket_id, ()))

  def grant(self, sampler_id: str, ticket_id: str, now: float) -> None:
    """Leases a ticket to a sampler that has no lease of it."""
    lease = Lease(sampler_id, now + self._seconds, now)
    self._leases.setdefault(ticket_id, []).append(lease)

  def hear(self, sampler_id: str, tokens: Mapping[str, int | None], now: float) -> None:
    """Extends the leases of a living sampler; `tokens`: ticket -> sampled so far, if known."""
    self._heard[sampler_id] = now
    for ticket_id, leases in self._leases.items():
      for lease in (lease for lease in leases if lease.sampler_id == sampler_id):
        lease.deadline = now + self._seconds
        sampled = tokens.get(ticket_id)
        if sampled is not None and sampled != lease.tokens:
          lease.tokens, lease.moved = sampled, now

  def living(self, now: float) -> int:
    """Number of samplers that gave a sign of life within the duration of a lease."""
    since = now - self._seconds
    self._heard = {name: at for name, at in self._heard.items() if at >= since}
    return len(self._heard)

  def gone(self, sampler_id: str) -> list[str]:
    """Ends the leases of a sampler that left; returns the tickets without another lease."""
    self._heard.pop(sampler_id, None)
    return self.end(lambda _, lease: lease.sampler_id == sampler_id)

  def expire(self, now: float) -> list[str]:
    """Ends the leases that were not extended; returns the tickets without another lease."""
    return self.end(lambda _, lease: lease.deadline < now)

  def end(self, ends: Callable[[str, Lease], bool]) -> list[str]:
    """Ends leases for which `ends(ticket id, lease)`; returns the tickets without another lease."""
    free = []
    for ticket_id, leases in list(self._leases.items()):
      left = [lease for lease in leases if not ends(ticket_id, lease)]
      if left:
        self._leases[ticket_id] = left
      else:
        del self._leases[ticket_id]
        free.append(ticket_id)
    return free

  def drop(self, ticket_id: str) -> None:
    """Ends all leases of a ticket."""
    self._leases.pop(ticket_id, None)

  def stuck(self, since: float) -> list[str]:
    """Tickets whose tokens have not changed after `since` at any sampler that has them."""
    return [t for t, leases in self._leases.items() if max(x.moved for x in leases) < since]
