"""The learner's end of the wire."""

import concurrent.futures
import dataclasses
import ipaddress
import logging
from collections.abc import Callable

import grpc

from offpolicy_rl import types
from offpolicy_rl.transport import codec, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc

PROTOCOL = 1  # raise it with every incompatible change of trajectory.proto
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
  weights_in_directory: bool = False  # else they are streamed


class _Servicer(rpc.LearnerServicer):
  def __init__(self, identity: Identity, handlers: Handlers, store: weights.WeightStore):
    self._identity, self._handlers, self._store = identity, handlers, store

  def _check_session(self, request, context) -> None:
    if request.session != self._identity.session:
      context.abort(
        grpc.StatusCode.ABORTED,
        f"session: got {request.session!r}, expected {self._identity.session!r} (say Hello again)",
      )

  def Hello(self, request, context):
    if request.protocol != PROTOCOL:
      context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the sampler speaks version {request.protocol}, this learner {PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return pb.HelloReply(**dataclasses.asdict(self._identity))

  def Lease(self, request, context):
    self._check_session(request, context)
    if request.credits < 1:
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, "credits: got 0, expected at least 1")
    wait = min(max(request.wait_seconds, 0.0), 30.0)
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
      yield self._judge(message)

  def _judge(self, message: pb.Group) -> pb.Ack:
    try:
      outcome = self._handlers.finish(codec.decode_group(message))
    except codec.WireError as error:
      _LOG.warning("refused %s of %s: %s", message.ticket_id, message.sampler_id, error)
      return pb.Ack(ticket_id=message.ticket_id, verdict=pb.VERDICT_REFUSED, reason=str(error))
    verdict = {"accepted": pb.VERDICT_ACCEPTED, "duplicate": pb.VERDICT_DUPLICATE}.get(outcome)
    if verdict is None:
      reason = f"group.ticket_id: {message.ticket_id!r} is no open ticket"
      return pb.Ack(ticket_id=message.ticket_id, verdict=pb.VERDICT_REFUSED, reason=reason)
    return pb.Ack(ticket_id=message.ticket_id, verdict=verdict)

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
      bounds = f"[{request.min_version}, {request.max_version}]"
      context.abort(
        grpc.StatusCode.NOT_FOUND,
        f"min_version, max_version: no version in {bounds}, there are {self._store.versions()}",
      )
    yield from chunks


def check_listen_address(listen: str, *, insecure: bool) -> None:
  """Without credentials the server stays on loopback, unless the user insists."""
  host = listen.rpartition(":")[0].strip("[]")
  try:
    loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    loopback = False
  if not (loopback or insecure):
    raise ValueError(
      f"--listen: got {listen!r}, expected a loopback address, because the stream is not "
      "encrypted; add --insecure to serve it on a network that you trust"
    )


def start(
  listen: str, identity: Identity, handlers: Handlers, store: weights.WeightStore,
  *, max_samplers: int, max_message_mb: int,
) -> tuple[grpc.Server, str]:  # fmt: skip
  """Serves in background threads; returns the server and the address it got.

  Raises:
    RuntimeError: the address is taken.
  """
  limit = max_message_mb << 20
  # One long poll, one push and one weight pull or heartbeat per sampler at a time.
  pool = concurrent.futures.ThreadPoolExecutor(3 * max_samplers + 2, thread_name_prefix="rpc")
  options = [
    ("grpc.max_receive_message_length", limit),
    ("grpc.max_send_message_length", limit),
    ("grpc.so_reuseport", 0),  # two learners on one port must be an error
  ]
  server = grpc.server(pool, options=options)
  servicer = _Servicer(identity, handlers, store)
  rpc.add_LearnerServicer_to_server(servicer, server)
  # In place of the generated one, whose serializer would copy every byte of the weights twice more.
  serialized = grpc.unary_stream_rpc_method_handler(
    servicer.PullWeights, pb.WeightsRequest.FromString, response_serializer=None
  )
  server.add_registered_method_handlers("offpolicy_rl.Learner", {"PullWeights": serialized})
  port = server.add_insecure_port(listen)
  server.start()
  return server, f"{listen.rpartition(':')[0]}:{port}"
