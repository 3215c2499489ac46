"""Who holds which ticket, which groups are back, and in which order steps consume them.

A ticket is queued, leased, finished or taken. Every ticket enters exactly one batch, whatever its
samplers do: an expired lease puts it back at the front of the queue, a second answer is a
duplicate. All methods are thread-safe; the two that wait take a timeout.
"""

import collections
import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Iterable

from offpolicy_rl import types

# Taken tickets whose late second answers are still told apart from unknown ones.
_REMEMBERED = 65_536


class Verdict(enum.Enum):
  """What became of a group that a sampler pushed."""

  ACCEPTED = "accepted"
  DUPLICATE = "duplicate"
  UNKNOWN = "unknown"


@dataclasses.dataclass
class _Lease:
  sampler_id: str
  deadline: float


class Ledger:
  """The learner's book of tickets and groups."""

  def __init__(self, lease_seconds: float, clock: Callable[[], float] = time.monotonic):
    self._lease_seconds = lease_seconds
    self._clock = clock
    self._changed = threading.Condition()
    self._tickets: dict[str, types.Ticket] = {}  # every ticket not taken yet
    self._queue: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._leases: dict[str, _Lease] = {}
    self._finished: dict[str, types.FinishedGroup] = {}
    self._taken: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._closed = False
    self._counts = collections.Counter()

  def add(self, tickets: Iterable[types.Ticket], *, first: bool = False) -> None:
    """Queues tickets in order; `first` puts them before all others (evaluation)."""
    with self._changed:
      tickets = list(tickets)
      for ticket in tickets:
        if ticket.ticket_id in self._tickets or ticket.ticket_id in self._taken:
          raise ValueError(f"ticket_id: {ticket.ticket_id!r} was added before")
        self._tickets[ticket.ticket_id] = ticket
        self._queue[ticket.ticket_id] = None
      if first:
        for ticket in reversed(tickets):
          self._queue.move_to_end(ticket.ticket_id, last=False)
      self._counts["added"] += len(tickets)
      self._changed.notify_all()

  def lease(self, sampler_id: str, limit: int, timeout: float) -> list[types.Ticket]:
    """Up to `limit` tickets that one version can serve; waits for the first one.

    Greedy and sampled tickets may come together; tickets whose version intervals share no
    version never do.
    """
    end = self._clock() + timeout
    with self._changed:
      while True:
        self._requeue_expired()
        granted = [] if self._closed else self._select(limit)
        remaining = end - self._clock()
        if granted or remaining <= 0 or self._closed:
          break
        self._changed.wait(min(remaining, self._lease_seconds))
      deadline = self._clock() + self._lease_seconds
      for ticket in granted:
        del self._queue[ticket.ticket_id]
        self._leases[ticket.ticket_id] = _Lease(sampler_id, deadline)
      self._counts["leased"] += len(granted)
      return granted

  def _select(self, limit: int) -> list[types.Ticket]:
    chosen: list[types.Ticket] = []
    low, high = None, None
    for ticket_id in self._queue:
      if len(chosen) == limit:
        break
      ticket = self._tickets[ticket_id]
      new_low = ticket.min_version if low is None else max(low, ticket.min_version)
      new_high = ticket.max_version if high is None else min(high, ticket.max_version)
      if new_low > new_high:
        break
      low, high = new_low, new_high
      chosen.append(ticket)
    return chosen

  def heartbeat(self, sampler_id: str) -> None:
    """Extends every lease of a sampler that is alive."""
    with self._changed:
      deadline = self._clock() + self._lease_seconds
      for lease in self._leases.values():
        if lease.sampler_id == sampler_id:
          lease.deadline = deadline

  def _requeue_expired(self) -> None:
    now = self._clock()
    lost = [ticket_id for ticket_id, lease in self._leases.items() if lease.deadline < now]
    for ticket_id in reversed(lost):
      del self._leases[ticket_id]
      self._queue[ticket_id] = None
      self._queue.move_to_end(ticket_id, last=False)
    self._counts["expired"] += len(lost)

  def ticket(self, ticket_id: str) -> types.Ticket | None:
    """The ticket, unless it is unknown or its group was taken already."""
    with self._changed:
      return self._tickets.get(ticket_id)

  def finish(self, group: types.Group, arrival_version: int) -> Verdict:
    """Books a checked group; the first complete answer to a ticket wins."""
    with self._changed:
      ticket_id = group.ticket_id
      if ticket_id in self._taken or ticket_id in self._finished:
        self._counts["duplicates"] += 1
        return Verdict.DUPLICATE
      if ticket_id not in self._tickets:
        self._counts["unknown"] += 1
        return Verdict.UNKNOWN
      self._leases.pop(ticket_id, None)
      self._queue.pop(ticket_id, None)
      ticket = self._tickets[ticket_id]
      self._finished[ticket_id] = types.FinishedGroup(ticket, group, arrival_version)
      self._counts["finished"] += 1
      self._changed.notify_all()
      return Verdict.ACCEPTED

  def take(self, ticket_ids: list[str], timeout: float) -> list[types.FinishedGroup] | None:
    """The groups of these tickets, in this order, once all are finished; None on timeout."""
    end = self._clock() + timeout
    with self._changed:
      while not all(ticket_id in self._finished for ticket_id in ticket_ids):
        remaining = end - self._clock()
        if remaining <= 0:
          return None
        self._changed.wait(remaining)
      groups = [self._finished.pop(ticket_id) for ticket_id in ticket_ids]
      for ticket_id in ticket_ids:
        del self._tickets[ticket_id]
      self._remember(ticket_ids)
      self._counts["taken"] += len(ticket_ids)
      return groups

  def _remember(self, ticket_ids: list[str]) -> None:
    self._taken.update(dict.fromkeys(ticket_ids))
    while len(self._taken) > _REMEMBERED:
      self._taken.popitem(last=False)

  def needed_versions(self, newest: int) -> set[int]:
    """The versions that samplers will ask for to answer the open tickets."""
    with self._changed:
      return {
        min(ticket.max_version, newest)
        for ticket_id, ticket in self._tickets.items()
        if ticket_id not in self._finished
      }

  def close(self) -> None:
    """Hands out nothing more and wakes everybody who waits for a lease."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def audit(self) -> dict[str, int]:
    """Counts since the start; `added` always equals queued + out + waiting + taken."""
    with self._changed:
      state = {
        "queued": len(self._queue),
        "out": len(self._leases),
        "waiting": len(self._finished),
      }
      return {
        **dict.fromkeys(("expired", "duplicates", "unknown", "taken"), 0),
        **self._counts,
      } | state
