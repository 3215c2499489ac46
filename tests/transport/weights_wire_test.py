"""Weights over real gRPC, with a learner whose streams break or arrive damaged."""

import logging
import threading

import numpy as np
import pytest

from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.transport import checksum, client, codec, protocol, receiver, server, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from tests.transport import learners
from tests.transport.weights_test import LAYOUT, TOTAL, assert_same_bits, history, small_chunks

assert small_chunks  # the fixture holds here, too


class Unreliable:
  """A store whose streams a test may change; counts what leaves it."""

  def __init__(self, store: weights.WeightStore):
    self.store, self.sent, self.requests = store, 0, []
    self.change = lambda chunks, number: chunks  # (chunks, number of the stream) -> chunks

  def answer(self, request):
    self.requests.append(request)
    return self._count(self.change(self.store.answer(request), len(self.requests)))

  def _count(self, chunks):
    for chunk in chunks:
      self.sent += len(pb.WeightsChunk.FromString(chunk).data)
      yield chunk

  def versions(self):
    return self.store.versions()


def serve(store, **identity):
  asked = learners.handlers(Ledger(lease_seconds=5))
  who = protocol.Identity("one", "run", "{}", "print", **identity)
  return server.start("127.0.0.1:0", who, asked, store, max_samplers=4, max_message_mb=4)


@pytest.fixture
def learner():
  """(what it sends, the versions it has, a client)."""
  store, versions = history(5)
  unreliable = Unreliable(store)
  running, address = serve(unreliable)
  wire = client.LearnerClient(address, "me", reconnect_seconds=20)
  wire.hello()
  yield unreliable, versions, wire
  wire.close()
  running.stop(0).wait()


def cut(chunks, count: int):
  """A stream that the learner's side breaks off."""
  for number, chunk in enumerate(chunks):
    if number == count:
      raise ConnectionResetError("cut by the test")
    yield chunk


def flipped(chunks):
  """One bit of the first data chunk."""
  for number, chunk in enumerate(chunks):
    yield chunk[:-1] + bytes([chunk[-1] ^ 4]) if number == 1 else chunk


def test_deltas_equal_full_transfers_bit_for_bit(learner):
  unreliable, versions, wire = learner
  held = receiver.Receiver(LAYOUT)
  for version in range(5):
    before = unreliable.sent
    assert_same_bits(wire.pull_weights(version, version, held)[1], versions[version])
    fresh = receiver.Receiver(LAYOUT)
    by_delta = unreliable.sent - before
    assert_same_bits(wire.pull_weights(version, version, fresh)[1], versions[version])
    assert (by_delta == TOTAL) if version == 0 else (by_delta < TOTAL / 8)
  assert wire.pull_weights(0, 99, held) == (4, None)


@pytest.mark.parametrize("seed", range(4))
def test_streams_that_break_at_random_places_are_resumed(learner, seed, caplog):
  unreliable, versions, wire = learner
  caplog.set_level(logging.CRITICAL, "grpc")  # it reports our exceptions at length
  rng = np.random.default_rng(seed)
  places = {number: int(rng.integers(0, 12)) for number in (1, 2, 3)}
  unreliable.change = lambda chunks, number: (
    cut(chunks, places[number]) if number in places else chunks
  )
  held = receiver.Receiver(LAYOUT)
  version, found = wire.pull_weights(0, 3, held)
  assert version == 3
  assert_same_bits(found, versions[3])
  assert held.received_bytes == TOTAL  # nothing was received twice
  offsets = [request.resume.offset for request in unreliable.requests]
  assert offsets == sorted(offsets) and offsets[0] == 0 and len(offsets) == 4
  assert unreliable.sent <= TOTAL + 3 * weights.CHUNK_BYTES  # what was in flight at a cut


def test_progress_renews_patience(learner, caplog):
  unreliable, versions, wire = learner
  caplog.set_level(logging.CRITICAL, "grpc")
  wire.configure(0.15, 4)  # shorter than the pauses of all retries together
  unreliable.change = lambda chunks, number: cut(chunks, 4)
  held = receiver.Receiver(LAYOUT)
  assert_same_bits(wire.pull_weights(4, 4, held)[1], versions[4])
  assert held.received_bytes == TOTAL and len(unreliable.requests) > 5
  unreliable.change = lambda chunks, number: cut(chunks, 0)
  with pytest.raises(client.LearnerGone):
    wire.pull_weights(3, 3, held)


def test_damage_is_mended_by_a_full_transfer(learner):
  unreliable, versions, wire = learner
  held = receiver.Receiver(LAYOUT)
  wire.pull_weights(1, 1, held)
  unreliable.change = lambda chunks, number: flipped(chunks) if number == 2 else chunks
  before = unreliable.sent
  version, found = wire.pull_weights(2, 2, held)
  assert version == 2
  assert_same_bits(found, versions[2])
  assert unreliable.requests[1].held_version == 1 and unreliable.requests[2].held_sha256 == b""
  assert unreliable.sent - before > TOTAL
  before = unreliable.sent
  assert_same_bits(wire.pull_weights(3, 3, held)[1], versions[3])
  assert unreliable.sent - before < TOTAL / 8  # and deltas go on from there


def test_damage_three_times_is_an_error(learner):
  unreliable, versions, wire = learner
  held = receiver.Receiver(LAYOUT)
  wire.pull_weights(1, 1, held)
  unreliable.change = lambda chunks, number: flipped(chunks)
  with pytest.raises(codec.WireError, match=r"weights.tensors\[a/kernel\].sha256: version 2 was"):
    wire.pull_weights(2, 2, held)
  assert len(unreliable.requests) == 1 + 3
  unreliable.change = lambda chunks, number: chunks
  assert_same_bits(wire.pull_weights(2, 2, held)[1], versions[2])


def test_a_damaged_header_is_asked_for_again(learner):
  unreliable, versions, wire = learner

  def damaged(chunks):
    header = bytearray(next(chunks))
    header[40] ^= 1
    yield bytes(header)
    yield from chunks

  unreliable.change = lambda chunks, number: damaged(chunks) if number == 1 else chunks
  unreliable._count = lambda chunks: chunks
  assert_same_bits(wire.pull_weights(4, 4, receiver.Receiver(LAYOUT))[1], versions[4])
  assert len(unreliable.requests) == 2


def test_weights_of_another_model_are_refused_at_once(learner):
  unreliable, _, wire = learner
  other = receiver.Receiver({**LAYOUT, "b": ((71,), LAYOUT["b"][1])})
  with pytest.raises(codec.WireError, match=r"weights.tensors: got \['b \(\(70,\)"):
    wire.pull_weights(0, 0, other)
  assert len(unreliable.requests) == 1


def test_four_samplers_that_pull_at_once_all_get_everything(learner):
  _, versions, wire = learner
  receivers, found = [receiver.Receiver(LAYOUT) for _ in range(4)], {}

  def work(i: int) -> None:
    for low in (0, 1, 3, 4):
      found[i, low] = {k: x.copy() for k, x in wire.pull_weights(low, low, receivers[i])[1].items()}

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert len(found) == 16
  for (_, version), tensors in found.items():
    assert_same_bits(tensors, versions[version])


def test_the_bytes_on_the_wire_are_messages_of_the_proto(learner):
  """The server writes them itself; whoever has only the .proto must be able to read them."""
  _, versions, wire = learner
  stub = rpc.LearnerStub(checksum.Channel(wire._channel))
  request = pb.WeightsRequest(
    session="one", sampler_id="me", min_version=4, max_version=4, held_version=-2
  )
  chunks = list(stub.PullWeights(request))
  assert chunks[0].header.version == 4 and chunks[0].header.total_bytes == TOTAL
  assert b"".join(c.data for c in chunks[1:]) == b"".join(x.tobytes() for x in versions[4].values())


def test_a_learner_that_writes_a_directory_does_not_stream():
  running, address = serve(history(2)[0], weights_in_directory=True)
  wire = client.LearnerClient(address, "me")
  assert wire.hello().weights_in_directory
  with pytest.raises(client.Refused, match="writes its weights to a directory"):
    wire.pull_weights(0, 1, receiver.Receiver(LAYOUT))
  wire.close()
  running.stop(0).wait()
