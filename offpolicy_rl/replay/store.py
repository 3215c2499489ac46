"""Finished groups on the learner's disk: "accepted" means that a crash can't lose the group.

Messages of the wire are kept as they came, with an index of the groups in them: nothing is encoded
again, and large arrays are not copied.

LMDB and not SQLite: messages are written once, groups are read at most once, and long completions
make them large (100 kB and more). SQLite's write-ahead log writes each byte twice and is slower
(260 MB/s against 1,090, benchmarks/README.md). LMDB commits are atomic, synced to disk, and need no
repair after a crash. It needs a local disk, not NFS.
"""

import concurrent.futures
import contextlib
import itertools
import pathlib
import queue
import struct
import threading
from collections.abc import Callable, Iterable, Sequence

import lmdb

from offpolicy_rl import types

# Address space, not disk: the file grows as it fills. Less if `ulimit -v` allows no more.
_MAP_BYTES = (1 << 40, 1 << 36, 1 << 33, 1 << 30)
_DAMAGED = (
  lmdb.CorruptedError,
  lmdb.InvalidError,
  lmdb.VersionMismatchError,
  lmdb.PageNotFoundError,
)
_WAITING = 16  # messages between the wire and the disk; more make their senders wait
_PROGRESS, _FORMAT = b"progress", b"format"  # keys of notes
_NOTE = struct.Struct("<ii")
_NUMBER = struct.Struct(">Q")  # of a message; sorts
_PLACE = struct.Struct("<QIi")  # message, index of the group in it, arrival version


class StoreError(OSError):
  """The disk did not take a group (full?), or the file is damaged; names the file."""


class GroupStore:
  """Groups by ticket. The first complete answer to a ticket stays; commits are shared.

  `decode(message, index)` reads one group of a message; ValueError if it is damaged.
  Thread-safe.
  """

  def __init__(self, path: pathlib.Path, *, decode: Callable[[bytes, int], types.Group]):
    """Opens or creates the directory `path`; StoreError if its content can't be read."""
    self._path, self._decode = path, decode
    try:
      self._env = _open(path)
      self._messages = self._env.open_db(b"messages")  # number -> bytes
      self._places = self._env.open_db(b"groups")  # step and ticket id -> place
      self._notes = self._env.open_db(b"notes")
    except lmdb.Error as error:
      hint = "; move it away to sample its groups again" if isinstance(error, _DAMAGED) else ""
      raise StoreError(f"{path}: {str(error).removeprefix(f'{path}: ')}{hint}") from None
    self._inbox: queue.Queue = queue.Queue(_WAITING)
    self._entering, self._closed = threading.Lock(), False
    self._thread = threading.Thread(target=self._write_batches, name="group-store", daemon=True)
    self._thread.start()

  def put(
    self, message: bytes, answers: Sequence[tuple[int, types.Ticket]], arrival_version: int
  ) -> concurrent.futures.Future:
    """Starts writing a message; `answers`: indices of its groups and the tickets they answer.

    The future's result for each answer: True = durable now, False = the ticket had one before. It
    raises StoreError if the disk refuses. Blocks while too many others wait.
    """
    keys = [(index, _key(ticket.step, ticket.ticket_id)) for index, ticket in answers]

    def write(transaction) -> list[bool]:
      with transaction.cursor(self._messages) as cursor:
        number = _NUMBER.unpack(cursor.key())[0] + 1 if cursor.last() else 0
      new = [
        transaction.put(
          key, _PLACE.pack(number, index, arrival_version), overwrite=False, db=self._places
        )
        for index, key in keys
      ]
      if any(new):
        transaction.put(_NUMBER.pack(number), message, append=True, db=self._messages)
      return new

    return self._enqueue(write)

  def get(self, ticket: types.Ticket) -> types.FinishedGroup | None:
    """The durable answer to a ticket; None if there is none, or it is damaged."""
    with self._env.begin() as transaction:
      place = transaction.get(_key(ticket.step, ticket.ticket_id), db=self._places)
      if place is None:
        return None
      number, index, arrival_version = _PLACE.unpack(place)
      message = transaction.get(_NUMBER.pack(number), b"", db=self._messages)
    try:
      return types.FinishedGroup(ticket, self._decode(message, index), arrival_version)
    except ValueError:
      return None

  def reached(self, version: int, next_step: int) -> None:
    """Notes durably that `version` was published and tickets of steps < `next_step` handed out."""
    old = self.progress()
    note = _NOTE.pack(max(old[0], version), max(old[1], next_step))
    self._enqueue(lambda transaction: transaction.put(_PROGRESS, note, db=self._notes)).result()

  def progress(self) -> tuple[int, int]:
    """The largest (version, next step) ever noted; (RAW_VERSION, 0) at first."""
    with self._env.begin() as transaction:
      value = transaction.get(_PROGRESS, db=self._notes)
    return _NOTE.unpack(value) if value else (types.RAW_VERSION, 0)

  def prune(self, before_step: int, keep: Iterable[str] = ()) -> None:
    """Drops the groups of earlier steps, except those of the tickets `keep`."""
    kept, end = {name.encode() for name in keep}, _key(before_step, "")

    def write(transaction) -> None:
      with transaction.cursor(self._places) as cursor:
        keys = itertools.takewhile(lambda key: key < end, cursor.iternext(values=False))
        old = [key for key in keys if key.partition(b"/")[2] not in kept]
      for key in old:
        transaction.delete(key, db=self._places)
      with transaction.cursor(self._places) as cursor:
        needed = {_PLACE.unpack(place)[0] for place in cursor.iternext(keys=False)}
      with transaction.cursor(self._messages) as cursor:
        numbers = list(cursor.iternext(values=False))
      for number in numbers:
        if _NUMBER.unpack(number)[0] not in needed:
          transaction.delete(number, db=self._messages)

    self._enqueue(write).result()

  def clear(self, form: int) -> None:
    """Drops everything for a new run, whose messages have this form."""
    with self._env.begin(write=True) as transaction:
      for table in (self._messages, self._places, self._notes):
        transaction.drop(table, delete=False)
      transaction.put(_FORMAT, b"%d" % form, db=self._notes)

  def claim(self, form: int) -> None:
    """Continues a run; StoreError if its groups have another form, which `decode` can't read."""
    with self._env.begin(write=True) as transaction:
      noted = int(transaction.get(_FORMAT, b"0", db=self._notes))
      if noted != form and transaction.stat(self._places)["entries"]:
        raise StoreError(
          f"{self._path}: groups of form {noted}, expected {form}: another release wrote them; "
          "finish the run with that one, or move them away to sample them again"
        )
      transaction.put(_FORMAT, b"%d" % form, db=self._notes)

  def __len__(self) -> int:
    with self._env.begin() as transaction:
      return transaction.stat(self._places)["entries"]

  def close(self) -> None:
    """Writes waiting messages and closes the file; later ones get a StoreError."""
    with self._entering:
      self._closed = True
      self._inbox.put(None)
    self._thread.join()
    self._env.close()

  def _enqueue(self, write: Callable) -> concurrent.futures.Future:
    """Runs `write(transaction)` in the writing thread -> future of its result, durable by then."""
    future: concurrent.futures.Future = concurrent.futures.Future()
    with self._entering:
      if self._closed:
        future.set_exception(StoreError(f"{self._path}: is closed, as the run ends"))
      else:
        self._inbox.put((future, write))
    return future

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
        results = [write(transaction) for _, write in batch]
    except Exception as error:  # the thread must survive, as others wait for it
      refusal = StoreError(f"{self._path}: {error} (is the disk full?)")
      for future, _ in batch:
        future.set_exception(refusal)
      return
    for (future, _), result in zip(batch, results, strict=True):
      future.set_result(result)


def _key(step: int, ticket_id: str) -> bytes:  # sorts by step
  return b"%010d/%s" % (step, ticket_id.encode())


def _open(path: pathlib.Path) -> lmdb.Environment:
  for size in _MAP_BYTES:
    with contextlib.suppress(lmdb.MemoryError):
      return lmdb.open(str(path), map_size=size, max_spare_txns=4, max_dbs=3)
  raise StoreError(
    f"{path}: {_MAP_BYTES[-1] >> 20} MiB of address space are not available; raise `ulimit -v`"
  )
