"""Parameters on the wire: kept by version, streamed in chunks, checked by a digest."""

import hashlib
import math
import threading
from collections.abc import Iterable, Iterator

import numpy as np

from offpolicy_rl.transport import bounds, codec
from offpolicy_rl.transport import trajectory_pb2 as pb

CHUNK_BYTES = 1 << 20

Tensors = dict[str, np.ndarray]  # parameter path -> array


def _raw_bytes(array: np.ndarray) -> memoryview:
  """The bytes of an array without a copy; through uint8 because bfloat16 has no buffer format."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class WeightStore:
  """The versions that a sampler may still ask for. Thread-safe."""

  def __init__(self):
    self._lock = threading.Lock()
    self._versions: dict[int, tuple[Tensors, bytes]] = {}

  def put(self, version: int, tensors: Tensors) -> None:
    """Adds a version; the arrays must not change afterwards."""
    digest = hashlib.sha256()
    for array in tensors.values():
      digest.update(_raw_bytes(array))
    with self._lock:
      self._versions[version] = (tensors, digest.digest())

  def retain(self, needed) -> None:
    """Drops every version for which `needed(version)` is false."""
    with self._lock:
      self._versions = {v: entry for v, entry in self._versions.items() if needed(v)}

  def versions(self) -> list[int]:
    """The versions held, oldest first."""
    with self._lock:
      return sorted(self._versions)

  def newest(self, min_version: int, max_version: int) -> int | None:
    """Newest version held within the bounds, or None."""
    return max((v for v in self.versions() if min_version <= v <= max_version), default=None)

  def stream(self, version: int) -> Iterator[pb.WeightsChunk]:
    """One header, then the bytes of all tensors in order; KeyError for a version not held."""
    with self._lock:
      tensors, digest = self._versions[version]
    infos = [
      pb.TensorInfo(name=name, dtype=codec.dtype_code(array.dtype), shape=array.shape)
      for name, array in tensors.items()
    ]
    total = sum(array.nbytes for array in tensors.values())
    yield pb.WeightsChunk(
      header=pb.WeightsHeader(version=version, tensors=infos, total_bytes=total, sha256=digest)
    )
    for array in tensors.values():
      data = _raw_bytes(array)
      for start in range(0, len(data), CHUNK_BYTES):
        yield pb.WeightsChunk(data=bytes(data[start : start + CHUNK_BYTES]))


def receive(chunks: Iterable[pb.WeightsChunk], max_bytes: int) -> tuple[int, Tensors | None]:
  """Reads one stream -> (version, tensors), tensors None when the receiver holds it already.

  Raises:
    WireError: wrong order, size or digest. Nothing is applied then.
  """
  chunks = iter(chunks)
  first = next(chunks, None)
  if first is None or first.WhichOneof("part") != "header":
    raise codec.WireError("weights: the stream does not begin with a header")
  header = first.header
  if header.already_held:
    return header.version, None
  if header.total_bytes > max_bytes:
    raise codec.WireError(f"weights.total_bytes: got {header.total_bytes}, expected <= {max_bytes}")
  buffer, filled, digest = bytearray(header.total_bytes), 0, hashlib.sha256()
  for chunk in chunks:
    data = chunk.data
    if filled + len(data) > len(buffer):
      raise codec.WireError(f"weights.data: more than the {len(buffer)} bytes of the header")
    buffer[filled : filled + len(data)] = data
    digest.update(data)
    filled += len(data)
  if filled != len(buffer):
    raise codec.WireError(f"weights.data: got {filled} bytes, expected {len(buffer)}")
  if digest.digest() != header.sha256:
    raise codec.WireError(f"weights.sha256: version {header.version} was damaged on the way")
  return header.version, _split(buffer, header.tensors)


def _split(buffer: bytearray, infos) -> Tensors:
  """Views of the received bytes, one per tensor."""
  tensors, offset = {}, 0
  for info in infos:
    field = f"weights.tensors[{bounds.shown(info.name)}]"
    dtype = codec.dtype_of(info.dtype, field)
    shape = tuple(info.shape)
    bounds.check_shape(shape, field)
    count = math.prod(shape)
    if offset + count * dtype.itemsize > len(buffer):
      raise codec.WireError(f"{field}.shape: {shape} exceeds the bytes sent")
    tensors[info.name] = np.frombuffer(buffer, dtype, count, offset).reshape(shape)
    offset += count * dtype.itemsize
  if offset != len(buffer):
    raise codec.WireError(f"weights.tensors: {offset} bytes described, {len(buffer)} sent")
  return tensors
