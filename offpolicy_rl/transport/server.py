"""The learner's end of the wire."""

import concurrent.futures
import dataclasses
import logging
import re
import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health

from offpolicy_rl import types
from offpolicy_rl.transport import bounds, codec, door, security, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc

PROTOCOL = 1  # raise it with every incompatible change of trajectory.proto
SERVICE = pb.DESCRIPTOR.services_by_name["Learner"].full_name
# A peer whose machine or network is gone is noticed after 40 s. Both ends ping; the server allows
# twice as many pings as the client sends, since too many would end the connection.
KEEPALIVE = [
  ("grpc.keepalive_time_ms", 30_000),
  ("grpc.keepalive_timeout_ms", 10_000),
  ("grpc.keepalive_permit_without_calls", 1),
  ("grpc.http2.max_pings_without_data", 0),
]
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Handlers:
  """What the learner does when a sampler calls."""

  lease: Callable[[str, int, float], list[types.Ticket]]  # (sampler, limit, seconds to wait)
  heartbeat: Callable[[str, dict[str, float]], None]
  finish: Callable[[types.Group], str]  # -> "accepted" | "duplicate" | "unknown"; WireError
  run_finished: Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Identity:
  """What a sampler learns and checks first."""

  session: str  # one per learner start
  run_id: str
  config_json: str
  vocabulary_fingerprint: str


class _Servicer(rpc.LearnerServicer):
  def __init__(
    self, identity: Identity, handlers: Handlers, store: weights.WeightStore, notices: door.Notices
  ):
    self._identity, self._handlers, self._store = identity, handlers, store
    self._notices = notices

  def _check_session(self, request, context) -> None:
    if request.session != self._identity.session:
      got = bounds.shown(request.session)
      expected = f"{self._identity.session!r} (say Hello again)"
      context.abort(grpc.StatusCode.ABORTED, f"session: got {got}, expected {expected}")
    self._check_fields(request, context)

  def _check_fields(self, request, context) -> None:
    try:
      bounds.check_request(request)
    except bounds.WireError as error:
      self._note(context.peer(), error)
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

  def _note(self, peer: str, error: bounds.WireError, detail: str = "") -> None:
    """Logs a refusal, once per peer and field."""
    field, _, rest = str(error).partition(": ")
    self._notices.warn(peer, re.sub(r"\d+", "*", field), f"{detail}{rest}")

  def Hello(self, request, context):
    if request.protocol != PROTOCOL:
      context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the sampler speaks version {request.protocol}, this learner {PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )
    self._check_fields(request, context)
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return pb.HelloReply(**dataclasses.asdict(self._identity))

  def Lease(self, request, context):
    self._check_session(request, context)
    wait = min(request.wait_seconds, 30.0)
    tickets = self._handlers.lease(request.sampler_id, request.credits, wait)
    return pb.LeaseReply(
      tickets=[codec.encode_ticket(ticket) for ticket in tickets],
      run_finished=self._handlers.run_finished(),
    )

  def Heartbeat(self, request, context):
    self._check_session(request, context)
    self._handlers.heartbeat(request.sampler_id, dict(request.stats))
    return pb.HeartbeatReply(run_finished=self._handlers.run_finished())

  def Push(self, requests, context):
    for message in requests:
      self._check_session(message, context)
      yield self._judge(message, context.peer())

  def _judge(self, message: pb.Group, peer: str) -> pb.Ack:
    try:
      outcome = self._handlers.finish(codec.decode_group(message))
    except bounds.WireError as error:
      self._note(peer, error, f"ticket {bounds.shown(message.ticket_id)}, ")
      return _refused(message, str(error))
    verdict = {"accepted": pb.VERDICT_ACCEPTED, "duplicate": pb.VERDICT_DUPLICATE}.get(outcome)
    if verdict is None:
      return _refused(message, f"group.ticket_id: {message.ticket_id!r} is no open ticket")
    return pb.Ack(ticket_id=message.ticket_id, verdict=verdict)

  def PullWeights(self, request, context):
    self._check_session(request, context)
    version = self._store.newest(request.min_version, request.max_version)
    if version is None:
      bounds = f"[{request.min_version}, {request.max_version}]"
      context.abort(
        grpc.StatusCode.NOT_FOUND,
        f"min_version, max_version: no version in {bounds}, there are {self._store.versions()}",
      )
    if version == request.held_version:
      yield pb.WeightsChunk(header=pb.WeightsHeader(version=version, already_held=True))
      return
    yield from self._store.stream(version)


def _refused(message: pb.Group, reason: str) -> pb.Ack:
  ticket_id = message.ticket_id[: bounds.MAX_TICKET_ID]
  return pb.Ack(ticket_id=ticket_id, verdict=pb.VERDICT_REFUSED, reason=reason)


class Wire:
  """The running server."""

  def __init__(self, server: grpc.Server, status: health.HealthServicer):
    self._server, self._status = server, status

  def say_not_serving(self) -> None:
    """What health checks hear from now on; calls are still answered."""
    self._status.enter_graceful_shutdown()

  def stop(self, grace: float) -> threading.Event:
    """Refuses new calls and ends the open ones after `grace` seconds; the event is set then."""
    self.say_not_serving()
    return self._server.stop(grace)


def start(
  listen: str, identity: Identity, handlers: Handlers, store: weights.WeightStore,
  *, max_samplers: int, max_message_mb: int,
  credentials: security.Credentials = security.NONE, reflection: bool = False,
) -> tuple[Wire, str]:  # fmt: skip
  """Serves in background threads; returns the server and the address it got.

  Raises:
    RuntimeError: the address is taken.
    security.CredentialsError: a file of `credentials` cannot be read.
  """
  # One long poll, one push and one weight pull or heartbeat per sampler at a time, and two probes.
  # A call beyond these is refused (RESOURCE_EXHAUSTED), not queued: the queue would have no bound.
  calls = 3 * max_samplers + 2
  pool = concurrent.futures.ThreadPoolExecutor(calls, thread_name_prefix="rpc")
  options = [
    ("grpc.max_receive_message_length", max_message_mb << 20),
    ("grpc.max_send_message_length", -1),  # our own messages; the samplers have a limit
    ("grpc.so_reuseport", 0),  # two learners on one port must be an error
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 15_000),
    *KEEPALIVE,
  ]
  notices = door.Notices()
  entrance = door.Door(security.read_token(credentials), notices)
  server = grpc.server(
    pool, options=options, interceptors=[entrance], maximum_concurrent_rpcs=calls
  )
  rpc.add_LearnerServicer_to_server(_Servicer(identity, handlers, store, notices), server)
  status = door.add_standard_services(server, SERVICE, with_reflection=reflection)
  port = security.add_port(server, listen, credentials)
  server.start()
  return Wire(server, status), f"{listen.rpartition(':')[0]}:{port}"
