"""A checksum on every message: damaged ones are noticed and requested again.

TCP's checksum has 16 bits and ends at the first proxy, and TLS is not always on. The CRC-32 of a
message follows it as protobuf field 15, which parsing skips, so the bytes are still a message of
the same type.

Chunks of weights are the exception: SHA-256 digests protect them, and a second checksum would add
half to the learner's cost of sending them.
"""

import zlib
from collections.abc import Callable
from typing import Any

import grpc

from offpolicy_rl.transport.protocol import SERVICE

_TAG = b"\x7d"  # field 15, wire type fixed32
_CHUNK_DATA = b"\x12"  # what a WeightsChunk with `data` begins with: field 2, length-delimited


class ChecksumError(ValueError):
  """The received bytes are not those that were sent."""


def add(data: bytes) -> bytes:
  """A serialized message with its checksum."""
  return data + _TAG + zlib.crc32(data).to_bytes(4, "little")


def verify(data: bytes) -> bytes:
  """The same bytes; ChecksumError if their checksum is missing or wrong."""
  expected = zlib.crc32(memoryview(data)[:-5]).to_bytes(4, "little")
  if data[-5:-4] != _TAG or data[-4:] != expected:
    raise ChecksumError("a message was damaged on the way: its checksum is missing or wrong")
  return data


def verify_chunk(data: bytes) -> bytes:
  """`verify` for a serialized WeightsChunk; only headers have a checksum."""
  return data if data[:1] == _CHUNK_DATA else verify(data)


class Channel:
  """A channel for the generated stub that adds and verifies checksums."""

  def __init__(self, channel: grpc.Channel):
    self.unary_unary = _with_checksums(channel.unary_unary, verify)
    self.unary_stream = _with_checksums(channel.unary_stream, verify_chunk)  # PullWeights
    self.stream_stream = _with_checksums(channel.stream_stream, verify)


def _with_checksums(connect: Callable, verify: Callable[[bytes], bytes]) -> Callable:
  def method(path, *, request_serializer, response_deserializer, **options):
    return connect(
      path,
      request_serializer=lambda message: add(request_serializer(message)),
      response_deserializer=lambda data: response_deserializer(verify(data)),
      **options,
    )

  return method


class Interceptor(grpc.ServerInterceptor):
  """Verifies the learner's requests and adds checksums to its replies, but not to health checks."""

  def intercept_service(
    self,
    continuation: Callable[[grpc.HandlerCallDetails], Any],
    handler_call_details: grpc.HandlerCallDetails,
  ) -> Any:
    """Implements grpc.ServerInterceptor."""
    handler = continuation(handler_call_details)
    if handler is None or not handler_call_details.method.startswith(f"/{SERVICE}/"):
      return handler
    parse, serialize = handler.request_deserializer, handler.response_serializer
    return handler._replace(
      request_deserializer=lambda data: parse(verify(data)),
      # None: PullWeights serializes by itself, with checksums.
      response_serializer=serialize and (lambda message: add(serialize(message))),
    )
