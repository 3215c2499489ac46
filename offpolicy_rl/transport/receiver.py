"""A sampler's end of the weights: assembled tensor by tensor, and returned only when verified.

Host memory: one copy of the weights, and the payload of one tensor. A new version overwrites the
current one. If its stream is damaged or given up, the memory holds neither version, and the next
pull fetches everything.
"""

import math
from collections.abc import Iterable

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.transport import codec, delta, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport.bounds import refuse as _refuse

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # parameter path -> shape, dtype on the wire


class DamagedError(codec.WireError):
  """A stream's bytes are not those of its header; another stream may be fine."""


class _Assembly:
  """The tensors of one header, built in the memory of the current ones as bytes arrive."""

  def __init__(self, header: pb.WeightsHeader, held: weights.Tensors):
    self.digest, self.header, self.received = weights.header_digest(header), header, 0
    self._held = held
    self._tensors: weights.Tensors = {}
    self._open()
    self._close_complete()

  def _open(self) -> None:
    """Makes room for the payload of the next tensor; None after the last."""
    self._payload: np.ndarray | None = None
    self._filled = 0
    if len(self._tensors) == len(self.header.tensors):
      return
    info = self.header.tensors[len(self._tensors)]
    if info.encoding == pb.ENCODING_SPARSE or info.name not in self._held:
      self._payload = np.empty(info.payload_bytes, np.uint8)
    else:
      self._payload = delta.bits(self._held[info.name]).view(np.uint8)

  def _close_complete(self) -> None:
    while self._payload is not None and self._filled == self._payload.size:
      info = self.header.tensors[len(self._tensors)]
      self._tensors[info.name] = self._verified(info, self._payload)
      self._open()

  def _verified(self, info: pb.TensorInfo, payload: np.ndarray) -> np.ndarray:
    field = f"weights.tensors[{info.name}]"
    if info.encoding == pb.ENCODING_SPARSE:
      try:
        tensor = self._held[info.name]
        delta.apply(tensor, payload, field)
      except codec.WireError as error:
        raise DamagedError(str(error)) from None
    else:
      tensor = payload.view(codec.dtype_of(info.dtype, field)).reshape(tuple(info.shape))
    if weights.digest(tensor) != info.sha256:
      raise DamagedError(f"{field}.sha256: version {self.header.version} was damaged on the way")
    return tensor

  def add(self, data: bytes) -> None:
    rest = np.frombuffer(data, np.uint8)
    while rest.size:
      if self._payload is None:
        raise DamagedError(f"weights.data: more than the {self.header.total_bytes} bytes announced")
      taken = min(rest.size, self._payload.size - self._filled)
      self._payload[self._filled : self._filled + taken] = rest[:taken]
      self._filled += taken
      self.received += taken
      rest = rest[taken:]
      self._close_complete()

  def finish(self) -> weights.Tensors:
    if self._payload is not None:
      total = self.header.total_bytes
      raise DamagedError(f"weights.data: got {self.received} bytes, expected {total}")
    return self._tensors


class Receiver:
  """A sampler's weights, and the rest of a broken stream; both are checked by the model."""

  def __init__(self, layout: Layout):
    self._layout = {name: (tuple(s), np.dtype(d)) for name, (s, d) in layout.items()}
    self.received_bytes = 0  # of payloads, in all
    self.forget()

  def forget(self) -> None:
    """Drops everything, so that the next pull fetches all tensors."""
    self._version, self._sha256 = types.NO_VERSION, b""
    self._tensors: weights.Tensors = {}
    self._assembly: _Assembly | None = None

  def fill_in(self, request: pb.WeightsRequest) -> pb.WeightsRequest:
    """Adds to a request the current version, and the place to resume a broken stream."""
    request.held_version, request.held_sha256 = self._version, self._sha256
    request.ClearField("resume")
    if self._assembly is not None:
      request.resume.header_sha256 = self._assembly.digest
      request.resume.version = self._assembly.header.version
      request.resume.offset = self._assembly.received
    return request

  def receive(self, chunks: Iterable[pb.WeightsChunk]) -> tuple[int, weights.Tensors | None]:
    """Reads one stream -> (version, tensors), None if that version is here already.

    If `chunks` raises, the bytes so far are kept for the next stream. The tensors are valid until
    the next call, which overwrites them.

    Raises:
      DamagedError: too few or too many bytes, or a wrong digest; or a delta to a version that a
        broken stream has half overwritten. Nothing is held afterwards.
      codec.WireError: a header that does not fit the model or the current version, which stays.
    """
    try:
      return self._receive(iter(chunks))
    except codec.WireError:
      if self._assembly is not None:
        self.forget()
      raise

  def _receive(self, chunks) -> tuple[int, weights.Tensors | None]:
    first = next(chunks, None)
    if first is None or first.WhichOneof("part") != "header":
      raise codec.WireError("weights: the stream does not begin with a header")
    header = first.header
    if header.already_held:
      self._check_held(header.version)
      return header.version, None
    assembly = self._begin(header, first.offset)
    for chunk in chunks:
      assembly.add(chunk.data)
      self.received_bytes += len(chunk.data)
    self._tensors = assembly.finish()
    self._version, self._sha256 = header.version, header.sha256
    self._assembly = None
    return header.version, dict(self._tensors)

  def _check_held(self, version: int) -> None:
    held = f"version {self._version}" if self._tensors else "a stream: nothing is held"
    if not self._tensors or version != self._version:
      _refuse("weights.already_held", f"version {version}", held)

  def _begin(self, header: pb.WeightsHeader, offset: int) -> _Assembly:
    assembly = self._assembly
    same = assembly if assembly and assembly.digest == weights.header_digest(header) else None
    expected = same.received if same else 0
    if offset not in (0, expected):
      _refuse("weights.offset", offset, f"0 or {expected}")
    if same and offset == expected:
      return same
    self._check(header)
    if assembly is not None and header.base_version != types.NO_VERSION:
      raise DamagedError(f"version {self._version} is half written over by a stream that broke")
    self._assembly = _Assembly(header, self._tensors)
    return self._assembly

  def _check(self, header: pb.WeightsHeader) -> None:
    if header.base_version not in (types.NO_VERSION, self._version):
      _refuse("weights.base_version", header.base_version, f"{self._version}, the version held")
    names = [info.name for info in header.tensors]
    expected = "each tensor of this sampler's model once"
    if sorted(names) != sorted(self._layout):
      _refuse("weights.tensors", sorted(set(names) ^ set(self._layout))[:3], expected)
    announced = {  # from here on names are known, so errors may show them
      i.name: (tuple(i.shape), codec.dtype_of(i.dtype, f"weights.tensors[{i.name}]"))
      for i in header.tensors
    }
    wrong = [f"{name} {x}" for name, x in announced.items() if x != self._layout[name]]
    if wrong:
      _refuse("weights.tensors", wrong[:3], expected)
    for info in header.tensors:
      self._check_payload(info, header.base_version)
    if sum(info.payload_bytes for info in header.tensors) != header.total_bytes:
      _refuse("weights.total_bytes", header.total_bytes, "the sum of payload_bytes")
    if weights.combined_digest([info.sha256 for info in header.tensors]) != header.sha256:
      _refuse("weights.sha256", header.sha256.hex(), "the digest of the tensors' digests")

  def _check_payload(self, info: pb.TensorInfo, base_version: int) -> None:
    field = f"weights.tensors[{info.name}]"
    shape, dtype = self._layout[info.name]
    size = math.prod(shape) * dtype.itemsize
    sparse = info.encoding == pb.ENCODING_SPARSE
    if not sparse and info.encoding != pb.ENCODING_FULL:
      _refuse(f"{field}.encoding", info.encoding, "full or sparse")
    if sparse and base_version == types.NO_VERSION:
      _refuse(f"{field}.encoding", "sparse", "full, because there is no base_version")
    if info.payload_bytes > size or (not sparse and info.payload_bytes != size):
      expected = f"at most {size}" if sparse else str(size)
      _refuse(f"{field}.payload_bytes", info.payload_bytes, expected)
