"""The learner's end of the wire."""

import concurrent.futures
import dataclasses
import ipaddress
import logging
import queue
import threading
from collections.abc import Callable

import grpc

from offpolicy_rl import types
from offpolicy_rl.transport import codec, seal, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc

PROTOCOL = 2  # raise it with every incompatible change of trajectory.proto
_UNACKNOWLEDGED = 16  # groups of one stream that are checked but not on disk yet
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Handlers:
  """What the learner does when a sampler calls."""

  join: Callable[[str], None]  # a sampler says Hello
  # (sampler, limit, seconds to wait, tickets that it holds)
  lease: Callable[[str, int, float, set[str]], list[types.Ticket]]
  heartbeat: Callable[[str, dict[str, float]], None]
  # -> future of "accepted" (durable) | "duplicate" | "unknown"; WireError: not a valid answer
  finish: Callable[[types.Group], concurrent.futures.Future]
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
  def __init__(self, identity: Identity, handlers: Handlers, store: weights.WeightStore):
    self._identity, self._handlers, self._store = identity, handlers, store

  def _require_session(self, request) -> None:
    if request.session != self._identity.session:
      raise _WrongSession(
        f"session: got {request.session!r}, expected {self._identity.session!r} (say Hello again)"
      )

  def _check_session(self, request, context) -> None:
    try:
      self._require_session(request)
    except _WrongSession as error:
      context.abort(grpc.StatusCode.ABORTED, str(error))

  def Hello(self, request, context):
    if request.protocol != PROTOCOL:
      context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the sampler speaks version {request.protocol}, this learner {PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )
    self._handlers.join(request.sampler_id)
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return pb.HelloReply(**dataclasses.asdict(self._identity))

  def Lease(self, request, context):
    self._check_session(request, context)
    if request.credits < 1:
      context.abort(grpc.StatusCode.INVALID_ARGUMENT, "credits: got 0, expected at least 1")
    wait = min(max(request.wait_seconds, 0.0), 30.0)
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
    threading.Thread(target=self._judge_all, args=(requests, judged), daemon=True).start()
    item = None
    try:
      while (item := judged.get()) is not None:
        yield _acknowledge(*item, context)
    finally:
      while item is not None:  # left early: let the reader end
        item = judged.get()

  def _judge_all(self, requests, judged: queue.Queue) -> None:
    try:
      for message in requests:
        judged.put((message.ticket_id, self._judge(message)))
    except grpc.RpcError:
      pass  # the sampler is gone
    finally:
      judged.put(None)

  def _judge(self, message: pb.Group) -> concurrent.futures.Future:
    outcome: concurrent.futures.Future = concurrent.futures.Future()
    try:
      self._require_session(message)
      return self._handlers.finish(codec.decode_group(message))
    except (codec.WireError, _WrongSession) as error:
      _LOG.warning("refused %s of %s: %s", message.ticket_id, message.sampler_id, error)
      outcome.set_exception(error)
    return outcome

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
  server = grpc.server(pool, options=options, interceptors=[seal.SealedServer()])
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
