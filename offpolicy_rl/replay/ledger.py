"""Who holds which ticket, which groups are back, and in which order steps consume them.

A ticket is queued, out (leased), waiting (finished), taken, or replaced by another when its group
is not good enough. Every ticket but those enters exactly one batch, whatever its samplers do: an
expired or returned lease puts it back at the front of the queue, one held for long is issued once
more, and a second answer is a duplicate. All methods are thread-safe; the two that wait take a
timeout.
"""

import collections
import dataclasses
import enum
import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable

from offpolicy_rl import types

# Taken tickets whose late second answers are still told apart from unknown ones.
_REMEMBERED = 65_536
_COUNTS = (
  "added", "recovered", "leased", "expired", "returned", "reissued", "finished", "duplicates",
  "unknown", "taken", "replaced",
)  # fmt: skip


class Verdict(enum.Enum):
  """What became of a group that a sampler pushed."""

  ACCEPTED = "accepted"
  DUPLICATE = "duplicate"
  UNKNOWN = "unknown"


@dataclasses.dataclass
class _Lease:
  sampler_id: str
  since: float
  deadline: float


class Ledger:
  """The learner's book of tickets and groups.

  Args:
    lease_seconds: a lease ends so long after its sampler's last sign of life.
    reissue_seconds: a ticket out for so long goes to one more sampler; the first answer wins.
    recover: ticket -> the durable answer that it had before a restart, or None.
  """

  def __init__(
    self,
    lease_seconds: float,
    *,
    reissue_seconds: float = math.inf,
    recover: Callable[[types.Ticket], types.FinishedGroup | None] = lambda ticket: None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._lease_seconds, self._reissue_seconds = lease_seconds, reissue_seconds
    self._recover, self._clock = recover, clock
    self._changed = threading.Condition()
    self._tickets: dict[str, types.Ticket] = {}  # every ticket not taken yet
    self._queue: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._leases: dict[str, list[_Lease]] = {}  # more than one when the first takes long
    self._finished: dict[str, types.FinishedGroup] = {}
    self._taken: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._replace: Callable[[types.FinishedGroup], types.Ticket | None] = lambda finished: None
    self._instead: dict[str, str] = {}  # id that a step asks for -> id of the ticket in its place
    self._asked_as: dict[str, str] = {}  # the other way round
    self._closed = False
    self._counts = collections.Counter()

  def replace_by(self, replace: Callable[[types.FinishedGroup], types.Ticket | None]) -> None:
    """From now on `replace` sees each finished group: None, or the ticket to take its place.

    Must be a function of the group alone, and quick.
    """
    with self._changed:
      self._replace = replace

  def add(self, tickets: Iterable[types.Ticket], *, first: bool = False) -> None:
    """Queues tickets in order; `first` puts them before all others (evaluation).

    A ticket that was answered before a restart is finished at once.
    """
    with self._changed:
      tickets = list(tickets)
      for ticket in tickets:
        if ticket.ticket_id in self._tickets or ticket.ticket_id in self._taken:
          raise ValueError(f"ticket_id: {ticket.ticket_id!r} was added before")
        self._tickets[ticket.ticket_id] = ticket
        recovered = self._recover(ticket)
        if recovered is None:
          self._queue[ticket.ticket_id] = None
        else:
          self._counts["recovered"] += 1
          self._settle(recovered)
      if first:
        self._to_front([t.ticket_id for t in tickets if t.ticket_id in self._queue])
      self._counts["added"] += len(tickets)
      self._changed.notify_all()

  def _to_front(self, ticket_ids: list[str]) -> None:
    for ticket_id in reversed(ticket_ids):
      self._queue[ticket_id] = None
      self._queue.move_to_end(ticket_id, last=False)

  def lease(
    self, sampler_id: str, limit: int, timeout: float, holding: Collection[str] | None = None
  ) -> list[types.Ticket]:
    """Up to `limit` tickets that one version can serve; waits for the first one.

    `holding`: the tickets that the sampler knows it has. Others that were leased to it got lost on
    the way (a reply that never arrived) and go back to the queue. None = not told.
    Greedy and sampled tickets may come together; tickets whose version intervals share no
    version never do.
    """
    end = self._clock() + timeout
    with self._changed:
      if holding is not None:
        lost = self._end_leases(
          lambda ticket_id, lease: lease.sampler_id == sampler_id and ticket_id not in holding
        )
        self._counts["returned"] += len(lost)
      while True:
        self._requeue_expired()
        self._reissue_overdue()
        granted = [] if self._closed else self._select(sampler_id, limit)
        remaining = end - self._clock()
        if granted or remaining <= 0 or self._closed:
          break
        self._changed.wait(min(remaining, self._lease_seconds, self._reissue_seconds))
      now = self._clock()
      for ticket in granted:
        del self._queue[ticket.ticket_id]
        lease = _Lease(sampler_id, now, now + self._lease_seconds)
        self._leases.setdefault(ticket.ticket_id, []).append(lease)
      self._counts["leased"] += len(granted)
      return granted

  def _select(self, sampler_id: str, limit: int) -> list[types.Ticket]:
    chosen: list[types.Ticket] = []
    low, high = None, None
    for ticket_id in self._queue:
      if len(chosen) == limit:
        break
      if any(lease.sampler_id == sampler_id for lease in self._leases.get(ticket_id, ())):
        continue  # issued a second time because this very sampler is slow
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
      for lease in itertools.chain.from_iterable(self._leases.values()):
        if lease.sampler_id == sampler_id:
          lease.deadline = deadline

  def release(self, sampler_id: str) -> int:
    """Takes back every lease of a sampler that leaves; returns how many tickets that queued."""
    with self._changed:
      queued = self._end_leases(lambda _, lease: lease.sampler_id == sampler_id)
      self._counts["returned"] += len(queued)
      self._changed.notify_all()
      return len(queued)

  def _requeue_expired(self) -> None:
    now = self._clock()
    self._counts["expired"] += len(self._end_leases(lambda _, lease: lease.deadline < now))

  def _end_leases(self, ends: Callable[[str, _Lease], bool]) -> list[str]:
    """Drops leases with ends(ticket id, lease); a ticket without any goes to the queue's front."""
    lost = []
    for ticket_id, leases in list(self._leases.items()):
      left = [lease for lease in leases if not ends(ticket_id, lease)]
      if left:
        self._leases[ticket_id] = left
        continue
      del self._leases[ticket_id]
      if ticket_id not in self._queue:
        lost.append(ticket_id)
    self._to_front(lost)
    return lost

  def _reissue_overdue(self) -> None:
    before = self._clock() - self._reissue_seconds
    overdue = [
      ticket_id
      for ticket_id, leases in self._leases.items()
      if leases[-1].since < before and ticket_id not in self._queue
    ]
    self._to_front(overdue)
    self._counts["reissued"] += len(overdue)

  def ticket(self, ticket_id: str) -> types.Ticket | None:
    """The ticket, unless it is unknown or its group was taken already."""
    with self._changed:
      return self._tickets.get(ticket_id)

  def finish(self, group: types.Group, arrival_version: int) -> Verdict:
    """Books a checked group; the first complete answer to a ticket wins."""
    [verdict] = self.finish_all([group], arrival_version)
    return verdict

  def finish_all(self, groups: Iterable[types.Group], arrival_version: int) -> list[Verdict]:
    """The same for several; wakes those who wait once."""
    with self._changed:
      verdicts = [self._book(group, arrival_version) for group in groups]
      self._changed.notify_all()
      return verdicts

  def _book(self, group: types.Group, arrival_version: int) -> Verdict:
    ticket_id = group.ticket_id
    if ticket_id in self._taken or ticket_id in self._finished:
      self._counts["duplicates"] += 1
      return Verdict.DUPLICATE
    if ticket_id not in self._tickets:
      self._counts["unknown"] += 1
      return Verdict.UNKNOWN
    self._leases.pop(ticket_id, None)
    self._queue.pop(ticket_id, None)
    self._counts["finished"] += 1
    self._settle(types.FinishedGroup(self._tickets[ticket_id], group, arrival_version))
    return Verdict.ACCEPTED

  def _settle(self, finished: types.FinishedGroup) -> None:
    """Keeps a finished group until a step takes it, or puts another ticket in its place."""
    while (ticket := self._replace(finished)) is not None:
      old, new = finished.ticket.ticket_id, ticket.ticket_id
      asked = self._asked_as.pop(old, old)
      self._asked_as[new], self._instead[asked] = asked, new
      del self._tickets[old]
      self._remember([old])
      self._tickets[new] = ticket
      self._counts.update(("added", "replaced"))
      recovered = self._recover(ticket)
      if recovered is None:
        self._to_front([new])  # its step is waiting, or will be before all others
        return
      self._counts["recovered"] += 1
      finished = recovered
    self._finished[finished.ticket.ticket_id] = finished

  def take(self, ticket_ids: list[str], timeout: float) -> list[types.FinishedGroup] | None:
    """The groups of these tickets, in this order, once all are finished; None on timeout.

    Where a ticket was replaced, the group of the one in its place.
    """
    end = self._clock() + timeout
    in_place = lambda: [self._instead.get(ticket_id, ticket_id) for ticket_id in ticket_ids]
    with self._changed:
      while not all(ticket_id in self._finished for ticket_id in in_place()):
        remaining = end - self._clock()
        if remaining <= 0:
          return None
        self._changed.wait(remaining)
      used = in_place()
      groups = [self._finished.pop(ticket_id) for ticket_id in used]
      for asked, ticket_id in zip(ticket_ids, used, strict=True):
        del self._tickets[ticket_id]
        self._instead.pop(asked, None)
        self._asked_as.pop(ticket_id, None)
      self._remember(used)
      self._counts["taken"] += len(used)
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
    """Counts since the start; `added` = queued + out + waiting + taken + replaced, always."""
    with self._changed:
      state = {
        "queued": len(self._queue),
        "out": len(self._leases.keys() - self._queue.keys()),
        "waiting": len(self._finished),
      }
      return {
        **dict.fromkeys(_COUNTS, 0),
        **self._counts,
      } | state
