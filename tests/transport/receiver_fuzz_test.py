"""Nonsense from the learner: a sampler refuses it; what it holds stays, or is forgotten."""

import random

import pytest
from google.protobuf.message import DecodeError

from offpolicy_rl import types
from offpolicy_rl.transport import checksum, codec, receiver, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.fuzzing import damage, randoms
from tests.transport import fuzzing

STORE = fuzzing.weight_store()
PUBLISHED = {version: STORE.tensors(version)["w"].tobytes() for version in STORE.versions()}
NOTHING = (types.NO_VERSION, b"", {})


def draws():
  """Many times: a random number generator, and a receiver that holds version 0 or nothing."""
  for rng in randoms(200):
    yield rng, make(rng.random() < 0.5)


def make(holds: bool) -> receiver.Receiver:
  held = receiver.Receiver(fuzzing.LAYOUT)
  if holds:
    fuzzing.receive(held, fuzzing.stream(STORE, held, high=0))
  return held


def parse(data: bytes) -> pb.WeightsChunk:
  """As a client does."""
  return pb.WeightsChunk.FromString(checksum.verify_chunk(data))


def parsed(held: receiver.Receiver) -> list[pb.WeightsChunk]:
  """The good stream of version 1, a delta where there is a base."""
  return list(map(parse, fuzzing.stream(STORE, held)))


def holdings(held: receiver.Receiver):
  """Version, digest and bits of what a sampler has."""
  request = held.fill_in(pb.WeightsRequest())
  tensors = {name: array.tobytes() for name, array in held._tensors.items()}
  return request.held_version, request.held_sha256, tensors


def survives(held: receiver.Receiver, chunks) -> None:
  """The stream gives version 1 bit for bit or is refused, and then nothing of it stays behind.

  What was held stays as it was, or is gone if some of it was written over.
  """
  before = holdings(held)
  try:
    version, tensors = held.receive(chunks)
  except (codec.WireError, checksum.ChecksumError, DecodeError) as error:
    assert len(str(error)) < 1000 and str(error).isprintable()
    assert holdings(held) in (before, NOTHING)
  else:
    if tensors is None:
      assert holdings(held) == before and before[2] and version == before[0]
    else:
      assert tensors["w"].tobytes() == PUBLISHED[1]
  fuzzing.receive(held, fuzzing.stream(STORE, held, 0, 0))
  _, tensors = fuzzing.receive(held, fuzzing.stream(STORE, held, 1, 1))
  assert tensors["w"].tobytes() == PUBLISHED[1]  # the next good stream is welcome


def test_any_message_of_a_stream_may_be_nonsense():
  """Under a right checksum: damaged before the learner added it, or sent by no learner of ours."""
  for rng, held in draws():
    chunks = parsed(held)
    at = rng.randrange(len(chunks))
    raw = fuzzing.request(rng, [chunks[at]])
    stream = [chunk.SerializeToString() for chunk in chunks]
    stream = [raw if i == at else data for i, data in enumerate(stream)]
    survives(held, map(pb.WeightsChunk.FromString, stream))


def test_any_bytes_of_a_stream_may_be_damaged_on_the_way():
  for rng, held in draws():
    stream = fuzzing.stream(STORE, held)
    at = rng.randrange(len(stream))
    stream[at] = damage(rng, stream[at], stream[0])
    survives(held, map(parse, stream))


def test_a_stream_may_lose_double_and_swap_messages():
  for rng, held in draws():
    stream = fuzzing.stream(STORE, held)
    stream = rng.choices(stream, k=rng.randrange(5))
    survives(held, map(parse, stream))


def test_headers_that_describe_impossible_tensors_are_refused():
  """Sums and digests are right here, so that names, shapes and sizes themselves are tried."""
  for rng, held in draws():
    header = parsed(held)[0].header
    for _ in range(rng.choice([1, 2])):
      info = rng.choice(header.tensors)
      if info.ListFields():
        fuzzing.spoil(rng, info)
    if rng.random() < 0.2:
      header.tensors.add().CopyFrom(fuzzing.random_message(rng, pb.TensorInfo))
    consistent(header)
    data = rng.randbytes(rng.choice([0, 1, 8, 24, 160]))
    stream = [pb.WeightsChunk(header=header), pb.WeightsChunk(data=data)]
    survives(held, stream)


def consistent(header: pb.WeightsHeader) -> None:
  """Total and digest fit the tensors."""
  header.total_bytes = sum(info.payload_bytes for info in header.tensors) % 2**64
  header.sha256 = weights.combined_digest([info.sha256 for info in header.tensors])


def test_deltas_of_the_announced_length_may_hold_anything():
  """So `delta.apply` sees every one of them."""
  for rng in randoms(200):
    held = make(True)
    chunks = parsed(held)
    assert chunks[0].header.base_version == 0
    data = bytearray(chunks[1].data)
    for _ in range(rng.choice([1, 2, 8])):
      data[rng.randrange(len(data))] = rng.choice([0, 1, 3, 40, 254, 255, rng.randrange(256)])
    chunks[1].data = bytes(data)
    survives(held, chunks)


def test_nobody_is_told_to_hold_what_never_came():
  with pytest.raises(codec.WireError, match="already_held: .* a stream: nothing is held"):
    header = pb.WeightsHeader(version=-2, already_held=True)
    receiver.Receiver(fuzzing.LAYOUT).receive([pb.WeightsChunk(header=header)])


@pytest.mark.parametrize(
  "shape", [[1] * 100 + [40], [0, 2**32 - 1, 2**32 - 1, 2**32 - 1], [2**32 - 1] * 8]
)
@pytest.mark.parametrize("name", ["w", "evil\n" * 100])
def test_shapes_that_numpy_cannot_hold_are_refused_by_name(shape, name):
  header = pb.WeightsHeader(version=1, base_version=-2)
  header.tensors.add(
    name=name,
    dtype=pb.DTYPE_FLOAT32,
    shape=shape,
    encoding=pb.ENCODING_FULL,
    payload_bytes=160,
    sha256=bytes(32),
  )
  consistent(header)
  held = receiver.Receiver(fuzzing.LAYOUT)
  with pytest.raises(codec.WireError, match=rf"weights.tensors: got \[.{name[:4]}") as error:
    held.receive([pb.WeightsChunk(header=header), pb.WeightsChunk(data=random.randbytes(160))])
  assert len(str(error.value)) < 600 and "\n" not in str(error.value)
  assert held.received_bytes == 0
