"""The state of every ticket: queued, leased, finished, taken by a step, or replaced.

A ticket is queued, out (leased), waiting (finished), taken, or replaced by another when its group
is not good enough or no sampler can answer it. Every other ticket enters exactly one batch,
whatever its samplers do: an expired or returned lease puts it back at the front of the queue, one
without progress is issued once more, and a second answer is a duplicate. A ticket that a sampler
reports is leased to it, and never given to it again. A sampler that left gets nothing until it
joins again, even by calls that it made before. All methods are thread-safe; the two that wait take
a timeout.
"""

import collections
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from offpolicy_rl import types
from offpolicy_rl.replay import leases
from offpolicy_rl.types import PushStatus

_REMEMBERED = 65_536  # taken tickets: late second answers are duplicates, not unknown
_MOST_LEFT = 1024  # samplers that left: their calls still on the way are void
_COUNTS = str.split(
  "added recovered leased reclaimed expired returned reissued declined finished duplicates "
  "unknown taken replaced set_aside"
)
_REFUSALS = 2  # samplers that must decline a ticket before it is set aside; fewer if fewer live


class SetAsideError(RuntimeError):
  """No sampler can answer a ticket, and nothing is left to replace it."""


class Ledger:
  """The learner's tickets and finished groups.

  Args:
    lease_seconds: duration of a lease after its sampler's last sign of life.
    reissue_seconds: a ticket without progress for so long goes to one more sampler; the first
      answer wins.
    recover: ticket -> its durable answer from before a restart, or None.
    replace: finished group -> the ticket that replaces it, or None; a fast function of the group
      alone.
    set_aside: (ticket that no sampler can answer, why) -> the ticket that replaces it, a function
      of the ticket alone, or None. Then a ticket of evaluation is finished with an empty group, and
      a training step is impossible: `take` raises SetAsideError.
  """

  def __init__(
    self,
    lease_seconds: float,
    *,
    reissue_seconds: float = math.inf,
    recover: Callable[[types.Ticket], types.FinishedGroup | None] = lambda ticket: None,
    replace: Callable[[types.FinishedGroup], types.Ticket | None] = lambda finished: None,
    set_aside: Callable[[types.Ticket, str], types.Ticket | None] = lambda ticket, why: None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._lease_seconds, self._reissue_seconds = lease_seconds, reissue_seconds
    self._recover, self._clock = recover, clock
    self._replace, self._set_aside = replace, set_aside
    self._changed = threading.Condition()
    self._tickets: dict[str, types.Ticket] = {}  # every ticket not taken yet
    self._queued: dict[str, float] = {}  # ticket of these -> Unix time since when it can be leased
    self._queue: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._leases = leases.Leases(lease_seconds)
    self._left: collections.OrderedDict[str, None] = collections.OrderedDict()  # samplers
    self._finished: dict[str, types.FinishedGroup] = {}
    self._taken: collections.OrderedDict[str, None] = collections.OrderedDict()
    self._instead: dict[str, str] = {}  # id that a step requests -> id of its replacement
    self._requested_as: dict[str, str] = {}  # the other way round
    self._reasons: dict[str, dict[str, str]] = {}  # ticket -> sampler that declined it -> why
    self._hopeless = ""  # reason why no further step is possible
    self._closed = False
    self._counts = collections.Counter()

  def add(self, tickets: Iterable[types.Ticket], *, first: bool = False) -> None:
    """Queues tickets, `first` before all others; those answered before a restart are finished."""
    with self._changed:
      tickets = list(tickets)
      for ticket in tickets:
        if ticket.ticket_id in self._tickets or ticket.ticket_id in self._taken:
          raise ValueError(f"ticket_id: {ticket.ticket_id!r} was added before")
        self._tickets[ticket.ticket_id] = ticket
        self._queued[ticket.ticket_id] = time.time()
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

    `holding`: the sampler's tickets. They are leased to it again if their leases have ended, and
    never granted to it. Its other leases got lost on the way (a reply that never arrived) and go
    back to the queue. None = unknown. Greedy and sampled tickets may come together; tickets whose
    version intervals share no version never do.
    """
    end = self._clock() + timeout
    with self._changed:
      self._hear(sampler_id, dict.fromkeys(holding or ()))
      if holding is not None:
        lost = lambda name, lease: lease.sampler_id == sampler_id and name not in holding
        self._counts["returned"] += self._requeue(self._leases.end(lost))
      while True:
        self._check_leases()
        self._set_aside_refused()
        over = self._closed or sampler_id in self._left
        granted = [] if over else self._select(sampler_id, limit, holding or ())
        remaining = end - self._clock()
        if granted or remaining <= 0 or over:
          break
        self._changed.wait(min(remaining, self._lease_seconds, self._reissue_seconds))
      now = self._clock()
      for ticket in granted:
        del self._queue[ticket.ticket_id]
        self._leases.grant(sampler_id, ticket.ticket_id, now)
      self._counts["leased"] += len(granted)
      return granted

  def _select(self, sampler_id: str, limit: int, holding: Collection[str]) -> list[types.Ticket]:
    chosen: list[types.Ticket] = []
    low, high = None, None
    for ticket_id in self._queue:
      if len(chosen) == limit:
        break
      if ticket_id in holding or self._leases.holds(sampler_id, ticket_id):
        continue  # issued a second time because this sampler is slow
      if sampler_id in self._reasons.get(ticket_id, ()):
        continue
      ticket = self._tickets[ticket_id]
      new_low = ticket.min_version if low is None else max(low, ticket.min_version)
      new_high = ticket.max_version if high is None else min(high, ticket.max_version)
      if new_low > new_high:
        break
      low, high = new_low, new_high
      chosen.append(ticket)
    return chosen

  def heartbeat(self, sampler_id: str, tokens: Mapping[str, int]) -> bool:
    """Extends a sampler's leases; `tokens`: its tickets -> tokens so far, as for `lease`.

    Returns False, and does nothing, if the sampler has left.
    """
    with self._changed:
      return self._hear(sampler_id, tokens)

  def _hear(self, sampler_id: str, tokens: Mapping[str, int | None]) -> bool:
    """Notes a sampler's sign of life and its tickets; None = tokens unknown. False: it has left."""
    if sampler_id in self._left:
      return False
    now = self._clock()
    for ticket_id in tokens:
      self._reclaim(sampler_id, ticket_id, now)
    self._leases.hear(sampler_id, tokens, now)
    return True

  def _reclaim(self, sampler_id: str, ticket_id: str, now: float) -> None:
    """Leases an open ticket to a sampler that has it, e.g. since before the learner restarted."""
    if ticket_id not in self._tickets or ticket_id in self._finished:
      return
    if self._leases.holds(sampler_id, ticket_id) or sampler_id in self._reasons.get(ticket_id, ()):
      return
    if ticket_id not in self._leases.tickets():
      self._queue.pop(ticket_id, None)
    self._leases.grant(sampler_id, ticket_id, now)
    self._counts["reclaimed"] += 1

  def decline(self, sampler_id: str, reasons: Mapping[str, str]) -> None:
    """Records that a sampler can't answer these tickets; ticket -> why.

    They go to others. A ticket that two samplers declined, or the only living one, is set aside.
    """
    with self._changed:
      self._hear(sampler_id, {})
      for ticket_id, reason in reasons.items():
        if self._leases.holds(sampler_id, ticket_id):
          self._reasons.setdefault(ticket_id, {})[sampler_id] = reason
          self._counts["declined"] += 1
      declined = lambda name, lease: lease.sampler_id == sampler_id and name in reasons
      self._requeue(self._leases.end(declined))
      self._set_aside_refused()
      self._changed.notify_all()

  def _set_aside_refused(self) -> None:
    if not self._reasons or self._hopeless:
      return
    enough = min(_REFUSALS, max(1, self._leases.living(self._clock())))
    for ticket_id, reasons in list(self._reasons.items()):
      if len(reasons) >= enough and ticket_id in self._tickets:
        self._give_up(self._tickets[ticket_id], reasons)

  def _give_up(self, ticket: types.Ticket, reasons: Mapping[str, str]) -> None:
    why = "; ".join(f"{sampler_id}: {reason}" for sampler_id, reason in reasons.items())
    self._forget(ticket.ticket_id)
    self._counts["set_aside"] += 1
    other = self._set_aside(ticket, why)
    if other is not None:
      if recovered := self._swap(ticket, other):
        self._settle(recovered)
    elif ticket.kind == types.EVAL:
      nothing = types.Group(ticket.ticket_id, ())
      self._finished[ticket.ticket_id] = types.FinishedGroup(ticket, nothing, ticket.max_version)
    else:
      self._to_front([ticket.ticket_id])
      self._reasons[ticket.ticket_id] = dict(reasons)  # not handed to the same samplers for ever
      self._hopeless = f"no sampler can answer ticket {ticket.ticket_id} ({why})"

  def _forget(self, ticket_id: str) -> None:
    self._leases.drop(ticket_id)
    self._queue.pop(ticket_id, None)
    self._reasons.pop(ticket_id, None)

  def join(self, sampler_id: str) -> int:
    """Notes a sampler that begins, without tickets; returns the number of those it had, queued."""
    with self._changed:
      self._left.pop(sampler_id, None)
      return self._take_back(sampler_id)

  def leave(self, sampler_id: str) -> int:
    """Takes back all tickets of a sampler that leaves, for good; returns the number queued."""
    with self._changed:
      self._left[sampler_id] = None
      while len(self._left) > _MOST_LEFT:
        self._left.popitem(last=False)
      return self._take_back(sampler_id)

  def _take_back(self, sampler_id: str) -> int:
    queued = self._requeue(self._leases.gone(sampler_id))
    self._counts["returned"] += queued
    self._changed.notify_all()
    return queued

  def _check_leases(self) -> None:
    now = self._clock()
    self._counts["expired"] += self._requeue(self._leases.expire(now))
    self._counts["reissued"] += self._requeue(self._leases.stuck(now - self._reissue_seconds))

  def _requeue(self, ticket_ids: list[str]) -> int:
    """Puts tickets at the front of the queue unless they are in it; returns their number."""
    fresh = [ticket_id for ticket_id in ticket_ids if ticket_id not in self._queue]
    self._to_front(fresh)
    if fresh:
      self._changed.notify_all()
    return len(fresh)

  def ticket(self, ticket_id: str) -> types.Ticket | None:
    """The ticket, unless it is unknown or its group was taken already."""
    with self._changed:
      return self._tickets.get(ticket_id)

  def finish(self, group: types.Group, arrival_version: int) -> PushStatus:
    """Records a checked group; the first complete answer to a ticket wins."""
    [status] = self.finish_all([group], arrival_version)
    return status

  def finish_all(self, groups: Iterable[types.Group], arrival_version: int) -> list[PushStatus]:
    """Records several groups; see `finish`."""
    with self._changed:
      statuses = [self._record(group, arrival_version) for group in groups]
      self._changed.notify_all()
      return statuses

  def _record(self, group: types.Group, arrival_version: int) -> PushStatus:
    ticket_id = group.ticket_id
    if ticket_id in self._taken or ticket_id in self._finished:
      self._counts["duplicates"] += 1
      return PushStatus.DUPLICATE
    if ticket_id not in self._tickets:
      self._counts["unknown"] += 1
      return PushStatus.UNKNOWN
    self._forget(ticket_id)
    self._counts["finished"] += 1
    ticket, queued = self._tickets[ticket_id], self._queued[ticket_id]
    self._settle(types.FinishedGroup(ticket, group, arrival_version, queued, time.time()))
    return PushStatus.ACCEPTED

  def _settle(self, finished: types.FinishedGroup) -> None:
    while (ticket := self._replace(finished)) is not None:
      answer = self._swap(finished.ticket, ticket)
      if answer is None:
        return
      finished = answer
    self._finished[finished.ticket.ticket_id] = finished

  def _swap(self, ticket: types.Ticket, other: types.Ticket) -> types.FinishedGroup | None:
    """Replaces a ticket by another; returns the answer that this one has already, if any."""
    old, new = ticket.ticket_id, other.ticket_id
    requested = self._requested_as.pop(old, old)
    self._requested_as[new], self._instead[requested] = requested, new
    del self._tickets[old], self._queued[old]
    self._remember([old])
    self._tickets[new], self._queued[new] = other, time.time()
    self._counts.update(("added", "replaced"))
    recovered = self._recover(other)
    if recovered is None:
      self._to_front([new])  # its step is waiting, or will be before all others
    else:
      self._counts["recovered"] += 1
    return recovered

  def take(self, ticket_ids: list[str], timeout: float) -> list[types.FinishedGroup] | None:
    """The groups of these tickets, or their replacements, in order, once all are finished.

    None on timeout; SetAsideError if one can't be answered, and nothing is left to replace it.
    """
    end = self._clock() + timeout
    in_place = lambda: [self._instead.get(ticket_id, ticket_id) for ticket_id in ticket_ids]
    with self._changed:
      while not all(ticket_id in self._finished for ticket_id in in_place()):
        if self._hopeless:
          raise SetAsideError(self._hopeless)
        remaining = end - self._clock()
        if remaining <= 0:
          return None
        self._changed.wait(remaining)
      used = in_place()
      groups = [self._finished.pop(ticket_id) for ticket_id in used]
      for requested, ticket_id in zip(ticket_ids, used, strict=True):
        del self._tickets[ticket_id], self._queued[ticket_id]
        self._instead.pop(requested, None)
        self._requested_as.pop(ticket_id, None)
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
      return {min(ticket.max_version, newest) for ticket in self._open()}

  def sampled_versions(self) -> set[int]:
    """The versions of the open tickets for training, of a lag control that leaves no choice."""
    with self._changed:
      return {ticket.max_version for ticket in self._open() if ticket.kind == types.TRAIN}

  def _open(self) -> list[types.Ticket]:
    return [t for t in self._tickets.values() if t.ticket_id not in self._finished]

  def close(self) -> None:
    """Stops granting tickets, and ends calls that wait for one."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def audit(self) -> dict[str, int]:
    """Counts since the start; `added` = queued + out + waiting + taken + replaced, always."""
    with self._changed:
      state = {
        "queued": len(self._queue),
        "out": len(self._leases.tickets() - self._queue.keys()),
        "waiting": len(self._finished),
      }
      return {**dict.fromkeys(_COUNTS, 0), **self._counts} | state
