"""Worker processes for calls that may hang, crash or hoard memory.

Such a call costs only its own answer: its process is killed with everything that it started, and a
fresh one takes over. Imports count towards no limit, whenever they happen.
"""

import concurrent.futures
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import pathlib
import queue
import signal
import socket
import struct
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

from offpolicy_rl.system import output

_START_SECONDS = 300.0  # to import and prepare; a machine may be busy
_PROC = pathlib.Path("/proc")
# Code without a file, this package, the standard library and what is installed.
_NOT_OF_USERS = ("<", str(pathlib.Path(__file__).parents[1]), *sysconfig.get_paths().values())
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Reasons to replace a process: its memory is used up or it died, which earlier calls may have
# caused; or the call itself is to blame.
_BY_OTHERS, _BY_ITSELF = "others", "itself"
_IMPORTING, _IMPORTED = "importing", "imported"  # messages of a call; no time counts between them


class PoolError(RuntimeError):
  """There is no worker: it can't prepare itself, or the pool is closed."""


class Failed(NamedTuple):
  """The result of a call that gave no answer."""

  reason: str
  late: bool = False  # it ran out of time


class CallLimits(NamedTuple):
  """Limits of the call that runs in this process."""

  end: float  # time.monotonic(); a call that imports gets more
  memory_mb: int  # 0 = none


_CALLS: list[CallLimits] = []  # the newest, in a worker process


def call_limits() -> CallLimits | None:
  """Limits of the call that runs in this process; None in a process that is no worker."""
  return _CALLS[-1] if _CALLS else None


class WorkerPool:
  """Calls functions in worker processes."""

  def __init__(
    self, workers: int, *, prepare: Callable[[], object], time_limit: float, memory_mb: int = 0
  ):
    """Starts the processes without waiting for them.

    Args:
      prepare: called once in every process, before the limits hold; must be picklable.
      time_limit: seconds for one call.
      memory_mb: address space that a process may take beyond that after `prepare`, on Linux; 0 = no
        limit.
    """
    self._all = [Worker(prepare, time_limit, memory_mb) for _ in range(workers)]
    self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in self._all:
      self._idle.put(worker)
    self._threads = concurrent.futures.ThreadPoolExecutor(workers)

  def submit(self, function: Callable, calls: Sequence[tuple]) -> concurrent.futures.Future:
    """Starts `function(*call)` for each call, one after the other in the same worker.

    The future's result is a list of return values or Failed; it raises PoolError without a worker.
    """
    return self._threads.submit(self._answers, function, calls)

  def _answers(self, function: Callable, calls: Sequence[tuple]) -> list:
    worker = self._idle.get()
    try:
      return [worker.answer(function, call) for call in calls]
    finally:
      self._idle.put(worker)

  def close(self) -> None:
    """Ends all processes, and everything that they started, at once."""
    for worker in self._all:
      worker.close()
    self._threads.shutdown(cancel_futures=True)


class Worker:
  """One process, used by one thread at a time; arguments as for `WorkerPool`."""

  def __init__(self, prepare: Callable[[], object], time_limit: float, memory_mb: int):
    self._prepare, self._time_limit, self._memory_mb = prepare, time_limit, memory_mb
    self._lock, self._closed = threading.Lock(), False

    self._ready = self._fresh = False
    self._start()

  def answer(self, function: Callable, call: tuple) -> Any:
    """The function's result, or Failed.

    A call that runs out of memory, or whose process dies, is repeated if the process had served
    others, as it may be their leak. A call that runs out of time is not.
    """
    while True:
      fresh = self._fresh
      answer, spent = self.attempt(function, call)
      if fresh or spent != _BY_OTHERS or not isinstance(answer, Failed):
        return answer

  def attempt(self, function: Callable, call: tuple) -> tuple[Any, str]:
    """(the function's result or Failed, why the process was replaced after it or "").

    Raises:
      PoolError: the process can't prepare itself, or this worker is closed.
    """
    [attempted] = self.attempts(function, [call])
    return attempted

  def attempts(self, function: Callable, calls: Sequence[tuple]) -> Iterator[tuple[Any, str]]:
    """The same for each of several calls, up to one after which the process was replaced.

    They travel in one message. The iterator has to be used up.
    """
    self._wait_until_ready()
    self._fresh = False
    for answer, spent in self._answers(function, calls):
      if spent:
        self._kill()
        self._start()
      yield answer, spent

  def _answers(self, function: Callable, calls: Sequence[tuple]) -> Iterator[tuple[Any, str]]:
    try:
      self._pipe.send((function, calls))
      for _ in calls:
        answer, spent = self._receive()
        yield answer, spent
        if spent:
          return
    except BlockingIOError:  # of `_end_waits`; what earlier calls have left running may stop it
      reason = f"it stopped in a message for {self._time_limit:g} s"
      yield Failed(reason, late=True), _BY_OTHERS
    except (EOFError, OSError):
      yield Failed(f"its process died{self._exit_code()}"), _BY_OTHERS

  def _receive(self) -> tuple[Any, str]:
    """The next answer, if it comes in time."""
    left, importing, since = self._time_limit, False, time.monotonic()
    while self._pipe.poll(_START_SECONDS if importing else max(0.0, left)):
      received = self._pipe.recv()
      if received not in (_IMPORTING, _IMPORTED):
        return received
      now = time.monotonic()
      left, since = left if importing else left - (now - since), now
      importing = received == _IMPORTING
    return Failed(f"not done after {self._time_limit:g} s", late=True), _BY_ITSELF

  def _exit_code(self) -> str:
    self._process.join(1.0)
    code = self._process.exitcode
    return "" if code is None else f", exit code {code}"

  def _start(self) -> None:
    # "spawn": forking a process that runs JAX threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with self._lock:
      if self._closed:
        raise PoolError("the pool is closed")
      self._pipe, theirs = context.Pipe()
      _end_waits(self._pipe, self._time_limit)
      arguments = (theirs, self._prepare, self._time_limit, self._memory_mb)
      self._process = context.Process(target=_serve, args=arguments, daemon=True)
      self._process.start()
      theirs.close()
    self._ready, self._fresh = False, True

  def _wait_until_ready(self) -> None:
    if self._ready:
      return
    try:
      done = self._pipe.poll(_START_SECONDS)
      problem = self._pipe.recv() if done else f"not done after {_START_SECONDS:g} s"
    except (EOFError, OSError):
      problem = f"its process died{self._exit_code()}"
    if problem is not None:
      raise PoolError(f"a worker process can't prepare itself: {problem}")
    self._ready = True

  def _kill(self) -> None:
    assert self._process.pid is not None, "it was started"
    _kill_all(self._process.pid)
    self._process.kill()
    self._process.join()

  def close(self) -> None:
    """Ends the process, and everything that it started, at once."""
    with self._lock:
      self._closed = True
      self._kill()


def _end_waits(pipe: Any, seconds: float) -> None:
  """Makes a pipe raise BlockingIOError when the other end stops in the middle of a message.

  `poll` knows when a message begins, but one that is large takes as long as the other end likes.
  """
  timeval = struct.pack("ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
  with socket.socket(fileno=os.dup(pipe.fileno())) as end:
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
      end.setsockopt(socket.SOL_SOCKET, option, timeval)


def _serve(pipe, prepare: Callable[[], object], time_limit: float, memory_mb: int) -> None:
  """Runs in the process: prepares, sends None or the problem, answers calls until it is killed."""
  _end_with_parent()
  output.guard()  # what a call prints must neither fail it nor take its time
  output.in_background()
  try:
    prepare()
  except BaseException as error:
    pipe.send(_describe(error))
    return
  memory = _MemoryLimit(memory_mb)
  _exempt_imports(memory, pipe.send)
  with contextlib.suppress(BrokenPipeError):  # the starter is gone
    pipe.send(None)
    _answer_calls(pipe, time_limit, memory)


def _answer_calls(pipe, time_limit: float, memory: "_MemoryLimit") -> None:
  pid = os.getpid()
  while True:
    try:
      function, calls = pipe.recv()
    except EOFError:  # the starter is gone
      return
    for call in calls:
      _CALLS[:] = [CallLimits(time.monotonic() + time_limit, memory.mb)]
      answer, spent = _attempt(function, call)
      if os.getpid() != pid:  # a fork by the call: its answer would be taken for that of the next
        os._exit(0)
      spent = spent or (_BY_OTHERS if memory.is_short() else "")
      pipe.send((answer, spent))
      if spent:
        break


class _MemoryLimit:
  def __init__(self, memory_mb: int):
    """Limits address space to so much more than is in use now, on Linux; 0 = no limit."""
    self.mb = memory_mb
    self._more = (memory_mb << 20) if (_PROC / "self/statm").exists() else 0
    self._taken = _taken()
    self._limit(self._taken + self._more)

  def _limit(self, size: int | None) -> None:
    if self._more:
      import resource  # not on every system

      _, hard = resource.getrlimit(resource.RLIMIT_AS)
      resource.setrlimit(resource.RLIMIT_AS, (hard if size is None else size, hard))

  def is_short(self) -> bool:  # earlier calls have kept too much
    return bool(self._more) and _taken() > self._taken + self._more / 2

  @contextlib.contextmanager
  def exempt(self) -> Generator[None]:
    before = _taken()
    self._limit(None)
    try:
      yield
    finally:
      self._taken += _taken() - before
      self._limit(self._taken + self._more)


def _exempt_imports(memory: _MemoryLimit, say: Callable[[str], None]) -> None:
  """Makes imports count towards no limit: many happen in the first call."""
  bootstrap: Any = importlib._bootstrap
  main, depth = threading.main_thread(), 0
  find_and_load = bootstrap._find_and_load  # called for any kind of import of a new module

  def outside_of_limits(*arguments):
    nonlocal depth
    if depth or threading.current_thread() is not main:
      return find_and_load(*arguments)
    depth = 1
    say(_IMPORTING)
    try:
      with memory.exempt():
        return find_and_load(*arguments)
    finally:
      depth = 0
      say(_IMPORTED)

  bootstrap._find_and_load = outside_of_limits


def _attempt(function: Callable, call: tuple):
  """(answer, why the process has to be replaced or "")."""
  try:
    return function(*call), ""
  except MemoryError as error:
    return Failed(_describe(error)), _BY_OTHERS
  except BaseException as error:  # SystemExit, too; as text, because pickling may fail
    return Failed(_describe(error), late=isinstance(error, TimeoutError)), ""


def _describe(error: BaseException) -> str:
  try:
    return f"{type(error).__name__}: {error!s:.200}{_where(error)}"
  except Exception:  # of a __str__ that fails itself
    return f"{type(error).__name__}{_where(error)}"


def _where(error: BaseException) -> str:
  """The innermost line in a file of the user's; "" if there is none."""
  found, at = "", error.__traceback__
  while at is not None:
    file = at.tb_frame.f_code.co_filename
    if not file.startswith(_NOT_OF_USERS):
      found = f" ({file}, line {at.tb_lineno})"
    at = at.tb_next
  return found


def _taken() -> int:
  with contextlib.suppress(FileNotFoundError):
    return int((_PROC / "self/statm").read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  return 0  # unknown


def _end_with_parent() -> None:
  """Makes this process and all that it starts end when its parent does, even by SIGKILL.

  A small child waits for that, because this process itself may be in C code then.
  """
  os.setsid()
  with contextlib.suppress(OSError, AttributeError):  # Linux: orphans of what a call starts
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # stay below this process
  pid, starter = os.getpid(), multiprocessing.parent_process()
  assert starter is not None
  parent = starter.sentinel
  with warnings.catch_warnings(action="ignore"):  # of threads; the child runs nothing of theirs
    if os.fork():
      return
  os.closerange(0, parent)  # above all the pipes: their ends tell that this process died
  os.closerange(parent + 1, os.sysconf("SC_OPEN_MAX"))
  os.read(parent, 1)
  _kill_all(pid)


def _kill_all(leader: int) -> None:
  for pid in _descendants(leader) - {os.getpid()}:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # of another user, by sudo
      os.kill(pid, signal.SIGKILL)
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(leader, signal.SIGKILL)


def _descendants(ancestor: int) -> set[int]:
  parents = {}
  for file in _PROC.glob("[0-9]*/stat"):
    with contextlib.suppress(OSError, ValueError, IndexError):  # it may end meanwhile
      # The name in parentheses is any bytes, a part of a character, too.
      parents[int(file.parent.name)] = int(file.read_bytes().rpartition(b")")[2].split()[1])
  family = {ancestor}
  while more := {pid for pid, parent in parents.items() if parent in family} - family:
    family |= more
  return family - {ancestor}
