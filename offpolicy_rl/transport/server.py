"""The learner's end of the wire."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import queue
import re
import threading
from collections.abc import Callable
from typing import NoReturn

import grpc
from grpc_health.v1 import health

from offpolicy_rl import types
from offpolicy_rl.transport import (
  bounds,
  checksum,
  codec,
  connections,
  interceptors,
  refusals,
  security,
  watching,
  weights,
)
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from offpolicy_rl.types import PushOutcome, PushStatus

PROTOCOL = 3  # raise it with every incompatible change of trajectory.proto
SERVICE = pb.DESCRIPTOR.services_by_name["Learner"].full_name
_UNACKNOWLEDGED = 32
WATCHERS = 8  # calls of theirs at once; they have places of their own
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Handlers:
  """What the learner does when a sampler calls."""

  join: Callable[[str], None]  # a sampler says Hello
  # (sampler, limit, seconds to wait, tickets that it holds)
  lease: Callable[[str, int, float, set[str]], list[types.Ticket]]
  heartbeat: Callable[[str, dict[str, float], dict[str, int]], None]  # (.., stats, progress)
  decline: Callable[[str, dict[str, str]], None]  # (sampler, ticket -> why it can't be answered)
  # (a message's groups, or what is wrong with one; its bytes) -> future of a PushOutcome for each
  finish: Callable[[list[types.Group | bounds.WireError], bytes], concurrent.futures.Future]
  leave: Callable[[str], int]  # -> tickets returned
  run_finished: Callable[[], bool]
  newest_version: Callable[[], int]  # that can be pulled
  # (a watcher's session, its position in the metrics, seconds to wait); None: there is no watching
  watch: Callable[[str, int, float], types.News] | None = None


@dataclasses.dataclass(frozen=True)
class Identity:
  """What a sampler learns and checks first."""

  session: str  # one per learner start
  run_id: str
  config_json: str
  vocabulary_fingerprint: str
  weights_in_directory: bool = False  # else they are streamed
  model_files: types.ModelFiles | None = None  # of a published model

  def message(self) -> pb.HelloReply:
    """For the wire."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    files = fields.pop("model_files")
    return pb.HelloReply(**fields, model_files=files and pb.ModelFiles(**files._asdict()))

  @classmethod
  def of(cls, reply: pb.HelloReply) -> "Identity":
    """Inverse of `message`."""
    fields = {f.name: getattr(reply, f.name) for f in dataclasses.fields(cls)}
    files = fields.pop("model_files")
    texts = types.ModelFiles(*(getattr(files, name) for name in types.ModelFiles._fields))
    return cls(**fields, model_files=texts if reply.HasField("model_files") else None)


class _WrongSession(Exception):
  """A call of somebody who joined the learner before it was restarted."""


def _say_hello_again(context: grpc.ServicerContext, error: _WrongSession) -> NoReturn:
  reason = refusals.Reason.NEW_SESSION
  refusals.abort(context, grpc.StatusCode.ABORTED, str(error), reason)


def _decoded(message: pb.Group, sampler_id: str) -> types.Group | bounds.WireError:
  try:
    return codec.decode_group(message, sampler_id)
  except bounds.WireError as error:
    return error


def _known(result=None, error: Exception | None = None) -> concurrent.futures.Future:
  """A future that is done."""
  future: concurrent.futures.Future = concurrent.futures.Future()
  if error is None:
    future.set_result(result)
  else:
    future.set_exception(error)
  return future


def _request_and_bytes(data: bytes) -> tuple[pb.PushRequest, bytes]:
  return pb.PushRequest.FromString(data), data


class _Servicer(rpc.LearnerServicer):
  def __init__(
    self,
    identity: Identity,
    handlers: Handlers,
    store: weights.WeightStore,
    notices: interceptors.Notices,
    *,
    max_message_mb: int,
  ):
    self._identity, self._handlers, self._store = identity, handlers, store
    self._notices, self._max_bytes = notices, max_message_mb << 20
    self._watching = threading.Semaphore(WATCHERS)

  def _require_session(self, request) -> None:
    if request.session != self._identity.session:
      expected = f"{self._identity.session!r} (say Hello again)"
      raise _WrongSession(f"session: got {bounds.shown(request.session)}, expected {expected}")
    bounds.check_request(request)

  def _note(self, peer: str, error: str, detail: str = "") -> None:
    """Logs a refusal, once per peer and field."""
    field, _, rest = error.partition(": ")
    self._notices.warn(peer, re.sub(r"\d+", "*", field), f"{detail}{rest}")

  @contextlib.contextmanager
  def _refusing(self, context):
    """What is wrong with a request ends its call with a clear error."""
    try:
      yield
    except _WrongSession as error:
      _say_hello_again(context, error)
    except bounds.WireError as error:
      self._note(context.peer(), str(error))
      refusals.abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

  def _check_session(self, request, context) -> None:
    with self._refusing(context):
      self._require_session(request)

  def _check_protocol(self, request, context, who: str) -> None:
    if request.protocol != PROTOCOL:
      refusals.abort(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the {who} speaks version {request.protocol}, this learner {PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )

  def Hello(self, request, context):
    """See trajectory.proto."""
    self._check_protocol(request, context, "sampler")
    with self._refusing(context):
      bounds.check_request(request)
    self._handlers.join(request.sampler_id)
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return self._identity.message()

  def Lease(self, request, context):
    """See trajectory.proto."""
    self._check_session(request, context)
    wait = min(request.wait_seconds, 30.0)
    holding = set(request.holding)
    tickets = self._handlers.lease(request.sampler_id, request.credits, wait, holding)
    reply = pb.LeaseReply(
      run_finished=self._handlers.run_finished(), newest_version=self._handlers.newest_version()
    )
    # What does not fit comes with the next lease: the sampler will not say that it holds it.
    reply.tickets.extend(codec.encode_tickets(tickets, self._max_bytes - reply.ByteSize() - 64))
    if tickets and not reply.tickets:  # nobody could be sent this one
      why = f"it does not fit into a message of {self._max_bytes} bytes"
      self._handlers.decline(request.sampler_id, {tickets[0].ticket_id: why})
    return reply

  def Heartbeat(self, request, context):
    """See trajectory.proto."""
    self._check_session(request, context)
    self._handlers.heartbeat(request.sampler_id, dict(request.stats), dict(request.progress))
    return pb.HeartbeatReply(
      run_finished=self._handlers.run_finished(), newest_version=self._handlers.newest_version()
    )

  def Decline(self, request, context):
    """See trajectory.proto."""
    self._check_session(request, context)
    self._handlers.decline(request.sampler_id, dict(request.reasons))
    return pb.DeclineReply()

  def Leave(self, request, context):
    """See trajectory.proto."""
    self._check_session(request, context)
    returned = self._handlers.leave(request.sampler_id)
    _LOG.info("sampler %s left, %d tickets returned", request.sampler_id, returned)
    return pb.LeaveReply(returned=returned)

  def Push(self, requests, context):
    """Reads and checks the next groups while those before are written to disk."""
    judged: queue.Queue = queue.Queue(_UNACKNOWLEDGED)
    reader = threading.Thread(target=self._judge_all, args=(requests, judged), daemon=True)
    reader.start()
    item = None
    try:
      while (item := judged.get()) is not None:
        yield self._acknowledge(*item, context)
    finally:
      while item is not None:  # left early: let the reader end
        item = judged.get()

  def _judge_all(self, requests, judged: queue.Queue) -> None:
    try:
      for request, received in requests:
        ticket_ids = [group.ticket_id for group in request.groups]  # all that an answer needs
        judged.put((request.sampler_id, ticket_ids, self._judge(request, received)))
    except Exception as error:  # the sampler is gone, or what it sent can't be read: the call ends
      _LOG.debug("push ended: %r", error)
    finally:
      judged.put(None)

  def _judge(self, request: pb.PushRequest, received: bytes) -> concurrent.futures.Future:
    """Future of what became of each group: as `Handlers.finish`."""
    try:
      self._require_session(request)
      groups = [_decoded(group, request.sampler_id) for group in request.groups]
      return self._handlers.finish(groups, received)
    except bounds.WireError as error:
      return _known([PushOutcome(PushStatus.REFUSED, str(error))] * len(request.groups))
    except Exception as error:  # `_acknowledge` raises it again, where it ends the call
      return _known(error=error)

  def _acknowledge(
    self, sampler_id: str, ticket_ids: list[str], judged: concurrent.futures.Future, context
  ) -> pb.PushReply:
    """Waits until groups are on disk, or for what is wrong with them.

    A sampler whose answer to a ticket is refused can't answer it: the same as if it had said so.
    """
    try:
      outcomes = judged.result()
    except _WrongSession as error:
      _say_hello_again(context, error)
    except OSError as error:  # not ours to lose: the sampler keeps the groups and tries again
      context.abort(grpc.StatusCode.UNAVAILABLE, f"the groups could not be kept: {error}")
    reply, refused = pb.PushReply(), {}
    for ticket_id, outcome in zip(ticket_ids, outcomes, strict=True):
      ack = codec.encode_ack(ticket_id[: bounds.MAX_TICKET_ID], outcome)
      reply.acks.append(ack)
      if outcome.status is PushStatus.REFUSED:
        self._note(context.peer(), outcome.reason, f"ticket {bounds.shown(ticket_id)}, ")
        refused[ack.ticket_id] = outcome.reason
    if refused:
      self._handlers.decline(sampler_id, refused)
    return reply

  def PullWeights(self, request, context):
    """See trajectory.proto."""
    self._check_session(request, context)
    if self._identity.weights_in_directory:
      refusals.abort(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        "PullWeights: this learner writes its weights to a directory; give the sampler its path by "
        "--weights_dir",
      )
    chunks = self._store.answer(request)
    if chunks is None:
      wanted = f"[{request.min_version}, {request.max_version}]"
      refusals.abort(
        context,
        grpc.StatusCode.NOT_FOUND,
        f"min_version, max_version: no version in {wanted}, there are {self._store.versions()}",
        refusals.Reason.NO_VERSION,
      )
    yield from chunks

  def Watch(self, request, context):
    """See trajectory.proto."""
    self._check_protocol(request, context, "watcher")
    with self._refusing(context):
      bounds.check_watch(request)
    if self._handlers.watch is None:
      refusals.abort(context, grpc.StatusCode.UNIMPLEMENTED, "Watch: this learner can't be watched")
    if not self._watching.acquire(blocking=False):
      context.abort(
        grpc.StatusCode.RESOURCE_EXHAUSTED, f"Watch: {WATCHERS} watchers look at this run already"
      )
    try:
      wait = min(request.wait_seconds, 30.0)
      return watching.encode_news(self._handlers.watch(request.session, request.position, wait))
    finally:
      self._watching.release()


class Wire:
  """The running server."""

  def __init__(
    self, server: grpc.Server, status: health.HealthServicer, shares: connections.Shares
  ):
    self._server, self._status, self._shares = server, status, shares

  def say_not_serving(self) -> None:
    """What health checks hear from now on; calls are still answered."""
    self._status.enter_graceful_shutdown()

  def stop(self, grace: float) -> threading.Event:
    """Refuses new calls and ends the open ones after `grace` seconds; the event is set then."""
    self.say_not_serving()
    self._shares.stop()
    return self._server.stop(grace)


def _frugal_handlers(servicer: _Servicer) -> dict[str, grpc.RpcMethodHandler]:
  """In place of generated ones: large messages are neither serialized nor parsed once more."""
  return {
    "PullWeights": grpc.unary_stream_rpc_method_handler(
      servicer.PullWeights, pb.WeightsRequest.FromString, response_serializer=None
    ),
    "Push": grpc.stream_stream_rpc_method_handler(
      servicer.Push, _request_and_bytes, pb.PushReply.SerializeToString
    ),
  }


def _check_size(identity: Identity, max_message_mb: int) -> None:
  size = identity.message().ByteSize() + 64  # its seal
  if size > max_message_mb << 20:
    raise bounds.WireError(
      f"transport.max_message_mb: got {max_message_mb}, expected at least {(size >> 20) + 1}: the "
      "configuration and the files of the model that each sampler is sent"
    )


def start(
  listen: str,
  identity: Identity,
  handlers: Handlers,
  store: weights.WeightStore,
  *,
  max_samplers: int,
  max_message_mb: int,
  credentials: security.Credentials = security.NONE,
  reflection: bool = False,
) -> tuple[Wire, str]:
  """Serves in background threads; returns the server and the address it got.

  Raises:
    RuntimeError: the address is taken.
    bounds.WireError: what samplers are told first is larger than a message may be.
    security.CredentialsError: a file of `credentials` cannot be read.
  """
  _check_size(identity, max_message_mb)
  # One long poll, one push and one weight pull or heartbeat per sampler at a time, and two probes.
  # Whoever watches takes none of these. A call beyond them all is refused (RESOURCE_EXHAUSTED), not
  # queued: the queue would have no bound.
  calls = 3 * max_samplers + 2 + WATCHERS
  # They may all be on one machine, and a connection that broke may be there until it is noticed.
  share = 2 * max_samplers + 2 * WATCHERS
  pool = concurrent.futures.ThreadPoolExecutor(calls, thread_name_prefix="rpc")
  options = [
    ("grpc.max_receive_message_length", max_message_mb << 20),
    ("grpc.max_send_message_length", -1),  # `Hello` and `Lease` see to the same limit
    # gRPC's guess of who pings too often hits honest samplers whose connection hung for a moment.
    ("grpc.http2.max_ping_strikes", 0),
    *connections.server_options(connections.places(share)),
  ]
  notices = interceptors.Notices()
  entrance = interceptors.Door(security.read_token(credentials), notices)
  server = grpc.server(
    pool,
    options=options,
    interceptors=[entrance, checksum.SealedServer()],
    maximum_concurrent_rpcs=calls,
  )
  servicer = _Servicer(identity, handlers, store, notices, max_message_mb=max_message_mb)
  rpc.add_LearnerServicer_to_server(servicer, server)
  server.add_registered_method_handlers(SERVICE, _frugal_handlers(servicer))
  status = interceptors.add_standard_services(server, SERVICE, with_reflection=reflection)
  port = security.add_port(server, listen, credentials)
  server.start()
  return Wire(
    server, status, connections.Shares(port, share)
  ), f"{listen.rpartition(':')[0]}:{port}"
