"""Lossless difference of two versions of one tensor: the changed elements and their new bits.

At the learning rates of RL most bfloat16 weights keep their bits from one version to the next, so
it is enough to send the changed ones. Nothing is rounded or compared as a number: -0.0, NaN and its
payload are bits like any others.

Format "sparse", little-endian, for n changed elements:

    uint64 n | gaps | n elements

A gap is the number of unchanged elements before a changed one: a byte below 255, or 255 for "255 of
them, and the count goes on in the next byte".
"""

import numpy as np

from offpolicy_rl.transport import codec

_BLOCK = 1 << 21  # elements, or bytes of gaps, at a time: temporaries stay below 100 MB
_ESCAPE = 255
_COUNT_BYTES = 8


def bits(array: np.ndarray) -> np.ndarray:
  """The elements as unsigned integers [size]; a view where the array is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(f"<u{array.dtype.itemsize}")


def encode(old: np.ndarray, new: np.ndarray) -> bytes | None:
  """The bytes that turn `old` into `new` (same dtype and shape); None if `new` is shorter."""
  old_bits, new_bits = bits(old), bits(new)
  blocks = [slice(at, at + _BLOCK) for at in range(0, new_bits.size, _BLOCK)]
  count = sum(int(np.count_nonzero(old_bits[b] != new_bits[b])) for b in blocks)
  if _COUNT_BYTES + count * (1 + new_bits.itemsize) >= new_bits.nbytes:
    return None
  gaps, values, previous = [], [], -1
  for block in blocks:
    changed = np.flatnonzero(old_bits[block] != new_bits[block]) + block.start
    if changed.size:
      gaps.append(_encode_gaps(np.diff(changed, prepend=previous) - 1))
      values.append(new_bits[changed].tobytes())
      previous = changed[-1]
  payload = b"".join([count.to_bytes(_COUNT_BYTES, "little"), *gaps, *values])
  return payload if len(payload) < new_bits.nbytes else None


def _encode_gaps(gaps: np.ndarray) -> bytes:
  """int64 [n] -> one byte each, and one more for every 255."""
  escapes, rest = np.divmod(gaps, _ESCAPE)
  coded = np.full(gaps.size + int(escapes.sum()), _ESCAPE, np.uint8)
  coded[np.arange(gaps.size) + np.cumsum(escapes)] = rest
  return coded.tobytes()


def apply(tensor: np.ndarray, payload: np.ndarray, field: str) -> None:
  """Turns the old tensor of `encode` into the new one, in place.

  Args:
    tensor: contiguous.
    payload: uint8 [bytes], from the wire.
    field: its name in errors.

  Raises:
    codec.WireError: lengths that contradict each other, or an index outside of the tensor, which
    may
      be half changed then.
  """
  if payload.size < _COUNT_BYTES:
    raise codec.WireError(f"{field}: got {payload.size} bytes, expected at least {_COUNT_BYTES}")
  count = int.from_bytes(payload[:_COUNT_BYTES].tobytes(), "little")
  body = payload[_COUNT_BYTES:]
  num_gap_bytes = body.size - count * tensor.dtype.itemsize
  if count > tensor.size or num_gap_bytes < count:
    raise codec.WireError(
      f"{field}.count: got {count}, expected one that fits {tensor.size} elements and "
      f"{body.size} bytes"
    )
  if not count:
    if num_gap_bytes:
      raise codec.WireError(f"{field}.gaps: got {num_gap_bytes} bytes, expected none")
    return
  gaps, values = body[:num_gap_bytes], body[num_gap_bytes:]
  if np.count_nonzero(gaps != _ESCAPE) != count or gaps[-1] == _ESCAPE:
    raise codec.WireError(f"{field}.gaps: expected the places of {count} elements")
  _scatter(bits(tensor), gaps, np.frombuffer(values, f"<u{tensor.dtype.itemsize}"), field)


def _scatter(target: np.ndarray, gaps: np.ndarray, values: np.ndarray, field: str) -> None:
  """target[places] = values, block by block; the number of gaps has been checked."""
  done, skipped = 0, 0
  for start in range(0, gaps.size, _BLOCK):
    block = gaps[start : start + _BLOCK]
    sums = np.cumsum(block, dtype=np.int64)
    ends = np.flatnonzero(block != _ESCAPE)
    places = sums[ends] + (skipped + done) + np.arange(ends.size)
    skipped += int(sums[-1])
    if ends.size and places[-1] >= target.size:  # places only grow
      raise codec.WireError(f"{field}.gaps: element {places[-1]}, expected one of {target.size}")
    target[places] = values[done : done + ends.size]
    done += ends.size
