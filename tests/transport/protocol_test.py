"""What a learner itself declares final ends a call; whatever else fails is tried again."""

import concurrent.futures
import contextlib
import socket
import threading

import grpc
import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import checksum, client, protocol, receiver, server
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from tests.transport.learners import Learner, answer, connect, ticket

CODES = [code for code in grpc.StatusCode if code != grpc.StatusCode.OK]
TEXTS = [
  "Received message larger than max (5 vs. 4)",
  "Frame size 13369344 is larger than max frame size",
  "authorization: missing, expected the learner's token",
  "say Hello again",
  "",
]


class Failing(rpc.LearnerServicer):
  """Ends the first calls in its own way, then answers."""

  def __init__(self, *failures):
    self.failures = list(failures)

  def Hello(self, request, context):
    if self.failures:
      self.failures.pop(0)(context)
    return pb.HelloReply(session="one")


@contextlib.contextmanager
def serving(servicer):
  """Its address."""
  pool = concurrent.futures.ThreadPoolExecutor(4)
  running = grpc.server(pool, interceptors=[checksum.Interceptor()])
  rpc.add_LearnerServicer_to_server(servicer, running)
  address = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
  running.start()
  yield address
  running.stop(0).wait()


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_whatever_no_learner_declared_final_is_tried_again(code):
  """By its words it could be anything; they prove nothing."""
  failures = [lambda context, text=text: context.abort(code, text) for text in TEXTS[:2]]
  servicer = Failing(*failures)
  with serving(servicer) as address:
    assert connect(address).session == "one"
  assert not servicer.failures


def test_the_last_failure_is_told_when_patience_ends():
  failure = lambda context: context.abort(grpc.StatusCode.INTERNAL, TEXTS[1])
  with (
    serving(Failing(*[failure] * 99)) as address,
    pytest.raises(client.LearnerGone, match="for 0 s: INTERNAL Frame size 13369344 is larger"),
  ):
    connect(address, patience=0.3)


def refusing(context):
  protocol.abort(context, grpc.StatusCode.UNAUTHENTICATED, "authorization: got another token")


def test_one_refusal_may_be_a_damaged_token_two_are_not():
  with serving(Failing(refusing)) as address:
    assert connect(address).session == "one"
  with serving(Failing(refusing, refusing)) as address, pytest.raises(client.Refused):
    connect(address)


def test_a_reason_survives_words_without_end(learner):
  """gRPC loses the status of a call whose metadata is too long."""
  learner.store._versions |= dict.fromkeys(range(10_000, 90_000), learner.store._versions[0])
  wire = connect(learner.address)
  with pytest.raises(client.VersionGone, match=r"no version in \[3, 4\]"):
    wire.pull_weights(3, 4, receiver.Receiver({}))


def test_reasons_are_the_learners_own():
  """An error whose metadata says something else has none."""

  class Error(grpc.RpcError):
    def __init__(self, *entries):
      self.trailing_metadata = lambda: entries

  key = "offpolicy-rl-reason"
  assert protocol.reason_of(Error()) is None
  assert protocol.reason_of(Error(("other", "refused"))) is None
  assert protocol.reason_of(Error((key, "no such reason"))) is None
  assert protocol.reason_of(Error((key, "refused"), (key, "new-session"))) is None
  for reason in protocol.Reason:
    assert protocol.reason_of(Error(("a", "b"), (key, reason.value))) is reason


class Wire(threading.Thread):
  """A TCP proxy that changes bytes from the learner to a sampler, in frames of a kind."""

  def __init__(self, address: str):
    super().__init__(daemon=True)
    self._theirs = address.rsplit(":", 1)
    self._server = socket.create_server(("127.0.0.1", 0))
    self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
    self.damage = None  # (a frame's first 9 bytes) -> others, once
    self.start()

  def run(self):
    while True:
      try:
        ours, _ = self._server.accept()
      except OSError:
        return
      theirs = socket.create_connection((self._theirs[0], int(self._theirs[1])))
      threading.Thread(target=self._up, args=(ours, theirs), daemon=True).start()
      threading.Thread(target=self._down, args=(theirs, ours), daemon=True).start()

  def _up(self, source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        sink.sendall(data)

  def _down(self, source, sink):
    with contextlib.suppress(OSError), source.makefile("rb") as frames:
      while len(head := frames.read(9)) == 9:
        body = frames.read(int.from_bytes(head[:3], "big"))
        if self.damage and (changed := self.damage(head)) != head:
          head, self.damage = changed, None
        sink.sendall(head + body)
    for end in (source, sink):
      end.close()

  def close(self):
    self._server.close()


DATA, HEADERS = 0, 1
DAMAGES = {
  "length": lambda head: b"\xcc" + head[1:] if head[3] == DATA else head,
  "length of headers": lambda head: b"\xcc" + head[1:] if head[3] == HEADERS else head,
  "kind": lambda head: head[:3] + b"\x05" + head[4:] if head[3] == DATA else head,
  "stream": lambda head: head[:5] + b"\x7f" + head[6:] if head[3] == HEADERS else head,
  "flags": lambda head: head[:4] + b"\xff" + head[5:] if head[3] == HEADERS else head,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_frame_ends_a_connection_and_no_sampler(learner, kind):
  between = Wire(learner.address)
  wire = connect(between.address, patience=20)
  learner.book.add([ticket("a"), ticket("b")])
  between.damage = DAMAGES[kind]
  leased = wire.lease(1)
  assert between.damage is None and len(leased) == 1
  between.damage = DAMAGES[kind]
  [ack] = wire.push([answer(leased[0].ticket_id)])
  assert between.damage is None
  assert ack.status in (types.PushStatus.ACCEPTED, types.PushStatus.DUPLICATE)
  wire.close()
  between.close()


def test_final_reasons_arrive_from_every_door(tmp_path):
  """Token, protocol, session, request, versions: each says what the caller can do."""
  (tmp_path / "token").write_text("secret-0123456789abcdef")
  learner = Learner(credentials=server.security.Credentials(token_file=str(tmp_path / "token")))
  channel = grpc.insecure_channel(learner.address)
  stub = rpc.LearnerStub(checksum.Channel(channel))
  who = {"session": "one", "sampler_id": "me"}
  known = (("authorization", "Bearer secret-0123456789abcdef"),)
  hello = pb.HelloRequest(protocol=protocol.PROTOCOL, sampler_id="me")
  asked = {
    "token": (lambda: stub.Hello(hello), protocol.Reason.REFUSED),
    "protocol": (
      lambda: stub.Hello(pb.HelloRequest(protocol=99, sampler_id="me"), metadata=known),
      protocol.Reason.REFUSED,
    ),
    "session": (
      lambda: stub.Heartbeat(pb.HeartbeatRequest(session="two", sampler_id="me"), metadata=known),
      protocol.Reason.NEW_SESSION,
    ),
    "request": (
      lambda: stub.Lease(pb.LeaseRequest(**who), metadata=known),
      protocol.Reason.REFUSED,
    ),
    "push": (
      lambda: list(stub.Push(iter([pb.PushRequest(session="two")]), metadata=known)),
      protocol.Reason.NEW_SESSION,
    ),
    "versions": (
      lambda: list(
        stub.PullWeights(pb.WeightsRequest(**who, min_version=3, max_version=3), metadata=known)
      ),
      protocol.Reason.NO_VERSION,
    ),
    "watch": (
      lambda: stub.Watch(pb.WatchRequest(protocol=protocol.PROTOCOL), metadata=known),
      protocol.Reason.REFUSED,
    ),
    "method": (
      lambda: channel.unary_unary("/offpolicy_rl.Learner/None")(b"", metadata=known),
      None,
    ),
  }
  for name, (call, expected) in asked.items():
    with pytest.raises(grpc.RpcError) as error:
      call()
    assert protocol.reason_of(error.value) is expected, name
  learner.stop()
