"""The service that samplers call: hands out tickets, receives groups."""

import collections
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Collection

from offpolicy_rl import types
from offpolicy_rl.replay import admission, lag, ledger, replies, store
from offpolicy_rl.replay.sampler_stats import SamplerStats
from offpolicy_rl.transport import codec, names, server, weights
from offpolicy_rl.types import PushOutcome, PushStatus

_LOG = logging.getLogger(__name__)
_MOST_REPORTED_NAMES = 64
_RECENT_SECONDS = 10.0  # a sampler with a heartbeat since then is alive
_MOST_SAMPLERS = 1024  # whose heartbeats are kept


class Heartbeats:
  """The last heartbeat of each sampler. Thread-safe; drops the ones silent for longest."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._lock = threading.Lock()
    self._last: collections.OrderedDict[str, tuple[float, dict]] = collections.OrderedDict()

  def record(self, sampler_id: str, stats: dict[str, float]) -> None:
    """Remembers a heartbeat."""
    with self._lock:
      self._last[sampler_id] = (self._clock(), stats)
      self._last.move_to_end(sampler_id)
      if len(self._last) > _MOST_SAMPLERS:
        self._last.popitem(last=False)

  def knows(self, sampler_id: str) -> bool:
    """Whether a sampler had a heartbeat, and has not left."""
    with self._lock:
      return sampler_id in self._last

  def remove(self, sampler_id: str) -> None:
    """Drops a sampler that left."""
    with self._lock:
      self._last.pop(sampler_id, None)

  def recent(self, seconds: float) -> dict[str, dict[str, float]]:
    """Returns {sampler: stats} of those with a recent heartbeat, the newest last."""
    with self._lock:
      since = self._clock() - seconds
      return {sampler_id: stats for sampler_id, (at, stats) in self._last.items() if at > since}

  def metrics(self) -> dict[str, float]:
    """Computes sampler/count, sampler/tokens_per_second and sampler/waiting of live samplers."""
    recent = self.recent(_RECENT_SECONDS).values()
    waiting = [stats["waiting"] for stats in recent if "waiting" in stats]
    return {
      "sampler/count": len(recent),
      "sampler/tokens_per_second": sum(stats.get("tokens_per_second", 0.0) for stats in recent),
      **({"sampler/waiting": sum(waiting) / len(waiting)} if waiting else {}),
    }

  def rates(self) -> dict[str, float]:
    """Returns the completion tokens per second of each live sampler."""
    recent = self.recent(_RECENT_SECONDS).items()
    return {i: s["tokens_per_second"] for i, s in recent if "tokens_per_second" in s}

  def statuses(self) -> list[types.SamplerStatus]:
    """Returns the last heartbeat of every known sampler."""
    with self._lock:
      now = self._clock()
      return [types.SamplerStatus(name, now - at, s) for name, (at, s) in self._last.items()]


class SamplerService:
  """Tickets, groups and weights for samplers. Called from the server's threads."""

  def __init__(
    self,
    tickets: ledger.Ledger,
    groups: store.GroupStore,
    weight_store: weights.Store,
    control: lag.LagControl,
    *,
    expected: codec.Expected,
    recording: replies.Recording | None = None,
    say: Callable[[str], None] = _LOG.warning,
  ):
    """Hands out no training tickets before `start`.

    Args:
      expected: what groups are checked against.
      recording: what environments said, for tickets that it knows; None = they are played.
      say: prints a line on the learner's terminal.
    """
    self.ledger, self.groups, self.weights, self.control = tickets, groups, weight_store, control
    self._expected, self._recording, self._say = expected, recording, say
    self._admission: admission.Admission | None = None  # None until training begins
    self.version = types.RAW_VERSION  # newest published in this session
    self.version_bytes = 0  # of its weights, sent in full
    # Before a restart samplers may have held newer versions.
    self._newest_before = groups.progress()[0] if groups is not None else types.RAW_VERSION
    self.finished = False
    self.heartbeats, self.stats = Heartbeats(), SamplerStats()
    self._lock = threading.Lock()  # of the next two
    self._reported_names: set[str] = set()
    self._joined: collections.Counter[str] = collections.Counter()  # processes by name

  def handlers(
    self, watch: Callable[[str, int, float], types.RunUpdate] | None = None
  ) -> server.Handlers:
    """Returns the server's handlers; `watch` answers watchers."""
    return server.Handlers(
      join=self.join,
      lease=self.lease,
      heartbeat=self.heartbeat,
      decline=self.ledger.decline,
      finish=self.push,
      leave=self.leave,
      run_finished=lambda: self.finished,
      newest_version=lambda: self.version,
      watch=watch,
    )

  def join(self, sampler_id: str) -> None:
    """Registers a sampler that starts or restarts, without tickets."""
    self.ledger.join(sampler_id)
    name = names.name_of(sampler_id)
    with self._lock:
      is_new = not self.heartbeats.knows(sampler_id)  # else it rejoins
      if is_new and (name in self._joined or len(self._joined) < _MOST_SAMPLERS):
        self._joined[name] += 1
      self.heartbeats.record(sampler_id, {})
      same = [i for i in self.heartbeats.recent(_RECENT_SECONDS) if names.name_of(i) == name]
      reported = self._reported_names
      is_told = len(same) < 2 or name in reported or len(reported) >= _MOST_REPORTED_NAMES
      reported.update(() if is_told else (name,))
    if not is_told:
      self._say(f"{len(same)} samplers are called {name}, told apart as {', '.join(same)}")

  def lease(
    self, sampler_id: str, limit: int, timeout: float, holding: Collection[str] | None = None
  ) -> list[types.Ticket]:
    """Leases tickets, see `Ledger.lease`; those of a replay with what environments said."""
    tickets = self.ledger.lease(sampler_id, limit, timeout, holding)
    return tickets if self._recording is None else list(map(self._recording.add_to, tickets))

  def restarts(self) -> dict[str, int]:
    """Returns the number of processes that had the name of a sampler before, by name."""
    alive = collections.Counter(map(names.name_of, self.heartbeats.recent(_RECENT_SECONDS)))
    with self._lock:
      joined = dict(self._joined)
    return {name: n - alive[name] for name, n in joined.items() if n > alive[name] > 0}

  def heartbeat(self, sampler_id: str, stats: dict[str, float], progress: dict[str, int]) -> None:
    """Extends a sampler's leases and keeps its stats."""
    if self.ledger.heartbeat(sampler_id, progress):
      self.heartbeats.record(sampler_id, stats)

  def leave(self, sampler_id: str) -> int:
    """Removes a sampler, whose tickets are handed out again; returns their number."""
    returned = self.ledger.leave(sampler_id)  # first: a heartbeat after it is not recorded
    self.heartbeats.remove(sampler_id)
    return returned

  def push(self, groups: list, message: bytes) -> concurrent.futures.Future:
    """Checks the groups of a message and makes them durable; see `server.Handlers.finish`.

    Args:
      groups: each a Group, or the WireError of one that could not be read.
      message: the bytes that contain them.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()
    checked, arrival = [self._check(group) for group in groups], self.version
    outcomes = [outcome for _, outcome in checked]
    good = [(i, ticket) for i, (ticket, _) in enumerate(checked) if ticket is not None]
    if not good:
      future.set_result(outcomes)
      return future

    def durable(written: concurrent.futures.Future) -> None:
      try:
        are_new = written.result()
        # A ticket that is queued later finds its group in the store.
        self.ledger.finish_all([groups[i] for i, _ in good], arrival)
      except Exception as error:  # else the sampler would wait for an answer until its time is over
        future.set_exception(error)
        return
      for (i, _), new in zip(good, are_new, strict=True):
        outcomes[i] = PushOutcome(PushStatus.ACCEPTED if new else PushStatus.DUPLICATE)
      future.set_result(outcomes)

    self.groups.put(message, good, arrival).add_done_callback(durable)
    return future

  def _check(self, group: types.Group | codec.WireError) -> tuple[types.Ticket | None, PushOutcome]:
    if isinstance(group, codec.WireError):
      return None, PushOutcome(PushStatus.REFUSED, str(group))
    ticket = self.ledger.ticket(group.ticket_id)
    if ticket is None and self._admission is not None:
      if self._admission.is_consumed(group.ticket_id, self.version):
        return None, PushOutcome(PushStatus.DUPLICATE)
      ticket = self._admission.ticket_before_restart(group.ticket_id)
    if ticket is None:
      status = self.ledger.finish(group, self.version)
      unknown = f"group.ticket_id: {group.ticket_id!r} is no open ticket"
      return None, PushOutcome(status, unknown if status is PushStatus.UNKNOWN else "")
    try:
      codec.check_group(
        group, ticket, self._expected, newest_version=max(self.version, self._newest_before)
      )
    except codec.WireError as error:
      return None, PushOutcome(PushStatus.REFUSED, str(error))
    return ticket, PushOutcome(PushStatus.ACCEPTED)

  def published(self, version: int, size: int) -> None:
    """Queues the steps that a newly published version of `size` bytes admits."""
    self.version, self.version_bytes = version, size
    if self._admission is not None:
      self._admission.published(version)
      self.drop_old_versions()

  def start(self, admit: admission.Admission) -> None:
    """Begins training: the newest version admits its first steps."""
    self._admission = admit
    admit.published(self.version)

  def drop_old_versions(self) -> None:
    """Drops weights that no open ticket and no later step needs."""
    self.weights.retain(self._is_needed())

  def _is_needed(self) -> Callable[[int], bool]:
    newest = self.version
    needed = self.ledger.needed_versions(newest) | {types.BASE_VERSION}
    return lambda version: version in needed or self.control.is_needed(version, newest)

  def lost_versions(self) -> list[int]:
    """Returns the versions that open tickets need and whose weights are gone."""
    return sorted(self.ledger.needed_versions(self.version) - {*self.weights.versions()})

  def older_versions(self) -> list[int]:
    """Returns the versions that open tickets need, except the newest and the base."""
    self.drop_old_versions()
    is_needed = self._is_needed()  # the store may keep more, for deltas
    kept_elsewhere = (self.version, types.BASE_VERSION)
    return [v for v in self.weights.versions() if v not in kept_elsewhere and is_needed(v)]

  def dismiss(
    self, *, silent_seconds: float, at_most_seconds: float, not_before: float = 0.0
  ) -> None:
    """Ends the run for samplers: waits until each has left or is silent, up to a limit.

    `not_before`: time.monotonic() until which samplers may be coming that are not here yet.
    """
    self.finished = True
    self.ledger.close()
    now = time.monotonic
    end = now() + at_most_seconds
    while (self.heartbeats.recent(silent_seconds) or now() < not_before) and now() < end:
      time.sleep(0.05)
