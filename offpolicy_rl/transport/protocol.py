"""The protocol of both ends: version, first reply, keep-alive, reasons for the end of a call."""

import dataclasses
import enum
from typing import NoReturn, cast

import grpc

from offpolicy_rl import types
from offpolicy_rl.transport import trajectory_pb2 as pb

PROTOCOL = 5  # raise it with every incompatible change of trajectory.proto
SERVICE = pb.DESCRIPTOR.services_by_name["Learner"].full_name
# Both ends ping: a peer whose machine or network is gone is noticed after 40 s.
KEEPALIVE = [
  ("grpc.keepalive_time_ms", 30_000),
  ("grpc.keepalive_timeout_ms", 10_000),
  ("grpc.keepalive_permit_without_calls", 1),
  ("grpc.http2.max_pings_without_data", 0),
]
_REASON_KEY = "offpolicy-rl-reason"
_MAX_TEXT = 512  # characters: gRPC loses the status of a call whose metadata has over 8 KB


@dataclasses.dataclass(frozen=True)
class Identity:
  """The first reply to a sampler."""

  session: str  # one per learner start
  run_id: str
  config_json: str
  vocabulary_fingerprint: str
  weights_in_directory: bool = False  # else they are streamed
  model_files: types.ModelFiles | None = None  # of a published model


def encode_identity(identity: Identity) -> pb.HelloReply:
  """Identity -> message."""
  fields = {f.name: getattr(identity, f.name) for f in dataclasses.fields(identity)}
  files = fields.pop("model_files")
  return pb.HelloReply(**fields, model_files=files and pb.ModelFiles(**files._asdict()))


def decode_identity(reply: pb.HelloReply) -> Identity:
  """Inverse of `encode_identity`."""
  fields = {f.name: getattr(reply, f.name) for f in dataclasses.fields(Identity)}
  files = fields.pop("model_files")
  texts = types.ModelFiles(*(getattr(files, name) for name in types.ModelFiles._fields))
  return Identity(**fields, model_files=texts if reply.HasField("model_files") else None)


class Reason(enum.StrEnum):
  """The learner's reason for ending a call, sent in the trailing metadata.

  Most status codes and texts of a failed call may come from gRPC itself, from a proxy, or from a
  damaged byte. Only a learner sends a reason: a call that failed without one may succeed later.
  """

  REFUSED = "refused"  # the same call will be refused again
  NEW_SESSION = "new-session"  # the learner was restarted: say Hello
  NO_VERSION = "no-version"  # there are no such weights any more: do without


def abort(
  context: grpc.ServicerContext, code: grpc.StatusCode, text: str, reason: Reason = Reason.REFUSED
) -> NoReturn:
  """Ends a call for a reason; `context.abort` is for calls that may succeed later."""
  context.set_trailing_metadata(((_REASON_KEY, reason.value),))
  context.abort(code, text[:_MAX_TEXT])
  raise AssertionError  # `abort` has raised; the stubs of grpcio do not know it


def as_call(error: grpc.RpcError) -> grpc.Call:
  """The call that failed: gRPC raises an error that is the call, too."""
  return cast(grpc.Call, error)


def reason_of(error: grpc.RpcError) -> Reason | None:
  """The reason that a learner gave for ending this call, if it gave exactly one."""
  metadata = as_call(error).trailing_metadata() or ()
  given = [value for key, value in metadata if key == _REASON_KEY]
  return next((reason for reason in Reason if given == [reason.value]), None)
