"""Checks the token of a call and parses its requests before the learner sees them."""

import collections
import hmac
import logging
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import message as message_lib
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from offpolicy_rl.transport import bounds, checksum, protocol

_LOG = logging.getLogger(__name__)
_MAX_REMEMBERED = 1024  # pairs of peer and reason
# Probes have no token. Only Check: Watch would let a stranger occupy a thread for ever.
_OPEN_METHODS = {f"/{health.SERVICE_NAME}/Check"}


class RefusalLog:
  """Warns once per peer and reason. Thread-safe; remembers the last `_MAX_REMEMBERED` pairs."""

  def __init__(self):
    self._lock = threading.Lock()
    self._seen: collections.OrderedDict[tuple[str, str], None] = collections.OrderedDict()

  def warn(self, peer: str, reason: str, detail: str = "") -> None:
    """`peer` as gRPC writes it; warnings of one `reason` are the same, whatever their `detail`."""
    host = bounds.abbreviate(urllib.parse.unquote(peer.rpartition(":")[0])) if peer else "a peer"
    with self._lock:
      if (host, reason) in self._seen:
        return
      self._seen[host, reason] = None
      if len(self._seen) > _MAX_REMEMBERED:
        self._seen.popitem(last=False)
    _LOG.warning("refused %s: %s%s (said once)", host, reason, f": {detail}" if detail else "")


class AuthInterceptor(grpc.ServerInterceptor):
  """Checks the token of every call, and parses requests without a traceback in the log."""

  def __init__(self, token: str | None, log: RefusalLog):
    """`token`: None = no token is needed."""
    self._expected = None if token is None else f"Bearer {token}".encode()
    self._log = log

  def intercept_service(
    self,
    continuation: Callable[[grpc.HandlerCallDetails], Any],
    handler_call_details: grpc.HandlerCallDetails,
  ) -> Any:
    """Implements grpc.ServerInterceptor."""
    call = handler_call_details
    reason = self._problem(call.method, call.invocation_metadata)
    if reason:
      return self._refusal(reason)
    handler = continuation(call)
    return handler and self._parsing(call.method, handler)

  def _problem(self, method: str, metadata) -> str | None:
    if self._expected is None or method in _OPEN_METHODS:
      return None
    tokens = [value for key, value in metadata if key == "authorization"]
    if not tokens:
      return "authorization: missing, expected the learner's token; give the sampler --token_file"
    given = tokens[0].encode() if isinstance(tokens[0], str) else tokens[0]
    if len(tokens) > 1 or not hmac.compare_digest(given, self._expected):
      return "authorization: got another token than the learner's; compare the two --token_file"
    return None

  def _refusal(self, reason: str) -> grpc.RpcMethodHandler:
    def refuse(_, context):
      self._log.warn(context.peer(), reason)
      protocol.abort(context, grpc.StatusCode.UNAUTHENTICATED, reason)

    # Ends any kind of call without reading a message.
    return grpc.stream_unary_rpc_method_handler(refuse)

  def _parsing(self, method: str, handler: Any) -> Any:
    """The same handler; a message that can't be parsed ends the call with a clear error.

    gRPC would log a traceback per message, and a stream that begins with one would keep the server
    from ever stopping (grpcio 1.85).
    """
    kinds = ("unary", "stream")
    name = f"{kinds[handler.request_streaming]}_{kinds[handler.response_streaming]}"
    behave, parse = getattr(handler, name), handler.request_deserializer
    if hasattr(behave, "experimental_non_blocking"):  # health.Watch: gRPC calls it differently
      return handler

    def read(data: bytes, context):
      try:
        return parse(data)
      except checksum.ChecksumError as error:  # the sender tries again
        self._log.warn(context.peer(), str(error))
        context.abort(grpc.StatusCode.INTERNAL, str(error))
      except message_lib.DecodeError:
        reason = f"{method}: got bytes that cannot be parsed, expected its request message"
        self._log.warn(context.peer(), reason)
        protocol.abort(context, grpc.StatusCode.INVALID_ARGUMENT, reason)

    def read_and_behave(sent, context):
      if handler.request_streaming:
        return behave((read(data, context) for data in sent), context)
      return behave(read(sent, context), context)

    return handler._replace(request_deserializer=None, **{name: read_and_behave})


def add_standard_services(
  server: grpc.Server, service: str, *, with_reflection: bool
) -> health.HealthServicer:
  """Adds health checking and, for tools such as grpcurl, a description of the services."""
  status = health.HealthServicer()
  health_pb2_grpc.add_HealthServicer_to_server(status, server)
  for name in ("", service):
    status.set(name, health_pb2.HealthCheckResponse.SERVING)
  if with_reflection:
    names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
  return status
