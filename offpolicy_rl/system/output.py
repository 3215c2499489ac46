r"""Standard output and error that can't stop or hang a program.

A reader may go away (`| head`, a closed terminal), stop reading (Ctrl-S, a dead collector), or its
disk may be full; a stream may be closed from the start, or know ASCII only. None of that may end a
run. Text that can't be written is dropped; characters that can't be encoded are written as
\\u....
"""

import atexit
import collections
import contextlib
import io
import logging
import os
import select
import signal
import sys
import threading
import time

from rich.console import Console

_MAX_BYTES = 1 << 20  # waiting for a slow reader; more is dropped
_STALLED_SECONDS = 2.0  # without a byte read at the end, before the rest is dropped
_LONGEST_WRITE = 4096  # bytes that a pipe with room takes at once


def console(*, soft_wrap: bool = True) -> Console:
  """A console that prints text as it is, with its brackets and colons."""
  return Console(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap)


def set_up_logging(*, verbose: bool) -> None:
  """Logs to standard error; without `verbose`, only warnings and errors."""
  level = logging.INFO if verbose else logging.WARNING
  logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
  if not verbose:  # Orbax logs errors that it raises, too; the command prints them
    for handler in logging.getLogger().handlers:
      handler.addFilter(lambda record: record.name != "absl" or not record.exc_info)


def guard() -> None:
  """Opens descriptors 0 to 2 if they are closed, and makes `print` never raise.

  For commands whose output is secondary. Changes only the process's own streams.
  """
  _open_closed()
  with contextlib.suppress(ValueError, AttributeError):  # another thread's; not on Windows
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # `stty tostop` would stop a background job
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if stream is not None and stream is getattr(sys, f"__{name}__"):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
      raw = io.BufferedWriter(_Raw(stream.fileno()))
      text = io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)
      setattr(sys, name, text)


def in_background() -> None:
  """After `guard`: writes in a thread, so that nothing waits for a reader who does not read."""
  queues: dict[tuple, _Queue] = {}
  for name in ("stdout", "stderr"):
    raw = _raw_of(getattr(sys, name))
    if raw is not None:
      status = os.fstat(raw.fileno())
      queue = queues.setdefault((status.st_dev, status.st_ino), _Queue())
      queue.descriptors.append((raw.number, raw.fileno()))
      raw.queue = queue
  for queue in queues.values():
    queue.start()
    atexit.register(queue.drain)
    _QUEUES.append(queue)


def strict() -> None:
  """After `guard`: makes failed writes raise, for a command that only prints."""
  raw = _raw_of(sys.stdout)
  if raw is not None:
    raw.strict = True


def problem() -> OSError | None:
  """The error of the first failed write to standard output, if any."""
  raw = _raw_of(sys.stdout)
  return raw.problem if raw is not None else None


def drain() -> None:
  """Waits until background output is written, as long as it is read. Call before `os._exit`."""
  for queue in _QUEUES:
    queue.drain()


_QUEUES: list["_Queue"] = []


def _open_closed() -> None:
  """Opens closed descriptors: the next opened file would become standard output."""
  for number, mode, name in ((0, "r", "stdin"), (1, "w", "stdout"), (2, "w", "stderr")):
    try:
      os.fstat(number)
    except OSError:
      nowhere = os.open(os.devnull, os.O_RDWR)
      if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
      os.set_inheritable(number, True)
    if getattr(sys, name) is None:
      stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
      setattr(sys, name, stream)


def _raw_of(stream) -> "_Raw | None":
  raw = getattr(getattr(stream, "buffer", None), "raw", None)
  return raw if isinstance(raw, _Raw) else None


class _Raw(io.RawIOBase):
  def __init__(self, number: int):
    self.number, self._copy = number, os.dup(number)
    self.strict = False
    self.problem: OSError | None = None
    self.queue: _Queue | None = None

  def fileno(self) -> int:
    """A copy of the standard descriptor, which may be redirected meanwhile."""
    return self._copy

  def isatty(self) -> bool:
    return os.isatty(self._copy)

  def writable(self) -> bool:
    return True

  def write(self, data) -> int:
    data = bytes(data)
    if self.queue is not None and self.queue.put(self._copy, data):
      return len(data)
    try:
      _write(self._copy, data)
    except OSError as error:
      self.problem = self.problem or error
      if self.strict:
        self.strict = False  # raises once: buffers are flushed again at the end
        raise
    return len(data)


def _write(descriptor: int, data: bytes) -> None:
  """Writes everything, even if another process made the file non-blocking."""
  while data:
    try:
      data = data[os.write(descriptor, data[:_LONGEST_WRITE]) :]
    except BlockingIOError:
      select.select([], [descriptor], [])


class _Queue:
  def __init__(self):
    self.descriptors: list[tuple[int, int]] = []  # (standard one, our copy)
    self._waiting: collections.deque[tuple[int, bytes]] = collections.deque()
    self._bytes, self._dropped = 0, 0
    self._moved = time.monotonic()  # time of the last write
    self._closed = False
    self._changed = threading.Condition()
    self._process = os.getpid()

  def start(self) -> None:
    threading.Thread(target=self._run, name="output", daemon=True).start()

  def put(self, descriptor: int, data: bytes) -> bool:
    """Queues data; returns False in a forked process, which lacks the thread."""
    if os.getpid() != self._process:
      return False
    with self._changed:
      if not self._waiting:
        self._moved = time.monotonic()
      if self._closed or self._bytes + len(data) > _MAX_BYTES:
        self._dropped += data.count(b"\n")
      else:
        self._waiting.append((descriptor, data))
        self._bytes += len(data)
        self._changed.notify_all()
    return True

  def drain(self) -> None:
    """Returns when everything is written, or nobody reads; later output may be dropped."""
    begun = time.monotonic()
    with self._changed:
      while self._waiting and time.monotonic() - max(self._moved, begun) < _STALLED_SECONDS:
        self._changed.wait(0.05)
      self._closed = bool(self._waiting)

  def _run(self) -> None:
    while True:
      with self._changed:
        while not self._waiting:
          self._changed.wait()
        descriptor, data = self._waiting[0]
      for start in range(0, len(data), _LONGEST_WRITE):
        with contextlib.suppress(OSError):  # no reader, or no space
          _write(descriptor, data[start : start + _LONGEST_WRITE])
        self._wait_for_room(descriptor)
        self._moved = time.monotonic()
      self._written(data, descriptor)

  def _wait_for_room(self, descriptor: int) -> None:
    """Waits for the reader, while direct writes of C libraries go to /dev/null.

    Otherwise they would block in the middle of a write, holding locks.
    """
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    if room.poll(0):
      return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, _ in self.descriptors:
      os.dup2(nowhere, number)
    os.close(nowhere)
    room.poll()
    for number, copy in self.descriptors:
      os.dup2(copy, number)

  def _written(self, data: bytes, descriptor: int) -> None:
    with self._changed:
      self._waiting.popleft()
      self._bytes -= len(data)
      if self._dropped and not self._waiting:
        lost = f"... {self._dropped} lines are missing here: nobody read them in time\n".encode()
        self._dropped = 0
        self._waiting.append((descriptor, lost))
        self._bytes += len(lost)
      self._changed.notify_all()
