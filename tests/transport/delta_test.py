"""Deltas: every bit comes back, whatever the bits mean; nonsense from the wire is refused."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl.transport import codec, delta

DTYPES = [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32), np.dtype(np.int32)]
SHAPES = [(), (0,), (3, 0), (1,), (7,), (300, 5), (2, 3, 400)]


def random_bits(rng, dtype: np.dtype, shape: tuple) -> np.ndarray:
  """Any bits: NaN with payloads, infinities, -0.0, denormals."""
  size = int(np.prod(shape))
  return np.frombuffer(rng.bytes(size * dtype.itemsize), dtype).reshape(shape).copy()


def changed(rng, old: np.ndarray, fraction: float) -> np.ndarray:
  new = old.copy()
  places = rng.random(old.size) < fraction
  delta.bits(new)[places] ^= rng.integers(1, 2**15, int(places.sum())).astype(delta.bits(new).dtype)
  return new


def decoded(old: np.ndarray, payload: bytes) -> np.ndarray:
  tensor = old.copy()
  delta.apply(tensor, np.frombuffer(payload, np.uint8), "x")
  return tensor


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
  seed=st.integers(0, 2**32 - 1),
  dtype=st.sampled_from(DTYPES),
  shape=st.sampled_from(SHAPES),
  fraction=st.sampled_from([0.0, 0.001, 0.01, 0.2, 0.6, 1.0]),
  block=st.sampled_from([1, 3, 64, 1 << 21]),
)
def test_every_bit_comes_back(seed, dtype, shape, fraction, block):
  rng = np.random.default_rng(seed)
  old = random_bits(rng, dtype, shape)
  new = changed(rng, old, fraction)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(delta, "_BLOCK", block)
    payload = delta.encode(old, new)
    if payload is None:
      differing = np.count_nonzero(delta.bits(old) != delta.bits(new))
      assert 8 + differing * (1 + dtype.itemsize) + old.size // 255 >= new.nbytes
      return
    assert len(payload) < new.nbytes
    result = decoded(old, payload)
  assert result.tobytes() == new.tobytes()
  assert (result.dtype, result.shape) == (new.dtype, new.shape)


def test_values_that_compare_equal_but_differ_in_bits_are_sent():
  old = np.zeros(1000, np.float32)
  old[5] = np.nan
  new = old.copy()
  new[3] = -0.0
  delta.bits(new)[5] ^= 1  # another NaN
  payload = delta.encode(old, new)
  assert len(payload) == 8 + 2 * (1 + 4)
  assert decoded(old, payload).tobytes() == new.tobytes()


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 70_000])
def test_gaps_of_every_length_around_the_escape(gap):
  old = np.zeros(gap + 3000, np.uint16).view(ml_dtypes.bfloat16)
  new = old.copy()
  delta.bits(new)[[0, gap + 1, gap + 2]] = [1, 2, 3]
  payload = delta.encode(old, new)
  assert len(payload) == 8 + 3 * (1 + 2) + gap // 255
  assert decoded(old, payload).tobytes() == new.tobytes()


def test_what_did_not_change_costs_eight_bytes():
  old = np.arange(1000, dtype=np.float32)
  assert len(delta.encode(old, old.copy())) == 8
  assert decoded(old, delta.encode(old, old.copy())).tobytes() == old.tobytes()


def a_delta() -> tuple[np.ndarray, bytearray]:
  """1000 float32 of which 10 and 600 change: 8 bytes count, gaps 10, 255, 255, 79, two values."""
  old = np.zeros(1000, np.float32)
  new = old.copy()
  new[[10, 600]] = [1.0, 2.0]
  payload = bytearray(delta.encode(old, new))
  assert list(payload[8:12]) == [10, 255, 255, 79]
  return old, payload


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda p: p[:7], "x: got 7 bytes, expected at least 8"),
    (lambda p: p[:-1], "x.gaps"),
    (lambda p: p[:12], "x.count: got 2, expected one that fits 1000 elements and 4 bytes"),
    (lambda p: b"\xff" * 8 + p[8:], "x.count: got 18446744073709551615"),
    (lambda p: b"\x01" + p[1:], "x.gaps: expected the places of 1 elements"),
    (lambda p: b"\x00" + p[1:], "x.gaps: got 12 bytes, expected none"),
    (lambda p: p[:11] + b"\xff" + p[12:], "x.gaps: expected the places of 2"),
    (lambda p: p[:8] + b"\xfe" + p[9:11] + b"\xfe" + p[12:], "x.gaps: element 1019, expected one"),
  ],
)
def test_nonsense_is_refused_by_name(damage, message):
  old, payload = a_delta()
  with pytest.raises(codec.WireError) as error:
    decoded(old, damage(bytes(payload)))
  assert message in str(error.value)
