"""Weights: kept as long as needed, streamed as deltas, damage noticed, broken streams resumed."""

import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.transport import codec, delta, receiver, weights
from offpolicy_rl.transport import trajectory_pb2 as pb


def tensors(seed: int) -> weights.Tensors:
  rng = np.random.default_rng(seed)
  return {
    "a/kernel": rng.normal(size=(300, 100)).astype(np.float32),
    "b": rng.normal(size=70).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.array(3, np.int32),
  }


LAYOUT = {name: (x.shape, x.dtype) for name, x in tensors(0).items()}
TOTAL = sum(x.nbytes for x in tensors(0).values())


def updated(old: weights.Tensors, seed: int, fraction: float = 0.01) -> weights.Tensors:
  """Some bits of some elements flipped."""
  rng, new = np.random.default_rng(seed), {}
  for name, array in old.items():
    new[name] = array.copy()
    bits = delta.bits(new[name])
    bits[rng.random(bits.size) < fraction] ^= 1
  return new


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(weights, "CHUNK_BYTES", 5000)


def history(count: int = 4) -> tuple[weights.WeightStore, list[weights.Tensors]]:
  versions = [tensors(0)]
  for seed in range(1, count):
    versions.append(updated(versions[-1], seed))
  store = weights.WeightStore()
  for number, found in enumerate(versions):
    store.put(number, found)
  return store, versions


def ask(store, held: receiver.Receiver, low: int = 0, high: int = 99) -> list[pb.WeightsChunk]:
  """The stream that answers a receiver, as messages."""
  request = held.fill_in(pb.WeightsRequest(min_version=low, max_version=high))
  return [pb.WeightsChunk.FromString(chunk) for chunk in store.answer(request)]


def payload_bytes(chunks) -> int:
  return sum(len(chunk.data) for chunk in chunks)


def assert_same_bits(found: weights.Tensors, expected: weights.Tensors):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
    assert found[name].tobytes() == array.tobytes(), name


def holding(store, version: int) -> receiver.Receiver:
  held = receiver.Receiver(LAYOUT)
  assert held.receive(ask(store, held, version, version))[0] == version
  return held


def test_a_full_stream_brings_back_every_bit():
  store, versions = history()
  chunks = ask(store, receiver.Receiver(LAYOUT))
  assert len(chunks) > 20 and payload_bytes(chunks) == TOTAL
  version, received = receiver.Receiver(LAYOUT).receive(chunks)
  assert version == 3
  assert_same_bits(received, versions[3])


def test_deltas_equal_full_transfers_bit_for_bit_over_several_versions():
  store, versions = history(6)
  held, memory = receiver.Receiver(LAYOUT), None
  for low in (0, 1, 2, 5, 3, 4):  # one after the other, a jump, back and forth
    chunks = ask(store, held, low, low)
    version, received = held.receive(chunks)
    assert version == low
    assert_same_bits(received, versions[low])
    if memory is not None:  # one copy: a version is written over the one before
      assert all(np.shares_memory(received[name], memory[name]) for name in ("a/kernel", "b"))
    memory = received
    assert (payload_bytes(chunks) == TOTAL) if low == 0 else (payload_bytes(chunks) < TOTAL / 8)
  assert held.receive(ask(store, held, 0, 4)) == (4, None)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(fraction=st.sampled_from([0.0, 0.001, 0.3, 0.7, 1.0]), seed=st.integers(0, 1000))
def test_any_fraction_of_changes_arrives(fraction, seed):
  store = weights.WeightStore()
  store.put(0, tensors(seed))
  store.put(1, updated(tensors(seed), seed, fraction))
  held = holding(store, 0)
  chunks = ask(store, held)
  assert payload_bytes(chunks) <= TOTAL
  assert_same_bits(held.receive(chunks)[1], updated(tensors(seed), seed, fraction))
  assert (chunks[0].header.base_version == 0) == (fraction < 1)


def test_an_unknown_base_or_one_with_other_bits_gets_everything():
  store, versions = history()
  held = holding(store, 1)
  store.retain(lambda version: version == 3)
  assert store.versions() == [1, 3]  # 1 was sent, so somebody may hold it
  other = weights.WeightStore()
  other.put(1, updated(versions[1], 9))  # the same number in another session
  for version in (2, 3):
    other.put(version, versions[version])
  chunks = ask(other, held, 2, 2)
  assert payload_bytes(chunks) == TOTAL and chunks[0].header.base_version == types.NO_VERSION
  assert_same_bits(held.receive(chunks)[1], versions[2])
  assert payload_bytes(ask(store, held)) == TOTAL  # version 2 has gone there


def test_the_store_keeps_what_is_needed_and_the_last_bases():
  store = weights.WeightStore(delta_bases=2)
  for version in range(8):
    store.put(version, tensors(version))
  for sent in (0, 1, 2):
    holding(store, sent)
  store.retain(lambda version: version >= 6)
  assert store.versions() == [1, 2, 6, 7]
  holding(store, 7)
  store.retain(lambda version: version >= 7)
  assert store.versions() == [2, 7]
  assert store.answer(pb.WeightsRequest(min_version=3, max_version=6)) is None
  assert store.answer(pb.WeightsRequest(min_version=0, max_version=6)) is not None
  without = weights.WeightStore(delta_bases=0)
  without.put(0, tensors(0))
  holding(without, 0)
  without.retain(lambda version: False)
  assert without.versions() == []


def test_publishing_reads_nothing_and_several_samplers_share_one_computation(monkeypatch):
  counts = {"digest": 0, "encode": 0}

  def counting(name, function):
    def wrapped(*args):
      counts[name] += 1
      return function(*args)

    return wrapped

  monkeypatch.setattr(weights, "digest", counting("digest", weights.digest))
  monkeypatch.setattr(delta, "encode", counting("encode", delta.encode))
  store, _ = history(2)
  assert counts == {"digest": 0, "encode": 0}
  receivers = [holding(store, 0) for _ in range(4)]
  counts.update(digest=0, encode=0)
  answers = [None] * 4
  threads = [
    threading.Thread(target=lambda i=i, r=r: answers.__setitem__(i, ask(store, r)))
    for i, r in enumerate(receivers)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert counts == {"digest": 4, "encode": 4}  # once per tensor, not per sampler
  assert len({chunk[0].SerializeToString() for chunk in answers}) == 1


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("base", [None, 0])
def test_every_flipped_bit_is_noticed_and_nothing_is_held_then(base):
  store, versions = history()
  rng = np.random.default_rng(0)
  make = lambda: receiver.Receiver(LAYOUT) if base is None else holding(store, base)
  chunks = ask(store, make())
  bodies = [i for i, chunk in enumerate(chunks) if chunk.data]
  for _ in range(60):
    damaged = [pb.WeightsChunk.FromString(chunk.SerializeToString()) for chunk in chunks]
    at = rng.choice(bodies)
    data = bytearray(damaged[at].data)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    damaged[at].data = bytes(data)
    held = make()
    with pytest.raises(receiver.DamagedError, match=r"weights.tensors\["):
      held.receive(damaged)
    request = held.fill_in(pb.WeightsRequest())
    assert (request.held_version, request.held_sha256) == (types.NO_VERSION, b"")
  assert_same_bits(held.receive(ask(store, held))[1], versions[3])
  assert base is None or payload_bytes(chunks) < TOTAL / 8


def test_missing_and_superfluous_bytes_are_noticed():
  store, _ = history()
  chunks = ask(store, receiver.Receiver(LAYOUT))
  held = receiver.Receiver(LAYOUT)
  with pytest.raises(receiver.DamagedError, match=r"weights.data: got \d+ bytes, expected 120144"):
    held.receive(chunks[:-1])
  with pytest.raises(receiver.DamagedError, match="more than the 120144 bytes"):
    held.receive([*chunks, chunks[-1]])
  for headless in ([], chunks[1:]):
    with pytest.raises(codec.WireError, match="does not begin with a header"):
      held.receive(headless)


def tampered_info(**fields):
  def tamper(header):
    for name, value in fields.items():
      setattr(header.tensors[0], name, value)

  return tamper


HEADERS = [
  (lambda h: setattr(h, "base_version", 7), "weights.base_version: got 7, expected 0, the version"),
  (lambda h: setattr(h, "base_version", -2), r"encoding: got 'sparse', expected full, because"),
  (lambda h: setattr(h, "total_bytes", 5), "weights.total_bytes: got 5"),
  (lambda h: setattr(h, "sha256", b"x"), "weights.sha256: got '78'"),
  (lambda h: h.tensors.pop(), "weights.tensors: got .'scalar'., expected each tensor of this"),
  (lambda h: h.tensors.append(h.tensors[0]), "weights.tensors: "),
  (lambda h: h.tensors[0].shape.append(2), r"weights.tensors: got .*a/kernel .*300, 100, 2"),
  (tampered_info(name="evil"), "weights.tensors: got .'a/kernel', 'evil'."),
  (tampered_info(dtype=9), r"weights.tensors\[a/kernel\].dtype: got 9"),
  (tampered_info(dtype=pb.DTYPE_INT32), "weights.tensors: got .*a/kernel"),
  (tampered_info(encoding=0), r"weights.tensors\[a/kernel\].encoding: got 0"),
  (tampered_info(payload_bytes=2**40), r"weights.tensors\[a/kernel\].payload_bytes: got 1099511"),
  (tampered_info(encoding=pb.ENCODING_FULL), r"payload_bytes: got \d+, expected 120000"),
  (tampered_info(sha256=bytes(32)), "weights.sha256"),
]


@pytest.mark.parametrize(("tamper", "message"), HEADERS)
def test_a_header_that_does_not_fit_is_refused_by_name_before_any_byte(tamper, message):
  store, versions = history()
  held = holding(store, 0)
  chunks = ask(store, held)
  tamper(chunks[0].header)

  def first_only():
    yield chunks[0]
    raise AssertionError("read on after a bad header")

  with pytest.raises(codec.WireError, match=message):
    held.receive(first_only())
  assert_same_bits(held.receive(ask(store, held))[1], versions[3])


def test_already_held_must_name_what_we_hold():
  store, _ = history()
  held = holding(store, 2)
  header = pb.WeightsHeader(version=1, already_held=True)
  with pytest.raises(codec.WireError, match="already_held: got 'version 1', expected version 2"):
    held.receive([pb.WeightsChunk(header=header)])


# ---------------------------------------------------------------- broken streams


class Cut(Exception):
  pass


def cut_after(chunks, count: int):
  yield from chunks[:count]
  raise Cut


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), base=st.sampled_from([None, 1]))
def test_a_broken_stream_goes_on_where_it_broke(cuts, base):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(weights, "CHUNK_BYTES", 5000 if base is None else 100)
    store, versions = history()
    held = receiver.Receiver(LAYOUT) if base is None else holding(store, base)
    expected = payload_bytes(ask(store, held))
    before = held.received_bytes
    for count in cuts:
      with pytest.raises(Cut):
        held.receive(cut_after(ask(store, held), count))
    version, received = held.receive(ask(store, held))
  assert version == 3
  assert_same_bits(received, versions[3])
  assert held.received_bytes - before == expected  # nothing came twice


def test_a_broken_stream_is_finished_even_when_there_is_a_newer_version():
  store, versions = history(3)
  held = holding(store, 0)
  with pytest.raises(Cut):
    held.receive(cut_after(ask(store, held, 2, 2), 1))
  store.put(3, updated(versions[2], 9))
  version, received = held.receive(ask(store, held))
  assert version == 2
  assert_same_bits(received, versions[2])
  assert held.receive(ask(store, held))[0] == 3


@pytest.mark.parametrize("low", [0, 3])
def test_a_stream_that_cannot_go_on_starts_over(low):
  store, versions = history(4)
  held = receiver.Receiver(LAYOUT)
  with pytest.raises(Cut):
    held.receive(cut_after(ask(store, held, 2, 2), 5))
  if not low:
    store = weights.WeightStore()  # another session: version 2 has other bits there
    store.put(2, tensors(5))
    versions[2] = tensors(5)
  chunks = ask(store, held, low, 3)
  assert chunks[0].offset == 0 and payload_bytes(chunks) == TOTAL
  version, received = held.receive(chunks)
  assert_same_bits(received, versions[version])


def test_a_delta_to_what_is_half_written_over_is_refused_and_everything_pulled():
  store, versions = history(3)
  held = holding(store, 0)
  with pytest.raises(Cut):
    held.receive(cut_after(ask(store, held, 1, 1), 2))
  chunks = ask(store, held, 2, 2)
  assert chunks[0].header.base_version == 0
  with pytest.raises(receiver.DamagedError, match="version 0 is half written over by a stream"):
    held.receive(chunks)
  chunks = ask(store, held, 2, 2)
  assert payload_bytes(chunks) == TOTAL
  assert_same_bits(held.receive(chunks)[1], versions[2])


def test_an_offset_we_did_not_ask_for_is_refused():
  store, _ = history()
  held = receiver.Receiver(LAYOUT)
  chunks = ask(store, held)
  chunks[0].offset = 7
  with pytest.raises(codec.WireError, match="weights.offset: got 7, expected 0"):
    held.receive(chunks)
