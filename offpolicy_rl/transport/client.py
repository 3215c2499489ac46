"""The sampler's end of the wire: calls that retry while the learner is away."""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

import grpc

from offpolicy_rl import types
from offpolicy_rl.transport import (
  bounds,
  checksum,
  codec,
  connections,
  diagnosis,
  refusals,
  security,
  watching,
  weights,
)
from offpolicy_rl.transport import receiver as receiver_lib
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from offpolicy_rl.transport.server import PROTOCOL, Identity

_HELLO_SECONDS = 60.0  # tokenizers have tens of megabytes
_LEAST_SECONDS, _SLOWEST_MB = 10.0, 4.0  # for a reply; per second, where it may be large
_PULLS = 3  # of one version, when its bytes arrive damaged
_LOG = logging.getLogger(__name__)
_REFUSALS = 2  # in a row end a call: a token damaged on the way is refused once, a wrong one always


class SessionLost(Exception):
  """The learner was restarted: tickets and weights of the old session are void."""


class LearnerGone(ConnectionError):
  """The learner did not answer for as long as we are willing to wait."""


class Refused(RuntimeError):
  """The learner does not want this sampler, or one of its messages; says why."""


class VersionGone(Refused):
  """No version that the tickets ask for: others have answered them while we hung."""


class LearnerClient:
  """One sampler's connection. Methods block; `heartbeat` may run in another thread."""

  def __init__(
    self,
    address: str,
    sampler_id: str,
    *,
    reconnect_seconds: float = 60.0,
    credentials: security.Credentials = security.NONE,
    proxy: str | None = None,
  ):
    """Connects at the first call.

    `proxy`: http://HOST:PORT to go through; None = none, whatever the environment says.
    """
    bounds.check_sampler_id(sampler_id, "--name")
    options = [
      # The learner keeps to the limit of its configuration, which comes with the first reply.
      ("grpc.max_receive_message_length", bounds.MAX_MESSAGE_MB << 20),
      ("grpc.max_send_message_length", bounds.MAX_MESSAGE_MB << 20),
      ("grpc.initial_reconnect_backoff_ms", 100),
      ("grpc.max_reconnect_backoff_ms", 2000),
      *connections.KEEPALIVE,
      *connections.through(proxy),
    ]
    self._channel = security.open_channel(address, credentials, options)
    self._credentials = credentials
    self._stub = rpc.LearnerStub(checksum.SealedChannel(self._channel))
    self._address, self._id, self._proxy = address, sampler_id, proxy
    self._patience, self._max_message_mb = reconnect_seconds, bounds.MAX_MESSAGE_MB
    self._transfer_seconds = _LEAST_SECONDS
    self._session = ""
    self._newest_version = types.NO_VERSION
    self._stopping = threading.Event()

  def stop(self) -> None:
    """Ends waiting calls with LearnerGone; safe from a signal handler."""
    self._stopping.set()

  @property
  def session(self) -> str:
    """Of the learner that we joined last."""
    return self._session

  @property
  def newest_version(self) -> int:
    """That the learner of this session told us of."""
    return self._newest_version

  def close(self) -> None:
    """Closes the connection."""
    self._channel.close()

  def configure(self, reconnect_seconds: float, max_message_mb: int) -> None:
    """As the run's configuration has it: how long to look for a lost learner; what we may send."""
    self._patience, self._max_message_mb = reconnect_seconds, max_message_mb
    self._transfer_seconds = max(_LEAST_SECONDS, max_message_mb / _SLOWEST_MB)

  def hello(self) -> Identity:
    """Joins, or joins again after SessionLost."""
    request = pb.HelloRequest(protocol=PROTOCOL, sampler_id=self._id)
    reply = self._call(lambda: self._stub.Hello(request, timeout=_HELLO_SECONDS))
    self._session, self._newest_version = reply.session, types.NO_VERSION
    return Identity.of(reply)

  def lease(
    self,
    limit: int,
    wait_seconds: float = 5.0,
    holding: Sequence[str] = (),
    check: Callable[[types.Ticket], None] = lambda ticket: None,
  ) -> list[types.Ticket] | None:
    """Up to `limit` tickets, [] when there was none in time, None when the run is over.

    Those that can't be read, or for which `check` raises WireError, are declined.

    `holding`: ids of the tickets that we still work on; any other lease of ours ends.
    """
    request = pb.LeaseRequest(
      session=self._session,
      sampler_id=self._id,
      credits=min(limit, bounds.MAX_CREDITS),
      wait_seconds=wait_seconds,
      holding=holding,
    )
    seconds = wait_seconds + self._transfer_seconds
    reply = self._call(lambda: self._stub.Lease(request, timeout=seconds))
    self._hear_of(request.session, reply.newest_version)
    if reply.run_finished:
      return None
    if len(reply.tickets) > limit:
      bounds.refuse("tickets", len(reply.tickets), f"at most {limit}, as many as asked for")
    tickets, reasons = [], {}
    for message in reply.tickets:
      bounds.check_ticket_id(message.ticket_id, "ticket.ticket_id")  # else it can't be declined
      try:
        ticket = codec.decode_ticket(message)
        check(ticket)
        tickets.append(ticket)
      except codec.WireError as error:
        reasons[message.ticket_id] = bounds.words(str(error))
    if reasons:
      self.decline(reasons)
    return tickets

  def decline(self, reasons: dict[str, str]) -> None:
    """Gives tickets back that can't be answered here; ticket id -> why."""
    for ticket_id, reason in reasons.items():
      _LOG.warning("can't answer ticket %s: %s", ticket_id, reason)
    request = pb.DeclineRequest(session=self._session, sampler_id=self._id, reasons=reasons)
    self._call(lambda: self._stub.Decline(request, timeout=10))

  def heartbeat(self, stats: dict[str, float], progress: dict[str, int]) -> None:
    """Keeps our leases alive. Raises grpc.RpcError; the next beat is the retry.

    `progress`: the tickets that we have -> tokens sampled so far.
    """
    request = pb.HeartbeatRequest(
      session=self._session, sampler_id=self._id, stats=stats, progress=progress
    )
    reply = self._stub.Heartbeat(request, timeout=10)
    self._hear_of(request.session, reply.newest_version)

  def _hear_of(self, session: str, version: int) -> None:
    if session == self._session:
      self._newest_version = max(self._newest_version, version)

  def leave(self) -> int:
    """Returns our open tickets to the learner; how many. Tried once: leases expire anyway."""
    request = pb.LeaveRequest(session=self._session, sampler_id=self._id)
    return self._stub.Leave(request, timeout=5).returned

  def pull_weights(
    self, min_version: int, max_version: int, receiver: receiver_lib.Receiver
  ) -> tuple[int, weights.Tensors | None]:
    """Newest version within the bounds; tensors None when it is the one that `receiver` holds.

    A broken stream goes on where it broke. A damaged one is asked for again, in full.

    Raises:
      codec.WireError: weights of another model, or damaged three times.
    """
    request = pb.WeightsRequest(
      session=self._session, sampler_id=self._id, min_version=min_version, max_version=max_version
    )

    def pull():
      """One stream, from where the last one broke."""
      stream = self._stub.PullWeights(receiver.complete(request), timeout=600)
      try:
        return receiver.receive(stream)
      finally:
        stream.cancel()  # does nothing once it has ended

    for _ in range(_PULLS - 1):
      try:
        return self._call(pull, progress=lambda: receiver.received_bytes)
      except receiver_lib.DamagedError as error:
        _LOG.warning("%s; pulling it again, in full", error)
        receiver.forget()
    return self._call(pull, progress=lambda: receiver.received_bytes)

  def check_session(self) -> None:
    """Raises SessionLost when the learner was restarted."""
    request = pb.HeartbeatRequest(session=self._session, sampler_id=self._id)
    self._call(lambda: self._stub.Heartbeat(request, timeout=10))

  def push(self, groups: list[types.Group]) -> list[types.PushOutcome]:
    """Sends groups until each is acknowledged: durable, not needed any more, or refused.

    Raises:
      SessionLost: say `hello` and push the same groups again.
      Refused: one is larger than a message may be.
    """
    for group in groups:
      self._check_size(group)
    pushed = [group.ticket_id for group in groups]

    def push():
      """One stream; None where acknowledgements are missing, as when a frame was damaged."""
      requests = codec.push_requests(groups, self._session, self._id)
      acks = [ack for reply in self._stub.Push(requests, timeout=120) for ack in reply.acks]
      complete = [ack.ticket_id for ack in acks] == pushed
      return [codec.decode_ack(ack) for ack in acks] if complete else None

    return self._call(push)

  def _check_size(self, group: types.Group) -> None:
    longest = max((t.tokens.size for t in group.trajectories), default=0)
    size = bounds.max_group_bytes(len(group.trajectories), longest)
    if size > self._max_message_mb << 20:
      raise Refused(
        f"ticket {group.ticket_id}: its group may take {size} bytes, expected at most "
        f"transport.max_message_mb = {self._max_message_mb}"
      )

  def watch(self, session: str, position: int, wait_seconds: float) -> types.News:
    """What is new after `wait_seconds`, or when the run is over; needs no `hello`.

    `session`, `position`: of the news before; "" and 0 at first.

    Raises:
      codec.WireError: a reply that no learner of this release would send.
    """
    request = pb.WatchRequest(
      protocol=PROTOCOL, session=session, position=position, wait_seconds=wait_seconds
    )
    reply = self._call(lambda: self._stub.Watch(request, timeout=wait_seconds + 10))
    return watching.decode_news(reply)

  def _refuse_if_hopeless(self) -> None:
    if self._proxy is not None:
      return  # who answers there is not the learner
    if problem := diagnosis.lasting_problem(self._address, self._credentials):
      raise Refused(f"{self._address}: {problem}") from None

  def _raise_if_final(self, error: grpc.RpcError, refused: int) -> None:
    """What no further try can change; `refused`: how often in a row it was, this time included."""
    reason, told = refusals.reason_of(error), error.details()
    if reason == refusals.Reason.NEW_SESSION:
      raise SessionLost(told) from None
    if reason == refusals.Reason.NO_VERSION:
      raise VersionGone(f"{self._address}: {told}") from None
    if refused == _REFUSALS:
      raise Refused(f"{self._address}: {told}") from None
    if error.code() == grpc.StatusCode.UNAVAILABLE:
      self._refuse_if_hopeless()

  def _call(self, function: Callable, progress: Callable = lambda: None):
    """Retries with growing, jittered pauses; a call may arrive twice, which the learner notices.

    None is a failure, too: what gRPC returns for a reply whose message was damaged out of sight.
    Only what the learner itself declares final ends it at once. As long as `progress()` changes
    between failures, patience begins anew.
    """
    pause, give_up, reached, refused = 0.1, None, progress(), 0
    while True:
      try:
        if (found := function()) is not None:
          return found
        refused, last = 0, "a reply without what was asked for"
      except grpc.RpcError as error:
        refused = refused + 1 if refusals.reason_of(error) == refusals.Reason.REFUSED else 0
        self._raise_if_final(error, refused)
        last = f"{error.code().name} {error.details()}"
      if progress() != reached:
        pause, give_up, reached = 0.1, None, progress()
      now = time.monotonic()
      give_up = give_up or now + self._patience
      if now > give_up or self._stopping.is_set():
        raise LearnerGone(f"no learner at {self._address} for {self._patience:.0f} s: {last}")
      self._stopping.wait(pause * random.uniform(0.5, 1.5))
      pause = min(2 * pause, 5.0)
