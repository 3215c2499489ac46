"""Which sampler has which ticket, until when, and how far it has come with it.

Plain books without a lock: the ledger's holds. Times are its clock's, in seconds.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping


@dataclasses.dataclass
class Lease:
  """A ticket in one sampler's hands."""

  sampler_id: str
  deadline: float
  moved: float  # when `tokens` last changed
  tokens: int = 0  # sampled so far, as its sampler says


class Leases:
  """All that are under way; a ticket has more than one when its first sampler is slow."""

  def __init__(self, seconds: float):
    """`seconds`: a lease ends so long after its sampler's last sign of life."""
    self._seconds = seconds
    self._leases: dict[str, list[Lease]] = {}
    self._heard: dict[str, float] = {}  # sampler -> its last sign of life

  def tickets(self) -> Collection[str]:
    """Those that somebody has."""
    return self._leases.keys()

  def holds(self, sampler_id: str, ticket_id: str) -> bool:
    """Whether this sampler has a lease of this ticket."""
    return any(lease.sampler_id == sampler_id for lease in self._leases.get(ticket_id, ()))

  def grant(self, sampler_id: str, ticket_id: str, now: float) -> None:
    """A new lease; the sampler must not have one of this ticket."""
    lease = Lease(sampler_id, now + self._seconds, now)
    self._leases.setdefault(ticket_id, []).append(lease)

  def hear(self, sampler_id: str, tokens: Mapping[str, int | None], now: float) -> None:
    """A sign of life: extends the sampler's leases.

    `tokens`: ticket -> sampled so far; None = not told.
    """
    self._heard[sampler_id] = now
    for ticket_id, leases in self._leases.items():
      for lease in (lease for lease in leases if lease.sampler_id == sampler_id):
        lease.deadline = now + self._seconds
        told = tokens.get(ticket_id)
        if told is not None and told != lease.tokens:
          lease.tokens, lease.moved = told, now

  def living(self, now: float) -> int:
    """Samplers that were heard of within the length of a lease."""
    since = now - self._seconds
    self._heard = {name: at for name, at in self._heard.items() if at >= since}
    return len(self._heard)

  def gone(self, sampler_id: str) -> list[str]:
    """A sampler left: ends its leases -> the tickets that nobody has any more."""
    self._heard.pop(sampler_id, None)
    return self.end(lambda _, lease: lease.sampler_id == sampler_id)

  def expire(self, now: float) -> list[str]:
    """Ends the leases that nobody extended -> the tickets that nobody has any more."""
    return self.end(lambda _, lease: lease.deadline < now)

  def end(self, ends: Callable[[str, Lease], bool]) -> list[str]:
    """Ends leases with ends(ticket id, lease) -> the tickets that nobody has any more."""
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
    """Ends all leases of a ticket: nobody is to answer it any more."""
    self._leases.pop(ticket_id, None)

  def stuck(self, since: float) -> list[str]:
    """Tickets whose tokens have not changed after `since` at any sampler that has them."""
    moved = lambda leases: max(lease.moved for lease in leases)
    return [ticket_id for ticket_id, leases in self._leases.items() if moved(leases) < since]
