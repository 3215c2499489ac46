"""The learner's end of the weights: kept by version, streamed in chunks, as deltas if shorter.

`receiver.py` is the other end. Digests and deltas are computed by the thread that first needs them,
never by the one that publishes.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

from offpolicy_rl import types
from offpolicy_rl.transport import checksum, codec, delta
from offpolicy_rl.transport import trajectory_pb2 as pb

CHUNK_BYTES = 1 << 20
_CACHED_PLANS = 8

Tensors = dict[str, np.ndarray]  # parameter path -> array


def raw_bytes(array: np.ndarray) -> memoryview:
  """The bytes of an array, without a copy if it is contiguous."""
  return delta.bits(array).view(np.uint8).data


def digest(array: np.ndarray) -> bytes:
  """sha256 of the tensor's bytes."""
  return hashlib.sha256(raw_bytes(array)).digest()


def combined_digest(digests: list[bytes]) -> bytes:
  """One digest for all tensors, without reading their bytes again."""
  return hashlib.sha256(b"".join(digests)).digest()


class _Lazy:
  """A value that the first caller computes while others wait."""

  def __init__(self, compute: Callable):
    self._lock, self._compute, self._value = threading.Lock(), compute, None

  def __call__(self):
    with self._lock:
      if self._compute is not None:
        self._value = self._compute()
        self._compute = None  # frees the arrays that it read
      return self._value


class _Version:
  def __init__(self, number: int, tensors: Tensors):
    self.number, self.tensors = number, tensors
    self.digests = _Lazy(lambda: [digest(array) for array in tensors.values()])

  def sha256(self) -> bytes:
    return combined_digest(self.digests())


class _Plan(NamedTuple):
  header: pb.WeightsHeader
  payloads: list[memoryview]  # one per tensor, in the header's order


def _make_plan(new: _Version, base: _Version | None) -> _Plan:
  """A plan with each tensor as a difference to `base` if that is shorter, else in full."""
  payloads, infos, base_version = [], [], types.NO_VERSION
  for (name, array), sha256 in zip(new.tensors.items(), new.digests(), strict=True):
    old = base.tensors.get(name) if base else None
    comparable = old is not None and (old.dtype, old.shape) == (array.dtype, array.shape)
    sparse = delta.encode(old, array) if comparable else None
    if base is not None and sparse is not None:
      base_version = base.number
    payloads.append(raw_bytes(array) if sparse is None else memoryview(sparse))
    infos.append(
      pb.TensorInfo(
        name=name,
        dtype=codec.dtype_code(array.dtype),
        shape=array.shape,
        sha256=sha256,
        encoding=pb.ENCODING_FULL if sparse is None else pb.ENCODING_SPARSE,
        payload_bytes=len(payloads[-1]),
      )
    )
  header = pb.WeightsHeader(
    version=new.number,
    base_version=base_version,
    tensors=infos,
    total_bytes=sum(map(len, payloads)),
    sha256=new.sha256(),
  )
  return _Plan(header, payloads)


@functools.lru_cache(maxsize=1024)
def _data_prefix(size: int) -> bytes:  # of a serialized WeightsChunk
  return pb.WeightsChunk(data=bytes(size)).SerializeToString()[:-size]


def _chunks(plan: _Plan, offset: int) -> Iterator[bytes]:
  """Serialized WeightsChunks: the header with a checksum, then the payloads from `offset` on.

  Serialized by hand, because a protobuf message would copy the bytes twice more.
  """
  yield checksum.add(pb.WeightsChunk(header=plan.header, offset=offset).SerializeToString())
  for payload in plan.payloads:
    for start in range(min(offset, len(payload)), len(payload), CHUNK_BYTES):
      data = payload[start : start + CHUNK_BYTES]
      yield b"".join((_data_prefix(len(data)), data))
    offset = max(0, offset - len(payload))


def header_digest(header: pb.WeightsHeader) -> bytes:
  """Digest of a stream: equal digests mean equal bytes, since encoding is deterministic."""
  return hashlib.sha256(header.SerializeToString(deterministic=True)).digest()


class Store(Protocol):
  """Published versions: a WeightStore, or a weights_dir.WeightsDirectory."""

  def put(self, version: int, tensors: Any) -> None: ...
  def retain(self, needed: Callable[[int], bool]) -> None: ...
  def versions(self) -> list[int]: ...
  def tensors(self, version: int) -> dict[str, Any]: ...
  def close(self) -> None: ...


class WeightStore:
  """The versions that samplers may still ask for or hold. Thread-safe."""

  def __init__(self, *, delta_bases: int = 4):
    """`delta_bases`: number of recently sent versions to keep as bases of deltas."""
    self._lock = threading.Lock()
    self._versions: dict[int, _Version] = {}
    self._plans: dict[tuple[int, int], _Lazy] = {}  # (base, version), oldest use first
    self._sent: dict[int, None] = {}  # versions in the order in which they were last sent
    self._delta_bases = delta_bases

  def put(self, version: int, tensors: Mapping[str, ArrayLike]) -> None:
    """Adds a version, {path: array}; the arrays must not change afterwards."""
    entry = _Version(version, {k: np.asarray(x, order="C") for k, x in tensors.items()})
    with self._lock:
      self._versions[version] = entry

  def retain(self, needed: Callable[[int], bool]) -> None:
    """Drops versions for which `needed(version)` is false, except the newest bases of deltas."""
    with self._lock:
      self._sent = {v: None for v in self._sent if v in self._versions}
      bases = list(self._sent)[-self._delta_bases :] if self._delta_bases else []
      self._versions = {v: e for v, e in self._versions.items() if needed(v) or v in bases}
      alive = {*self._versions, types.NO_VERSION}
      self._plans = {pair: plan for pair, plan in self._plans.items() if alive.issuperset(pair)}

  def close(self) -> None:
    """Does nothing; WeightsDirectory has something to finish."""

  def versions(self) -> list[int]:
    """The versions, oldest first."""
    with self._lock:
      return sorted(self._versions)

  def tensors(self, version: int) -> Tensors:
    """The arrays of a version; KeyError if it is not here."""
    with self._lock:
      return self._versions[version].tensors

  def answer(self, request: pb.WeightsRequest) -> Iterator[bytes] | None:
    """Serialized WeightsChunks that answer a sampler; None if no version is within its bounds.

    Sends the version of a broken stream, else the newest; as a delta if the sampler's version is
    still here, else in full; from the byte at which a stream of exactly these bytes broke, else
    from the beginning.
    """
    low, high = request.min_version, request.max_version
    with self._lock:
      within = [v for v in self._versions if low <= v <= high]
      if not within:
        return None
      resumed = bool(request.resume.header_sha256) and request.resume.version in within
      new = self._versions[request.resume.version if resumed else max(within)]
      held = self._versions.get(request.held_version)
      self._sent.pop(new.number, None)
      self._sent[new.number] = None
    return self._stream(request, new, held)

  def _stream(self, request, new: _Version, held: _Version | None) -> Iterator[bytes]:
    if held is not None and held.sha256() != request.held_sha256:
      held = None
    if held is new:
      header = pb.WeightsHeader(version=new.number, already_held=True)
      yield checksum.add(pb.WeightsChunk(header=header).SerializeToString())
      return
    plan = self._plan(new, held)
    same = header_digest(plan.header) == request.resume.header_sha256
    yield from _chunks(plan, request.resume.offset if same else 0)

  def _plan(self, new: _Version, base: _Version | None) -> _Plan:
    key = (base.number if base else types.NO_VERSION, new.number)
    with self._lock:  # several samplers may pull at the same time
      plan = self._plans.pop(key, None) or _Lazy(lambda: _make_plan(new, base))
      self._plans[key] = plan
      while len(self._plans) > _CACHED_PLANS:
        del self._plans[next(iter(self._plans))]
    return plan()
