"""Finished groups on the learner's disk: "accepted" means that a crash can not lose the group.

LMDB and not SQLite: groups are written once, read at most once, and are large (100 kB and more).
SQLite's write-ahead log writes each byte twice and is slower (`benchmarks/stores.py`). LMDB
commits are atomic, synced to disk, and need no repair after a crash. It wants a local disk, no NFS.
"""

import concurrent.futures
import itertools
import pathlib
import queue
import struct
import threading
import zlib
from collections.abc import Callable, Iterable

import lmdb

from offpolicy_rl import types

_MAP_BYTES = 1 << 40  # address space, not disk: the file grows as it is filled
_WAITING = 64  # groups between the wire and the disk; more make their senders wait
_PROGRESS = b"progress"  # key of what `reached` notes; sorts after every group's key
_HEADER = struct.Struct("<iI")  # arrival version, CRC-32 of the payload
_NOTE = struct.Struct("<ii")


class StoreError(OSError):
  """The disk did not take a group (full?), or the file is damaged; names the file."""


class GroupStore:
  """Groups by ticket. The first complete answer to a ticket stays; commits are shared.

  They are kept as the bytes that came over the wire; `decode` reads them. Thread-safe.
  """

  def __init__(self, path: pathlib.Path, *, decode: Callable[[bytes], types.Group]):
    """Opens or creates the directory `path`; StoreError when what is there can't be read."""
    self._path, self._decode = path, decode
    self._env = self._open()
    self._inbox: queue.Queue = queue.Queue(_WAITING)
    self._thread = threading.Thread(target=self._write_batches, name="group-store", daemon=True)
    self._thread.start()

  def _open(self) -> lmdb.Environment:
    try:
      return lmdb.open(str(self._path), map_size=_MAP_BYTES, max_spare_txns=4)
    except lmdb.Error as error:
      raise StoreError(
        f"{self._path}: {error}; move it away to draw its unused groups anew"
      ) from None

  def put(
    self, ticket: types.Ticket, payload: bytes, arrival_version: int
  ) -> concurrent.futures.Future:
    """Starts writing; the future says True: durable now, False: the ticket had an answer before.

    It raises StoreError when the disk refuses. Blocks while too many others wait.
    """
    value = _HEADER.pack(arrival_version, zlib.crc32(payload)) + payload
    future: concurrent.futures.Future = concurrent.futures.Future()
    self._inbox.put((future, _key(ticket.step, ticket.ticket_id), value))
    return future

  def get(self, ticket: types.Ticket) -> types.FinishedGroup | None:
    """The durable answer to a ticket; None when there is none, or a damaged one."""
    with self._env.begin(buffers=True) as transaction:
      value = transaction.get(_key(ticket.step, ticket.ticket_id))
      if value is None:
        return None
      arrival_version, checksum = _HEADER.unpack_from(value)
      payload = bytes(value[_HEADER.size :])
    if zlib.crc32(payload) != checksum:
      return None
    return types.FinishedGroup(ticket, self._decode(payload), arrival_version)

  def reached(self, version: int, next_step: int) -> None:
    """Notes durably that `version` was published and tickets of steps < `next_step` handed out."""
    old = self.progress()
    note = _NOTE.pack(max(old[0], version), max(old[1], next_step))
    self._do(lambda transaction: transaction.put(_PROGRESS, note))

  def progress(self) -> tuple[int, int]:
    """The largest (version, next step) ever noted; (RAW_VERSION, 0) at first."""
    with self._env.begin() as transaction:
      value = transaction.get(_PROGRESS)
    return _NOTE.unpack(value) if value else (types.RAW_VERSION, 0)

  def prune(self, before_step: int, keep: Iterable[str] = ()) -> None:
    """Drops the groups of earlier steps, but those of the tickets `keep`."""
    kept, end = {name.encode() for name in keep}, _key(before_step, "")

    def work(transaction):
      with transaction.cursor() as cursor:
        keys = itertools.takewhile(lambda key: key < end, cursor.iternext(values=False))
        old = [key for key in keys if key.partition(b"/")[2] not in kept]
      for key in old:
        transaction.delete(key)

    self._do(work)

  def clear(self) -> None:
    """Forgets everything: a new run begins."""
    with self._env.begin(write=True) as transaction:
      transaction.drop(self._env.open_db(), delete=False)

  def __len__(self) -> int:
    """Number of groups."""
    with self._env.begin() as transaction:
      return transaction.stat()["entries"] - (transaction.get(_PROGRESS) is not None)

  def close(self) -> None:
    """Writes what waits and closes the file."""
    self._inbox.put(None)
    self._thread.join()
    self._env.close()

  # -- the one thread that writes

  def _do(self, work: Callable) -> None:
    """Runs `work(transaction)` there and waits."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    self._inbox.put((future, work, None))
    future.result()

  def _write_batches(self) -> None:
    while (first := self._inbox.get()) is not None:
      batch = [first]
      while len(batch) < _WAITING and batch[-1] is not None and not self._inbox.empty():
        batch.append(self._inbox.get())
      if batch[-1] is None:
        self._commit(batch[:-1])
        return
      self._commit(batch)

  def _commit(self, batch: list) -> None:
    try:
      with self._env.begin(write=True) as transaction:
        results = [
          what(transaction) if value is None else transaction.put(what, value, overwrite=False)
          for _, what, value in batch
        ]
    except Exception as error:  # nobody may wait for a thread that died
      refusal = StoreError(f"{self._path}: {error} (is the disk full?)")
      for future, _, _ in batch:
        future.set_exception(refusal)
      return
    for (future, _, _), result in zip(batch, results, strict=True):
      future.set_result(result)


def _key(step: int, ticket_id: str) -> bytes:
  """Sorts by step."""
  return b"%010d/%s" % (step, ticket_id.encode())
