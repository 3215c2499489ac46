"""The sampler's end of the wire: calls that retry while the learner is away."""

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from offpolicy_rl import types
from offpolicy_rl.transport import (
  bounds,
  checksum,
  clock,
  codec,
  diagnosis,
  protocol,
  security,
  watching,
  weights,
)
from offpolicy_rl.transport import receiver as receiver_lib
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc

_HELLO_SECONDS = 60.0  # tokenizers have tens of megabytes
_MIN_SECONDS, _MIN_MB_PER_SECOND = 10.0, 4.0  # for a reply
_MAX_PULLS = 3  # of one version, when its bytes arrive damaged
_LONGEST_PAUSE = (
  2.0  # seconds between attempts to reach a lost learner, half as many more by chance
)
RETURN_SECONDS = 3 * _LONGEST_PAUSE  # a learner that is back is found by then
_MAX_REFUSALS = 2  # in a row: a token damaged on the way is refused once, a wrong one always
_LOG = logging.getLogger(__name__)


class SessionLost(Exception):
  """The learner was restarted: tickets and weights of the old session are void."""


class LearnerGone(ConnectionError):
  """The learner did not answer for too long."""


class Refused(RuntimeError):
  """The learner refuses this sampler or one of its messages; says why."""


class VersionGone(Refused):
  """No version that the tickets ask for is left, because others have answered them."""


class LearnerClient:
  """One sampler's connection. Methods block; `heartbeat` may run in another thread.

  session: of the learner that was joined last.
  newest_version: the newest version that this learner has reported.
  """

  def __init__(
    self,
    address: str,
    sampler_id: str,
    *,
    reconnect_seconds: float = 60.0,
    credentials: security.Credentials = security.NONE,
    proxy: str | None = None,
  ):
    """Connects at the first call; `proxy`: http://HOST:PORT, None = none in any environment."""
    bounds.check_sampler_id(sampler_id, "--name")
    options = [
      # The learner obeys the limit of its configuration, which comes with the first reply.
      ("grpc.max_receive_message_length", bounds.MAX_MESSAGE_MB << 20),
      ("grpc.max_send_message_length", bounds.MAX_MESSAGE_MB << 20),
      ("grpc.initial_reconnect_backoff_ms", 100),
      ("grpc.max_reconnect_backoff_ms", int(1000 * _LONGEST_PAUSE)),
      ("grpc.enable_http_proxy", int(proxy is not None)),
      *([("grpc.http_proxy", proxy)] if proxy is not None else []),
      *protocol.KEEPALIVE,
    ]
    self._channel = security.open_channel(address, credentials, options)
    self._credentials = credentials
    self._stub = rpc.LearnerStub(checksum.Channel(self._channel))
    self._address, self._id, self._proxy = address, sampler_id, proxy
    self._reconnect_seconds, self._max_message_mb = reconnect_seconds, bounds.MAX_MESSAGE_MB
    self._reply_seconds = _MIN_SECONDS
    self.session, self.newest_version = "", types.NO_VERSION
    self._clock = clock.LearnerClock()
    self._stopping = threading.Event()

  def stop(self) -> None:
    """Ends waiting calls with LearnerGone; safe from a signal handler."""
    self._stopping.set()

  def close(self) -> None:
    """Closes the connection."""
    self._channel.close()

  def configure(self, reconnect_seconds: float, max_message_mb: int) -> None:
    """Applies the run's time to look for a lost learner, and its largest message."""
    self._reconnect_seconds, self._max_message_mb = reconnect_seconds, max_message_mb
    self._reply_seconds = max(_MIN_SECONDS, max_message_mb / _MIN_MB_PER_SECOND)

  def hello(self) -> protocol.Identity:
    """Joins, or joins again after SessionLost."""
    request = pb.HelloRequest(protocol=protocol.PROTOCOL, sampler_id=self._id)
    reply = self._call(lambda: self._stub.Hello(request, timeout=_HELLO_SECONDS))
    self.session, self.newest_version = reply.session, types.NO_VERSION
    self._clock.forget()
    return protocol.decode_identity(reply)

  def lease(
    self,
    limit: int,
    wait_seconds: float = 5.0,
    holding: Sequence[str] = (),
    check: Callable[[types.Ticket], None] = lambda ticket: None,
  ) -> list[types.Ticket] | None:
    """Up to `limit` tickets; [] if there was none in time, None when the run is over.

    Tickets that can't be decoded, or for which `check` raises WireError, are declined.

    `holding`: ids of tickets in progress; any other lease of this sampler ends.
    """
    credit = min(limit, bounds.MAX_CREDITS)
    request = pb.LeaseRequest(
      **self._sender(), credits=credit, wait_seconds=wait_seconds, holding=holding
    )
    seconds = wait_seconds + self._reply_seconds
    reply = self._call(lambda: self._stub.Lease(request, timeout=seconds))
    self._update_newest(request.session, reply.newest_version)
    if reply.run_finished:
      return None
    if len(reply.tickets) > limit:
      bounds.refuse("tickets", len(reply.tickets), f"at most {limit}, as many as requested")
    tickets, reasons = [], {}
    for message in reply.tickets:
      bounds.check_ticket_id(message.ticket_id, "ticket.ticket_id")  # else it can't be declined
      try:
        ticket = codec.decode_ticket(message)
        check(ticket)
        tickets.append(ticket)
      except codec.WireError as error:
        reasons[message.ticket_id] = bounds.printable(str(error))
    if reasons:
      self.decline(reasons)
    return tickets

  def decline(self, reasons: dict[str, str]) -> None:
    """Returns tickets that can't be answered here; ticket id -> why."""
    for ticket_id, reason in reasons.items():
      _LOG.warning("can't answer ticket %s: %s", ticket_id, reason)
    request = pb.DeclineRequest(**self._sender(), reasons=reasons)
    self._call(lambda: self._stub.Decline(request, timeout=10))

  def heartbeat(self, stats: dict[str, float], progress: dict[str, int]) -> None:
    """Extends this sampler's leases, or raises grpc.RpcError; `progress`: ticket id -> tokens."""
    request = pb.HeartbeatRequest(**self._sender(), stats=stats, progress=progress)
    asked = time.monotonic()
    reply = self._stub.Heartbeat(request, timeout=10)
    self._clock.note(asked, time.monotonic(), reply.time)
    self._update_newest(request.session, reply.newest_version)

  def _sender(self) -> dict[str, Any]:
    return {"session": self.session, "sampler_id": self._id}

  def _update_newest(self, session: str, version: int) -> None:
    if session == self.session:
      self.newest_version = max(self.newest_version, version)

  def leave(self) -> int:
    """Returns all open tickets; gives their number. Tried once: leases expire anyway."""
    request = pb.LeaveRequest(**self._sender())
    return self._stub.Leave(request, timeout=5).returned

  def pull_weights(
    self, min_version: int, max_version: int, receiver: receiver_lib.Receiver
  ) -> tuple[int, weights.Tensors | None]:
    """(newest version within the bounds, its tensors or None if `receiver` holds that version).

    A broken stream is resumed. A damaged one is pulled again, in full; the third time it is a
    WireError, as are weights of another model.
    """
    request = pb.WeightsRequest(**self._sender(), min_version=min_version, max_version=max_version)

    def pull():
      stream = self._stub.PullWeights(receiver.fill_in(request), timeout=600)
      try:
        return receiver.receive(stream)
      finally:
        stream.cancel()  # does nothing once it has ended

    for _ in range(_MAX_PULLS - 1):
      try:
        return self._call(pull, progress=lambda: receiver.received_bytes)
      except receiver_lib.DamagedError as error:
        _LOG.warning("%s; pulling it again, in full", error)
        receiver.forget()
    return self._call(pull, progress=lambda: receiver.received_bytes)

  def check_session(self) -> None:
    """Raises SessionLost when the learner was restarted."""
    request = pb.HeartbeatRequest(**self._sender())
    self._call(lambda: self._stub.Heartbeat(request, timeout=10))

  def push(self, groups: list[types.Group]) -> list[types.PushOutcome]:
    """Sends groups and waits until each is durable, no longer needed, or refused.

    Their marks are of `time.monotonic`; they are sent as times of the learner's clock.

    Raises:
      SessionLost: call `hello` and push the same groups again.
      Refused: one is larger than a message may be.
    """
    for group in groups:
      self._check_size(group)
    pushed = [group.ticket_id for group in groups]
    groups = [self._by_learners_clock(group) for group in groups]
    outcomes: list[types.PushOutcome] = []  # of the first groups, which are not sent again

    def push():
      left = groups[len(outcomes) :]
      replies = self._stub.Push(codec.push_requests(left, self.session, self._id), timeout=120)
      try:
        for ack in (ack for reply in replies for ack in reply.acks):
          if ack.ticket_id not in pushed[len(outcomes) : len(outcomes) + 1]:
            return None  # acknowledgements are missing where a frame was damaged
          outcomes.append(codec.decode_ack(ack))
      finally:
        replies.cancel()  # does nothing once they have ended
      return outcomes if len(outcomes) == len(groups) else None

    return self._call(push, progress=lambda: len(outcomes))

  def _by_learners_clock(self, group: types.Group) -> types.Group:
    ahead, marks = self._clock.ahead, group.marks
    if ahead is None or marks is None:
      return dataclasses.replace(group, marks=None)
    return dataclasses.replace(group, marks=types.Marks(*(mark + ahead for mark in marks)))

  def _check_size(self, group: types.Group) -> None:
    rows = group.trajectories
    longest = max((t.tokens.size for t in rows), default=0)
    recorded = max((t.candidates.tokens.shape[1] for t in rows if t.candidates), default=0)
    size = bounds.max_group_bytes(len(rows), longest, recorded)
    if size > self._max_message_mb << 20:
      raise Refused(
        f"ticket {group.ticket_id}: its group may take {size} bytes, expected at most "
        f"transport.max_message_mb = {self._max_message_mb}"
      )

  def watch(self, session: str, position: int, wait_seconds: float) -> types.RunUpdate:
    """Returns an update after `wait_seconds`, or when the run is over; needs no `hello`.

    `session`, `position`: those of the last update; "" and 0 at first.

    Raises:
      codec.WireError: no learner of this release sends such a reply.
    """
    request = pb.WatchRequest(
      protocol=protocol.PROTOCOL, session=session, position=position, wait_seconds=wait_seconds
    )
    reply = self._call(lambda: self._stub.Watch(request, timeout=wait_seconds + 10))
    return watching.decode_update(reply)

  def _raise_if_final(self, error: grpc.RpcError, refusals: int) -> None:
    call = protocol.as_call(error)
    reason, details = protocol.reason_of(error), call.details()
    if reason == protocol.Reason.NEW_SESSION:
      raise SessionLost(details) from None
    if reason == protocol.Reason.NO_VERSION:
      raise VersionGone(f"{self._address}: {details}") from None
    if refusals == _MAX_REFUSALS:
      raise Refused(f"{self._address}: {details}") from None
    if call.code() == grpc.StatusCode.UNAVAILABLE and self._proxy is None:
      problem = diagnosis.lasting_problem(self._address, self._credentials)
      if problem is not None:
        raise Refused(f"{self._address}: {problem}") from None

  def _call(self, function: Callable, progress: Callable = lambda: None):
    """Retries with growing, jittered pauses. A call may arrive twice; the learner recognises that.

    A result of None is a failure, too: gRPC returns it for a damaged reply. Only a reason from the
    learner itself ends a call at once. Progress between failures postpones giving up.
    """
    pause, give_up, last_progress, refusals = 0.1, None, progress(), 0
    while True:
      try:
        if (result := function()) is not None:
          return result
        refusals, problem = 0, "an incomplete reply"
      except grpc.RpcError as error:
        refused = protocol.reason_of(error) == protocol.Reason.REFUSED
        refusals = refusals + 1 if refused else 0
        self._raise_if_final(error, refusals)
        problem = f"{protocol.as_call(error).code().name} {protocol.as_call(error).details()}"
      if progress() != last_progress:
        pause, give_up, last_progress = 0.1, None, progress()
      now = time.monotonic()
      give_up = give_up or now + self._reconnect_seconds
      if now > give_up or self._stopping.is_set():
        seconds = f"{self._reconnect_seconds:.0f} s"
        raise LearnerGone(f"no learner at {self._address} for {seconds}: {problem}")
      self._stopping.wait(pause * random.uniform(0.5, 1.5))
      pause = min(2 * pause, _LONGEST_PAUSE)
