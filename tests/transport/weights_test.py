"""Weights: kept as long as needed, streamed in chunks, damage noticed."""

import ml_dtypes
import numpy as np
import pytest

from offpolicy_rl.transport import codec, weights


def tensors(seed: int) -> weights.Tensors:
  rng = np.random.default_rng(seed)
  return {
    "a/kernel": rng.normal(size=(300, 1000)).astype(np.float32),  # more than one chunk
    "b": rng.normal(size=7).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3, np.int32),
  }


def chunks_of(version: int = 4) -> list:
  store = weights.WeightStore()
  store.put(version, tensors(0))
  return list(store.stream(version))


def test_a_stream_brings_back_every_bit():
  chunks = chunks_of()
  assert len(chunks) > 3
  version, received = weights.receive(chunks, max_bytes=10**7)
  assert version == 4 and list(received) == list(tensors(0))
  for name, array in tensors(0).items():
    assert received[name].dtype == array.dtype and received[name].shape == array.shape
    assert received[name].tobytes() == array.tobytes()


def test_damage_is_noticed():
  flipped = chunks_of()
  data = bytearray(flipped[2].data)
  data[17] ^= 1
  flipped[2].data = bytes(data)
  with pytest.raises(codec.WireError, match="sha256"):
    weights.receive(flipped, 10**7)


def test_a_cut_stream_is_noticed():
  with pytest.raises(codec.WireError, match=r"weights.data: got \d+ bytes, expected"):
    weights.receive(chunks_of()[:-1], 10**7)
  with pytest.raises(codec.WireError, match="header"):
    weights.receive([], 10**7)
  with pytest.raises(codec.WireError, match="header"):
    weights.receive(chunks_of()[1:], 10**7)


def test_more_bytes_than_announced_or_allowed_are_refused():
  chunks = chunks_of()
  with pytest.raises(codec.WireError, match="more than the"):
    weights.receive([*chunks, chunks[-1]], 10**7)
  with pytest.raises(codec.WireError, match="total_bytes: got 1200018"):
    weights.receive(chunks, max_bytes=1000)


def test_shapes_that_do_not_cover_the_bytes_are_refused():
  chunks = chunks_of()
  chunks[0].header.tensors[0].shape[0] = 299
  with pytest.raises(codec.WireError, match="bytes described"):
    weights.receive(chunks, 10**7)
  chunks[0].header.tensors[0].shape[0] = 2**31
  with pytest.raises(codec.WireError, match="exceeds"):
    weights.receive(chunks, 10**7)


def test_the_store_gives_the_newest_within_bounds_and_forgets_on_request():
  store = weights.WeightStore()
  for version in range(6):
    store.put(version, {"x": np.array(version, np.int32)})
  assert store.newest(1, 3) == 3 and store.newest(0, 99) == 5 and store.newest(7, 9) is None
  store.retain(lambda version: version in (2, 5))
  assert store.versions() == [2, 5] and store.newest(0, 4) == 2
  with pytest.raises(KeyError):
    list(store.stream(3))
