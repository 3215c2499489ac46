"""The learner's end of the wire."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import queue
import re
import threading
from collections.abc import Callable

import grpc
from grpc_health.v1 import health

from offpolicy_rl import types
from offpolicy_rl.transport import bounds, codec, door, seal, security, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc

PROTOCOL = 2  # raise it with every incompatible change of trajectory.proto
SERVICE = pb.DESCRIPTOR.services_by_name["Learner"].full_name
# A peer whose machine or network is gone is noticed after 40 s. Both ends ping.
KEEPALIVE = [
  ("grpc.keepalive_time_ms", 30_000),
  ("grpc.keepalive_timeout_ms", 10_000),
  ("grpc.keepalive_permit_without_calls", 1),
  ("grpc.http2.max_pings_without_data", 0),
]
_UNACKNOWLEDGED = 32
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Handlers:
  """What the learner does when a sampler calls."""

  join: Callable[[str], None]  # a sampler says Hello
  # (sampler, limit, seconds to wait, tickets that it holds)
  lease: Callable[[str, int, float, set[str]], list[types.Ticket]]
  heartbeat: Callable[[str, dict[str, float]], None]
  # (group, its message) -> future of "accepted" (durable) | "duplicate" | "unknown"; WireError
  finish: Callable[[types.Group, bytes], concurrent.futures.Future]
  leave: Callable[[str], int]  # -> tickets returned
  run_finished: Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Identity:
  """What a sampler learns and checks first."""

  session: str  # one per learner start
  run_id: str
  config_json: str
  vocabulary_fingerprint: str
  weights_in_directory: bool = False  # else they are streamed


class _WrongSession(Exception):
  """A call of somebody who joined the learner before it was restarted."""


_VERDICTS = {
  "accepted": pb.VERDICT_ACCEPTED,
  "duplicate": pb.VERDICT_DUPLICATE,
  "unknown": pb.VERDICT_UNKNOWN,
}


def _acknowledge(ticket_id: str, judged: concurrent.futures.Future, context) -> pb.Ack:
  """Waits until a group is on disk, or for what is wrong with it."""
  try:
    outcome = judged.result()
  except codec.WireError as error:
    return pb.Ack(ticket_id=ticket_id, verdict=pb.VERDICT_REFUSED, reason=str(error))
  except _WrongSession as error:
    context.abort(grpc.StatusCode.ABORTED, str(error))
  except OSError as error:  # not ours to lose: the sampler keeps the group and tries again
    context.abort(grpc.StatusCode.UNAVAILABLE, f"the group could not be kept: {error}")
  reason = f"group.ticket_id: {ticket_id!r} is no open ticket" if outcome == "unknown" else ""
  return pb.Ack(ticket_id=ticket_id, verdict=_VERDICTS[outcome], reason=reason)


class _Servicer(rpc.LearnerServicer):
  def __init__(
    self, identity: Identity, handlers: Handlers, store: weights.WeightStore, notices: door.Notices
  ):
    self._identity, self._handlers, self._store = identity, handlers, store
    self._notices = notices

  def _require_session(self, request) -> None:
    if request.session != self._identity.session:
      expected = f"{self._identity.session!r} (say Hello again)"
      raise _WrongSession(f"session: got {bounds.shown(request.session)}, expected {expected}")
    bounds.check_request(request)

  def _note(self, peer: str, error: bounds.WireError, detail: str = "") -> None:
    """Logs a refusal, once per peer and field."""
    field, _, rest = str(error).partition(": ")
    self._notices.warn(peer, re.sub(r"\d+", "*", field), f"{detail}{rest}")

  @contextlib.contextmanager
  def _refusing(self, context):
    """What is wrong with a request ends its call with a clear error."""
    try:
      yield
    except _WrongSession as error:
      context.abort(grpc.StatusCode.ABORTED, str(error))
    except bounds.WireError as error:
      self._note(context.peer(), error)
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

  def _check_session(self, request, context) -> None:
    with self._refusing(context):
      self._require_session(request)

  def Hello(self, request, context):
    if request.protocol != PROTOCOL:
      context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the sampler speaks version {request.protocol}, this learner {PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )
    with self._refusing(context):
      bounds.check_request(request)
    self._handlers.join(request.sampler_id)
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return pb.HelloReply(**dataclasses.asdict(self._identity))

  def Lease(self, request, context):
    self._check_session(request, context)
    wait = min(request.wait_seconds, 30.0)
    holding = set(request.holding)
    tickets = self._handlers.lease(request.sampler_id, request.credits, wait, holding)
    return pb.LeaseReply(
      tickets=[codec.encode_ticket(ticket) for ticket in tickets],
      run_finished=self._handlers.run_finished(),
    )

  def Heartbeat(self, request, context):
    self._check_session(request, context)
    self._handlers.heartbeat(request.sampler_id, dict(request.stats))
    return pb.HeartbeatReply(run_finished=self._handlers.run_finished())

  def Leave(self, request, context):
    self._check_session(request, context)
    returned = self._handlers.leave(request.sampler_id)
    _LOG.info("sampler %s left, %d tickets returned", request.sampler_id, returned)
    return pb.LeaveReply(returned=returned)

  def Push(self, requests, context):
    """Reads and checks the next groups while those before are written to disk."""
    judged: queue.Queue = queue.Queue(_UNACKNOWLEDGED)
    peer = context.peer()
    threading.Thread(target=self._judge_all, args=(requests, judged, peer), daemon=True).start()
    item = None
    try:
      while (item := judged.get()) is not None:
        yield pb.PushReply(acks=[_acknowledge(*judgement, context) for judgement in item])
    finally:
      while item is not None:  # left early: let the reader end
        item = judged.get()

  def _judge_all(self, requests, judged: queue.Queue, peer: str) -> None:
    try:
      for request in requests:
        judged.put([self._judge(request, message, peer) for message in request.groups])
    except Exception as error:  # the sampler is gone, or what it sent can't be read: the call ends
      _LOG.debug("push of %s ended: %r", peer, error)
    finally:
      judged.put(None)

  def _judge(self, request: pb.PushRequest, message: pb.Group, peer: str):
    """(ticket id, future of the outcome)."""
    outcome: concurrent.futures.Future = concurrent.futures.Future()
    try:
      self._require_session(request)
      outcome = self._handlers.finish(codec.decode_group(message), message.SerializeToString())
    except Exception as error:  # `_acknowledge` raises it again, where it ends the call
      if isinstance(error, bounds.WireError):
        self._note(peer, error, f"ticket {bounds.shown(message.ticket_id)}, ")
      outcome.set_exception(error)
    return message.ticket_id[: bounds.MAX_TICKET_ID], outcome

  def PullWeights(self, request, context):
    self._check_session(request, context)
    if self._identity.weights_in_directory:
      context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        "PullWeights: this learner writes its weights to a directory; give the sampler its path by "
        "--weights_dir",
      )
    chunks = self._store.answer(request)
    if chunks is None:
      wanted = f"[{request.min_version}, {request.max_version}]"
      context.abort(
        grpc.StatusCode.NOT_FOUND,
        f"min_version, max_version: no version in {wanted}, there are {self._store.versions()}",
      )
    yield from chunks


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
    # gRPC's guess of who pings too often hits honest samplers whose connection hung for a moment.
    ("grpc.http2.max_ping_strikes", 0),
    *KEEPALIVE,
  ]
  notices = door.Notices()
  entrance = door.Door(security.read_token(credentials), notices)
  server = grpc.server(
    pool, options=options, interceptors=[entrance, seal.SealedServer()],
    maximum_concurrent_rpcs=calls,
  )  # fmt: skip
  servicer = _Servicer(identity, handlers, store, notices)
  rpc.add_LearnerServicer_to_server(servicer, server)
  # In place of the generated one, whose serializer would copy every byte of the weights twice more.
  serialized = grpc.unary_stream_rpc_method_handler(
    servicer.PullWeights, pb.WeightsRequest.FromString, response_serializer=None
  )
  server.add_registered_method_handlers(SERVICE, {"PullWeights": serialized})
  status = door.add_standard_services(server, SERVICE, with_reflection=reflection)
  port = security.add_port(server, listen, credentials)
  server.start()
  return Wire(server, status), f"{listen.rpartition(':')[0]}:{port}"
