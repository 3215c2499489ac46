"""The learner's front desk: everything a sampler can ask for, and what it may not."""

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable

from offpolicy_rl import types
from offpolicy_rl.replay import admission, lag, ledger, store
from offpolicy_rl.replay.makers import Makers
from offpolicy_rl.roles.pulse import Pulse
from offpolicy_rl.transport import codec, names, server, weights

_LOG = logging.getLogger(__name__)
_NAMESAKES = 64  # names that are said to be those of several samplers, once each
_LATELY_SECONDS = 10.0  # a sampler that was heard of since is alive


@dataclasses.dataclass
class Front:
  """Tickets out, groups in, weights by version. Called from the wire's threads."""

  book: ledger.Ledger
  groups: store.GroupStore
  weights: weights.WeightStore  # or weights_dir.Publisher
  vocab_size: int
  max_tokens: int  # of a completion
  control: lag.LagControl
  admit: admission.Admission | None = None  # None until training begins
  version: int = types.RAW_VERSION  # newest published in this session
  version_bytes: int = 0  # of its weights, sent in full
  newest_ever: int = types.RAW_VERSION  # before a restart, samplers may have held newer ones
  finished: bool = False
  pulse: Pulse = dataclasses.field(default_factory=Pulse)
  makers: Makers = dataclasses.field(default_factory=Makers)
  namesakes: set[str] = dataclasses.field(default_factory=set)  # names spoken of
  say: Callable[[str], None] = _LOG.warning  # to the person who watches the learner

  def handlers(self) -> server.Handlers:
    """The wire's view of the learner."""
    return server.Handlers(
      join=self.join,
      lease=self.book.lease,
      heartbeat=self.heartbeat,
      decline=self.book.decline,
      finish=self.finish,
      leave=self.leave,
      run_finished=lambda: self.finished,
      newest_version=lambda: self.version,
    )

  def join(self, sampler_id: str) -> None:
    """A sampler begins, or begins anew, with empty hands."""
    self.book.release(sampler_id)
    self.pulse.hear(sampler_id, {})
    name = names.name_of(sampler_id)
    others = [i for i in self.pulse.ids(_LATELY_SECONDS) if names.name_of(i) == name]
    if len(others) > 1 and name not in self.namesakes and len(self.namesakes) < _NAMESAKES:
      self.namesakes.add(name)
      self.say(f"{len(others)} samplers are called {name}, told apart as {', '.join(others)}")

  def heartbeat(self, sampler_id: str, stats: dict[str, float], progress: dict[str, int]) -> None:
    """Keeps leases alive and remembers how the sampler is doing."""
    self.book.heartbeat(sampler_id, progress)
    self.pulse.hear(sampler_id, stats)

  def leave(self, sampler_id: str) -> int:
    """A sampler goes; its tickets are handed out again at once."""
    self.pulse.forget(sampler_id)
    return self.book.release(sampler_id)

  def finish(
    self, groups: list[types.Group | codec.WireError], received: bytes
  ) -> concurrent.futures.Future:
    """Checks the groups of a message and makes them durable; see `server.Handlers.finish`.

    `received`: the message that they were read from.
    """
    told: concurrent.futures.Future = concurrent.futures.Future()
    outcomes, arrival = [self._judge(group) for group in groups], self.version
    answers = [(i, ticket) for i, ticket in enumerate(outcomes) if isinstance(ticket, types.Ticket)]
    if not answers:
      told.set_result(outcomes)
      return told

    def durable(written: concurrent.futures.Future) -> None:
      """The groups are on disk: books them, then tells the sampler."""
      if written.exception():
        told.set_exception(written.exception())
        return
      # A ticket that is not queued yet will find its group in the store.
      self.book.finish_all([groups[i] for i, _ in answers], arrival)
      for (i, _), new in zip(answers, written.result(), strict=True):
        outcomes[i] = "accepted" if new else "duplicate"
      told.set_result(outcomes)

    self.groups.put(received, answers, arrival).add_done_callback(durable)
    return told

  def _judge(self, group: types.Group | codec.WireError) -> types.Ticket | str | codec.WireError:
    """The ticket that a good group answers; or what became of a group that need not be kept."""
    if isinstance(group, codec.WireError):
      return group
    ticket = self.book.ticket(group.ticket_id)
    if ticket is None and self.admit is not None:
      ticket = self.admit.ticket_before_restart(group.ticket_id, self.version)
    if not isinstance(ticket, types.Ticket):
      return ticket or self.book.finish(group, self.version).value
    try:
      codec.check_group(
        group,
        ticket,
        vocab_size=self.vocab_size,
        max_tokens=self.max_tokens,
        newest_version=max(self.version, self.newest_ever),
      )
    except codec.WireError as error:
      return error
    return ticket

  def published(self, version: int, size: int) -> None:
    """A version of `size` bytes is available from now on: the steps that it admits are queued."""
    self.version, self.version_bytes = version, size
    if self.admit is not None:
      self.admit.published(version)
      self.forget_old_versions()

  def open(self, admit: admission.Admission) -> None:
    """Training begins: the newest version admits its first steps."""
    self.admit = admit
    admit.published(self.version)

  def forget_old_versions(self) -> None:
    """Drops weights that neither an open ticket nor a step to come will ask for."""
    self.weights.retain(self._needed())

  def _needed(self) -> Callable[[int], bool]:
    open_tickets = self.book.needed_versions(self.version)
    oldest = self.control.oldest_needed(self.version)
    kept = open_tickets | {types.BASE_VERSION}
    return lambda version: version in kept or version >= oldest

  def older_versions(self) -> list[int]:
    """What a resumed run needs besides its own parameters to answer every open ticket."""
    self.forget_old_versions()
    needed = self._needed()  # the store may keep more than that, for deltas
    kept_elsewhere = (self.version, types.BASE_VERSION)
    return [v for v in self.weights.versions() if v not in kept_elsewhere and needed(v)]

  def dismiss(self, *, silent_seconds: float, at_most_seconds: float) -> None:
    """The run is over: waits until every sampler has left, or was silent for so long.

    Not for ever: one whose work hangs may go on with its heartbeats.
    """
    self.finished = True
    self.book.close()
    end = time.monotonic() + at_most_seconds
    while self.pulse.heard_of(silent_seconds) and time.monotonic() < end:
      time.sleep(0.05)
