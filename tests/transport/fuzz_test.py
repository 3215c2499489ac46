"""Nonsense in: a clear refusal out, nothing breaks or grows. benchmarks/fuzz.py runs longer."""

import logging
import random
import socket
import threading

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl.transport import codec, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.transport import fuzzing

MESSAGES = settings(max_examples=300, deadline=None)
RANDOMS = st.randoms(use_true_random=False)


def good_chunks() -> list[pb.WeightsChunk]:
  store = weights.WeightStore()
  store.put(3, {"a/b": fuzzing.np.ones((2, 3), fuzzing.np.float32)})
  return list(store.stream(3))


def survives(decode, message: type, data: bytes) -> None:
  """Only the two refusals may come out of it."""
  try:
    decode(message.FromString(data))
  except (DecodeError, codec.WireError) as error:
    assert len(str(error)) < 1000


@MESSAGES
@given(RANDOMS)
def test_groups_are_decoded_or_refused(rng):
  good = fuzzing.good_requests(["train/0", "train/1"])["Push"]
  check = lambda group: codec.check_group(
    group, fuzzing.ticket("train/0"), vocab_size=fuzzing.VOCAB, max_tokens=fuzzing.MAX_TOKENS
  )
  accepted = []
  decode = lambda message: (
    group := codec.decode_group(message),
    check(group),
    accepted.append(group),
  )
  survives(decode, pb.Group, fuzzing.request(rng, good))
  assert all(map(fuzzing.is_good, accepted))


@MESSAGES
@given(RANDOMS)
def test_tickets_are_decoded_or_refused(rng):
  good = [codec.encode_ticket(fuzzing.ticket("train/0"))]
  survives(codec.decode_ticket, pb.Ticket, fuzzing.request(rng, good))


@MESSAGES
@given(RANDOMS)
def test_weights_are_received_or_refused(rng):
  chunks = good_chunks()
  at = rng.randrange(len(chunks))
  decode = lambda chunk: weights.receive([*chunks[:at], chunk, *chunks[at + 1 :]], max_bytes=10**4)
  survives(decode, pb.WeightsChunk, fuzzing.request(rng, [chunks[at]]))


@MESSAGES
@given(RANDOMS)
def test_headers_that_describe_impossible_tensors_are_refused(rng):
  """The digest of random bytes is right here, so that the shapes themselves are tried."""
  data = bytes(24)
  header = fuzzing.random_message(rng, pb.WeightsHeader)
  header.already_held, header.total_bytes = False, len(data)
  header.sha256 = weights.hashlib.sha256(data).digest()
  decode = lambda first: weights.receive([first, pb.WeightsChunk(data=data)], max_bytes=10**4)
  survives(decode, pb.WeightsChunk, pb.WeightsChunk(header=header).SerializeToString())


@pytest.mark.parametrize(
  "shape", [[1] * 100 + [24], [0, 2**32 - 1, 2**32 - 1, 2**32 - 1], [2**32 - 1] * 8]
)
def test_shapes_that_numpy_cannot_hold_are_refused_by_name(shape):
  info = pb.TensorInfo(name="evil\n" * 100, dtype=pb.DTYPE_INT32, shape=shape)
  with pytest.raises(codec.WireError, match=r"weights.tensors\['evil") as error:
    weights._split(bytearray(96), [info])
  assert len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def target():
  target = fuzzing.Target()
  yield target
  assert target.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_bombarded_server_stays_well(target, seed, caplog):
  caplog.set_level(logging.WARNING)
  assert target.works(f"before/{seed}")
  fuzzing.bombard(target, random.Random(1000 + seed), 50)  # threads and caches are there now
  threads, memory = threading.active_count(), fuzzing.resident_mb()
  outcomes = fuzzing.bombard(target, random.Random(seed), 250)
  assert target.works(f"after/{seed}")
  assert target.bad_groups == 0
  assert not set(outcomes) & {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, outcomes
  assert {"INVALID_ARGUMENT", "ABORTED", "group refused", "OK"} <= set(outcomes)
  assert threading.active_count() <= threads + fuzzing.PLACES
  assert fuzzing.resident_mb() < memory + 30
  audit = target.book.audit()
  assert audit["added"] == sum(audit[k] for k in ("queued", "out", "waiting", "taken"))
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == len(set(lines)) <= 60  # once per peer and reason, of which there are few
  assert all(len(line) < 1500 and line.isprintable() for line in lines)


@pytest.mark.parametrize("method", fuzzing.good_requests(["train/0"]))
def test_a_server_that_got_an_unreadable_message_still_stops(method):
  target = fuzzing.Target()
  channel = fuzzing.grpc.insecure_channel(target.address)
  with channel, pytest.raises(fuzzing.grpc.RpcError) as error:
    fuzzing.send(channel, method, [b"\x0a\xff"])
  assert error.value.code() == fuzzing.grpc.StatusCode.INVALID_ARGUMENT
  assert f"/{method}: got bytes that cannot be parsed" in error.value.details()
  assert target.close()


def test_bytes_that_are_not_even_http_disturb_nobody(target):
  host, port = target.address.split(":")
  for data in (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    random.Random(0).randbytes(100_000),
    b"PRI * HTTP/2",
  ):
    with socket.create_connection((host, int(port)), 5) as raw:
      raw.settimeout(5)
      try:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
          pass
      except OSError:
        pass  # cut off, as it should be
  silent = socket.create_connection((host, int(port)), 5)  # says nothing, for as long as it likes
  assert target.works("after noise")
  silent.close()
