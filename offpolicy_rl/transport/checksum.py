"""A checksum on every message, so that bytes changed on the way are noticed and asked for again.

TCP's checksum has 16 bits and ends at the first proxy, and TLS is not always on. The CRC-32 of a
message follows it as protobuf field 15, so the sealed bytes are still a message of the same type:
parsing skips the unknown field.

Chunks of weights are the exception: SHA-256 digests guard them, and a second checksum would cost
the learner half as much again as sending them.
"""

import zlib
from collections.abc import Callable

import grpc

_TAG = b"\x7d"  # field 15, wire type fixed32
_CHUNK_DATA = b"\x12"  # what a WeightsChunk with `data` begins with: field 2, length-delimited
_SERVICE = "/offpolicy_rl.Learner/"


class SealError(ValueError):
  """The bytes are not those that were sent."""


def seal(data: bytes) -> bytes:
  """A serialized message with its checksum."""
  return data + _TAG + zlib.crc32(data).to_bytes(4, "little")


def checked(data: bytes) -> bytes:
  """The same sealed bytes; SealError when their checksum is missing or wrong."""
  found = zlib.crc32(memoryview(data)[:-5]).to_bytes(4, "little")
  if data[-5:-4] != _TAG or data[-4:] != found:
    raise SealError("a message was damaged on the way: its checksum is missing or wrong")
  return data


def checked_chunk(data: bytes) -> bytes:
  """The same for a serialized WeightsChunk, of which only headers are sealed."""
  return data if data[:1] == _CHUNK_DATA else checked(data)


def _sealing(serialize: Callable) -> Callable:
  return lambda message: seal(serialize(message))


def _checking(parse: Callable, checked: Callable = checked) -> Callable:
  return lambda data: parse(checked(data))


class SealedChannel:
  """A channel as the generated stub uses it, whose messages are sealed."""

  def __init__(self, channel: grpc.Channel):
    self._channel = channel

  def unary_unary(self, *args, **kwargs):
    """As grpc.Channel's."""
    return self._sealed(self._channel.unary_unary, args, kwargs)

  def unary_stream(self, *args, **kwargs):
    """As grpc.Channel's; only PullWeights is of this kind."""
    return self._sealed(self._channel.unary_stream, args, kwargs, checked_chunk)

  def stream_stream(self, *args, **kwargs):
    """As grpc.Channel's."""
    return self._sealed(self._channel.stream_stream, args, kwargs)

  def _sealed(self, make: Callable, args, kwargs, checked: Callable = checked):
    kwargs["request_serializer"] = _sealing(kwargs["request_serializer"])
    kwargs["response_deserializer"] = _checking(kwargs["response_deserializer"], checked)
    return make(*args, **kwargs)


class SealedServer(grpc.ServerInterceptor):
  """Checks the learner's requests and seals its replies; leaves health checks alone."""

  def intercept_service(self, continuation, details):
    """As grpc.ServerInterceptor's."""
    handler = continuation(details)
    if handler is None or not details.method.startswith(_SERVICE):
      return handler
    return handler._replace(
      request_deserializer=_checking(handler.request_deserializer),
      # None: PullWeights serializes and seals by itself.
      response_serializer=handler.response_serializer and _sealing(handler.response_serializer),
    )
