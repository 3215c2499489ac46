"""Nonsense in: a clear refusal out, nothing breaks or grows."""

import logging
import random
import socket
import threading

import pytest
from google.protobuf.message import DecodeError

from offpolicy_rl.transport import checksum, codec, watching
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.fuzzing import randoms
from tests.transport import fuzzing


def decode_group(message: pb.Group) -> None:
  """What gets through is good."""
  group = codec.decode_group(message)
  ticket = fuzzing.ticket("train/0")
  codec.check_group(group, ticket, fuzzing.EXPECTED, newest_version=fuzzing.NEWEST)
  assert fuzzing.is_good(group)


DECODERS = {
  decode_group: [codec.encode_group(fuzzing.answer(f"train/{i}")) for i in range(2)],
  codec.decode_ticket: [codec.encode_ticket(fuzzing.ticket("train/0"))],
  watching.decode_update: [watching.encode_update(fuzzing.run_update())],
}


@pytest.mark.parametrize("decode", DECODERS)
def test_messages_are_decoded_or_refused(decode):
  good = DECODERS[decode]
  for rng in randoms(300):
    data = fuzzing.request(rng, good)
    try:
      decode(type(good[0]).FromString(data))
    except (DecodeError, codec.WireError) as error:
      assert len(str(error)) < 1000


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
  outcomes = fuzzing.bombard(target, random.Random(seed), 350)
  assert target.works(f"after/{seed}")
  assert target.bad_groups == 0
  assert not fuzzing.unexpected(outcomes)  # among them INTERNAL when all checksums were right
  assert {"INVALID_ARGUMENT", "ABORTED", "group refused", "OK", fuzzing.DAMAGED} <= set(outcomes)
  assert threading.active_count() <= threads + fuzzing.CALL_THREADS
  assert fuzzing.resident_mb() < memory + 30
  audit = target.book.audit()
  assert audit["added"] == sum(audit[k] for k in ("queued", "out", "waiting", "taken", "replaced"))
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == len(set(lines)) <= 60  # once per peer and reason, of which there are few
  assert all(len(line) < 1500 and line.isprintable() for line in lines)


UNREADABLE = {  # its checksum -> what is sent, how that must end
  "with checksum": (
    checksum.add(b"\x0a\xff"),
    "INVALID_ARGUMENT",
    "/{}: got bytes that cannot be parsed",
  ),
  "missing": (b"\x0a\xff", "INTERNAL", "a message was damaged on the way"),
  "empty": (b"", "INTERNAL", "a message was damaged on the way"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("method", fuzzing.REPLIES)
def test_a_server_that_got_an_unreadable_message_still_stops(method, kind, caplog):
  data, code, said = UNREADABLE[kind]
  target = fuzzing.Target()
  with fuzzing.grpc.insecure_channel(target.address) as channel:
    for _ in range(2):
      with pytest.raises(fuzzing.grpc.RpcError) as error:
        fuzzing.send(channel, method, [data])
      assert error.value.code().name == code
      assert said.format(method) in error.value.details()
  assert target.close()
  assert len(caplog.records) == 1  # once, without a traceback


def test_every_method_is_bombarded():
  assert set(fuzzing.REPLIES) == set(fuzzing.good_requests(["train/0"]))


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
