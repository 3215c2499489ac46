"""The learner's end of the wire."""

import concurrent.futures
import dataclasses
import logging
import queue
import re
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, cast

import grpc
from grpc_health.v1 import health

from offpolicy_rl import types
from offpolicy_rl.transport import (
  bounds,
  checksum,
  codec,
  connections,
  interceptors,
  protocol,
  security,
  watching,
  weights,
)
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from offpolicy_rl.types import PushOutcome, PushStatus

_MAX_UNACKNOWLEDGED = 32  # messages of one push
_MAX_LONG_POLL = 30.0  # seconds
MAX_WATCHERS = 8  # calls at once, beside those of samplers
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Handlers:
  """The functions of the learner that answer a sampler's calls."""

  join: Callable[[str], None]  # (sampler)
  # (sampler, limit, seconds to wait, ids of the tickets that it holds)
  lease: Callable[[str, int, float, set[str]], list[types.Ticket]]
  heartbeat: Callable[[str, dict[str, float], dict[str, int]], None]  # (.., stats, progress)
  decline: Callable[[str, dict[str, str]], None]  # (sampler, ticket -> why it can't be answered)
  # (groups of a message, decoded or an error; its bytes) -> future of a PushOutcome for each
  finish: Callable[[list[types.Group | bounds.WireError], bytes], concurrent.futures.Future]
  leave: Callable[[str], int]  # -> tickets returned
  run_finished: Callable[[], bool]
  newest_version: Callable[[], int]  # among those that can be pulled
  # (session and position in the metrics of a watcher, seconds to wait); None = nobody may watch
  watch: Callable[[str, int, float], types.RunUpdate] | None = None


class _WrongSession(Exception):
  pass


def _abort_session(context: grpc.ServicerContext, error: _WrongSession) -> NoReturn:
  reason = protocol.Reason.NEW_SESSION
  protocol.abort(context, grpc.StatusCode.ABORTED, str(error), reason)


def _decode(message: pb.Group, sampler_id: str) -> types.Group | bounds.WireError:
  try:
    return codec.decode_group(message, sampler_id)
  except bounds.WireError as error:
    return error


class _Servicer(rpc.LearnerServicer):
  """The calls of trajectory.proto, checked and handed to `Handlers`."""

  def __init__(
    self,
    identity: protocol.Identity,
    handlers: Handlers,
    store: weights.Store,
    log: interceptors.RefusalLog,
    *,
    max_message_mb: int,
  ):
    self._identity, self._handlers, self._store = identity, handlers, store
    self._log, self._max_bytes = log, max_message_mb << 20
    self._watchers = threading.Semaphore(MAX_WATCHERS)

  def _check(self, request) -> None:  # raises _WrongSession or WireError
    if request.session != self._identity.session:
      expected = f"{self._identity.session!r} (say Hello again)"
      raise _WrongSession(f"session: got {bounds.abbreviate(request.session)}, expected {expected}")
    bounds.check_request(request)

  def _check_or_abort(self, request, context, check: Callable) -> None:
    try:
      check(request)
    except _WrongSession as error:
      _abort_session(context, error)
    except bounds.WireError as error:
      self._warn(context.peer(), str(error))
      protocol.abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

  def _warn(self, peer: str, error: str, detail: str = "") -> None:
    field, _, rest = error.partition(": ")
    self._log.warn(peer, re.sub(r"\d+", "*", field), f"{detail}{rest}")

  def _check_protocol(self, request, context, who: str) -> None:
    if request.protocol != protocol.PROTOCOL:
      protocol.abort(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        f"protocol: the {who} speaks version {request.protocol}, this learner {protocol.PROTOCOL}; "
        "install the same release of offpolicy-rl on both",
      )

  def Hello(self, request, context):
    self._check_protocol(request, context, "sampler")
    self._check_or_abort(request, context, bounds.check_request)
    self._handlers.join(request.sampler_id)
    _LOG.info("sampler %s joined from %s", request.sampler_id, context.peer())
    return protocol.encode_identity(self._identity)

  def _progress(self) -> dict[str, Any]:
    h = self._handlers
    return {"run_finished": h.run_finished(), "newest_version": h.newest_version()}

  def Lease(self, request, context):
    self._check_or_abort(request, context, self._check)
    wait = min(request.wait_seconds, _MAX_LONG_POLL)
    holding = set(request.holding)
    tickets = self._handlers.lease(request.sampler_id, request.credits, wait, holding)
    reply = pb.LeaseReply(**self._progress())
    # Tickets that don't fit come with the next lease, because the sampler will not report them.
    reply.tickets.extend(codec.encode_tickets(tickets, self._max_bytes - reply.ByteSize() - 64))
    if tickets and not reply.tickets:  # too large for any sampler
      why = f"it does not fit into a message of {self._max_bytes} bytes"
      self._handlers.decline(request.sampler_id, {tickets[0].ticket_id: why})
    return reply

  def Heartbeat(self, request, context):
    self._check_or_abort(request, context, self._check)
    self._handlers.heartbeat(request.sampler_id, dict(request.stats), dict(request.progress))
    return pb.HeartbeatReply(**self._progress(), time=time.time())

  def Decline(self, request, context):
    self._check_or_abort(request, context, self._check)
    self._handlers.decline(request.sampler_id, dict(request.reasons))
    return pb.DeclineReply()

  def Leave(self, request, context):
    self._check_or_abort(request, context, self._check)
    returned = self._handlers.leave(request.sampler_id)
    _LOG.info("sampler %s left, %d tickets returned", request.sampler_id, returned)
    return pb.LeaveReply(returned=returned)

  def Push(self, request_iterator, context):
    """Reads and checks the next groups while earlier ones are written to disk."""
    pending: queue.Queue = queue.Queue(_MAX_UNACKNOWLEDGED)
    sent = (request_iterator, pending)
    reader = threading.Thread(target=self._read_groups, args=sent, daemon=True)
    reader.start()
    item = None
    try:
      while (item := pending.get()) is not None:
        yield self._acknowledge(*item, context)
    finally:
      while item is not None:  # left early: let the reader end
        item = pending.get()

  def _read_groups(self, requests, pending: queue.Queue) -> None:
    """Queues (sampler, ticket ids, future of their outcomes) of each message; None at the end."""
    try:
      for request, received in requests:
        ticket_ids = [group.ticket_id for group in request.groups]
        pending.put((request.sampler_id, ticket_ids, self._finish(request, received)))
    except Exception as error:  # the sampler is gone, or sent something unreadable
      _LOG.debug("push ended: %r", error)
    finally:
      pending.put(None)

  def _finish(self, request: pb.PushRequest, received: bytes) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    try:
      self._check(request)
      groups = [_decode(group, request.sampler_id) for group in request.groups]
      return self._handlers.finish(groups, received)
    except bounds.WireError as error:
      future.set_result([PushOutcome(PushStatus.REFUSED, str(error))] * len(request.groups))
    except Exception as error:  # raised again by `_acknowledge`, where it ends the call
      future.set_exception(error)
    return future

  def _acknowledge(
    self, sampler_id: str, ticket_ids: list[str], future: concurrent.futures.Future, context
  ) -> pb.PushReply:
    """Waits until groups are on disk or refused; a refused answer declines its ticket."""
    try:
      outcomes = future.result()
    except _WrongSession as error:
      _abort_session(context, error)
    except OSError as error:  # the sampler keeps the groups and tries again
      context.abort(grpc.StatusCode.UNAVAILABLE, f"the groups could not be kept: {error}")
    reply, refused = pb.PushReply(), {}
    for ticket_id, outcome in zip(ticket_ids, outcomes, strict=True):
      ack = codec.encode_ack(ticket_id[: bounds.MAX_TICKET_ID], outcome)
      reply.acks.append(ack)
      if outcome.status is PushStatus.REFUSED:
        self._warn(context.peer(), outcome.reason, f"ticket {bounds.abbreviate(ticket_id)}, ")
        refused[ack.ticket_id] = outcome.reason
    if refused:
      self._handlers.decline(sampler_id, refused)
    return reply

  def PullWeights(self, request, context):
    self._check_or_abort(request, context, self._check)
    if self._identity.weights_in_directory:
      protocol.abort(
        context,
        grpc.StatusCode.FAILED_PRECONDITION,
        "PullWeights: this learner writes its weights to a directory; give the sampler its path by "
        "--weights_dir",
      )
    chunks = cast(weights.WeightStore, self._store).answer(request)
    if chunks is None:
      versions = f"[{request.min_version}, {request.max_version}]"
      protocol.abort(
        context,
        grpc.StatusCode.NOT_FOUND,
        f"min_version, max_version: no version in {versions}, there are {self._store.versions()}",
        protocol.Reason.NO_VERSION,
      )
    yield from chunks

  def Watch(self, request, context):
    self._check_protocol(request, context, "watcher")
    self._check_or_abort(request, context, bounds.check_watch)
    if self._handlers.watch is None:
      protocol.abort(context, grpc.StatusCode.UNIMPLEMENTED, "Watch: this learner can't be watched")
    if not self._watchers.acquire(blocking=False):
      text = f"Watch: {MAX_WATCHERS} watchers look at this run already"
      context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
    try:
      wait = min(request.wait_seconds, _MAX_LONG_POLL)
      return watching.encode_update(self._handlers.watch(request.session, request.position, wait))
    finally:
      self._watchers.release()


class Server:
  """The running server."""

  def __init__(
    self, server: grpc.Server, status: health.HealthServicer, limit: connections.AddressLimit
  ):
    self._server, self._status, self._address_limit = server, status, limit

  def say_not_serving(self) -> None:
    """Answers health checks with NOT_SERVING from now on; other calls still work."""
    self._status.enter_graceful_shutdown()

  def stop(self, grace: float) -> threading.Event:
    """Refuses new calls and ends the open ones after `grace` seconds; the event is set then."""
    self.say_not_serving()
    self._address_limit.stop()
    return self._server.stop(grace)


def _handlers_of_large_messages(servicer: _Servicer) -> dict[str, grpc.RpcMethodHandler]:
  """Handlers that, unlike the generated ones, never serialize or parse a large message twice."""
  return {
    "PullWeights": grpc.unary_stream_rpc_method_handler(
      servicer.PullWeights, pb.WeightsRequest.FromString, response_serializer=None
    ),
    "Push": grpc.stream_stream_rpc_method_handler(
      servicer.Push,
      lambda data: (pb.PushRequest.FromString(data), data),
      pb.PushReply.SerializeToString,
    ),
  }


def _check_size(identity: protocol.Identity, max_message_mb: int) -> None:
  size = protocol.encode_identity(identity).ByteSize() + 64  # with its checksum
  if size > max_message_mb << 20:
    raise bounds.WireError(
      f"transport.max_message_mb: got {max_message_mb}, expected at least {(size >> 20) + 1}: the "
      "configuration and the files of the model that each sampler is sent"
    )


def start(
  listen: str,
  identity: protocol.Identity,
  handlers: Handlers,
  store: weights.Store,
  *,
  max_samplers: int,
  max_message_mb: int,
  credentials: security.Credentials = security.NONE,
  reflection: bool = False,
) -> tuple[Server, str]:
  """Serves in background threads; returns the server and its address, HOST:PORT.

  Raises:
    RuntimeError: the address is taken.
    bounds.WireError: the first reply to a sampler is larger than a message may be.
    security.CredentialsError: a file of `credentials` can't be read.
  """
  _check_size(identity, max_message_mb)
  # One long poll, one push and one weight pull or heartbeat per sampler at a time, two probes, and
  # the watchers. Further calls are refused (RESOURCE_EXHAUSTED): a queue would have no bound.
  calls = 3 * max_samplers + 2 + MAX_WATCHERS
  # All may be on one machine, and a broken connection counts until it is noticed.
  per_address = 2 * max_samplers + 2 * MAX_WATCHERS
  options = [
    ("grpc.max_receive_message_length", max_message_mb << 20),
    ("grpc.max_send_message_length", -1),  # `Hello` and `Lease` keep to the same limit
    # gRPC's limit of pings would hit samplers whose connection hung for a moment.
    ("grpc.http2.max_ping_strikes", 0),
    *connections.server_options(connections.max_connections(per_address)),
  ]
  log = interceptors.RefusalLog()
  auth = interceptors.AuthInterceptor(security.read_token(credentials), log)
  server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(calls, thread_name_prefix="rpc"),
    options=options,
    interceptors=[auth, checksum.Interceptor()],
    maximum_concurrent_rpcs=calls,
  )
  servicer = _Servicer(identity, handlers, store, log, max_message_mb=max_message_mb)
  rpc.add_LearnerServicer_to_server(servicer, server)
  server.add_registered_method_handlers(protocol.SERVICE, _handlers_of_large_messages(servicer))
  status = interceptors.add_standard_services(server, protocol.SERVICE, with_reflection=reflection)
  port = security.add_port(server, listen, credentials)
  server.start()
  limit = connections.AddressLimit(port, per_address)
  return Server(server, status, limit), f"{listen.rpartition(':')[0]}:{port}"
