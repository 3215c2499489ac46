"""One learner per directory: a lock that dies with its process, and a lease for other machines.

`lock.json` in the directory says who holds it. Its holder locks the file (flock), which the kernel
undoes when the process ends, however it ends; where the file system passes that on (local disks,
NFS), it is all there is to it. For those that do not (buckets), the holder also renews what is in
the file, and whoever comes from another machine first looks whether it does.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

FILE = "lock.json"
_RENEW_SECONDS = 10.0
_LEASE_SECONDS = 60.0  # without renewal: dead. Mounted buckets show changes a minute late
_BYTES = 512  # of a file that is written in place: always as long, never empty in between
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Held(RuntimeError):
  """Somebody else holds the directory; says who, since when, and what to do."""


class Holder(NamedTuple):
  """Who holds a directory."""

  host: str
  machine: str  # this start of its kernel: where the kernel's locks count
  pid: int
  since: str
  token: str  # of this one process, at random
  renewed: float  # seconds since 1970

  def says(self) -> str:
    """For people."""
    return f"host {self.host}, process {self.pid}, since {self.since}"


@contextlib.contextmanager
def hold(directory: str, flag: str, lost: Callable[[str], None]) -> Iterator[None]:
  """Nobody else holds the directory meanwhile; it is made where it is not there.

  Args:
    directory: local, mounted, or in a bucket (gs://).
    flag: that named it, for messages.
    lost: called with a line when somebody took it over, because we gave no sign of life for long (a
      machine that slept): this process must write nothing more.

  Raises:
    Held: somebody does.
    OSError: it can't be made or written.
  """
  us, over = _ourselves(), threading.Event()
  with _file(directory) as file:
    _take(file, us, directory, flag)
    renewer = threading.Thread(
      target=_keep_renewing, args=(file, us, over, directory, lost), daemon=True, name="lease"
    )
    renewer.start()
    try:
      yield
    finally:
      over.set()
      renewer.join(_RENEW_SECONDS)
      _leave(file, us)


@contextlib.contextmanager
def _file(directory: str) -> Iterator["_File | _Object"]:
  """The lock file of a directory, which is made if need be and goes if it stays empty."""
  if "://" in directory:
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    yield _Object(epath.Path(directory) / FILE)
    return
  place = pathlib.Path(directory)
  made = not place.exists()
  place.mkdir(parents=True, exist_ok=True)
  file = _File(place / FILE)
  try:
    yield file
  finally:
    file.close()
    if made:
      with contextlib.suppress(OSError):
        place.rmdir()


def _take(file: "_File | _Object", us: Holder, directory: str, flag: str) -> None:
  locked = file.lock()
  holder = file.read()
  if locked is False:
    raise Held(_refusal(directory, flag, holder or _soon(file)))
  if holder is not None and not (locked and holder.machine == us.machine):
    _see_whether_it_lives(file, holder, directory, flag)
  file.write(us)
  if not locked:
    _settle(file, us, directory, flag)


def _leave(file: "_File | _Object", us: Holder) -> None:
  with contextlib.suppress(OSError):
    now = file.read()
    if now is None or now.token == us.token:
      file.remove()


def _ourselves() -> Holder:
  machine = _BOOT.read_text().strip() if _BOOT.exists() else socket.gethostname()
  since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  return Holder(
    socket.gethostname(), machine, os.getpid(), since, secrets.token_hex(8), time.time()
  )


def _refusal(directory: str, flag: str, holder: Holder | None) -> str:
  who = holder.says() if holder else "one that has not said yet who it is"
  return (
    f"{flag}: a learner is at work in {directory} ({who}); wait for its end or end it, or choose "
    "another directory for a second one"
  )


def _see_whether_it_lives(file, holder: Holder, directory: str, flag: str) -> None:
  """Returns when a holder of another machine is dead; Held when it renews its lease.

  Clocks are not believed: those of hosts differ, and jump.
  """
  print(
    f"{flag}: {directory} was left by a learner of another machine ({holder.says()}); seeing for "
    f"{_LEASE_SECONDS:.0f} s whether it lives",
    file=sys.stderr,
  )
  end = time.monotonic() + _LEASE_SECONDS
  while time.monotonic() < end:
    time.sleep(min(1.0, _LEASE_SECONDS / 4))
    now = file.read() or _soon(file)
    if now is None:  # it has ended in order
      return
    if now != holder:
      raise Held(_refusal(directory, flag, now))


def _soon(file) -> Holder | None:
  """Who is in it a moment later, where nobody was: it may have been about to be written."""
  time.sleep(0.3)
  return file.read()


def _settle(file, us: Holder, directory: str, flag: str) -> None:
  """Of two that came at once where no lock is, the last one to write stays."""
  time.sleep(min(2.0, _LEASE_SECONDS / 2))
  now = file.read()
  if now is not None and now.token != us.token:
    raise Held(_refusal(directory, flag, now))


def _keep_renewing(
  file, us: Holder, over: threading.Event, directory: str, lost: Callable[[str], None]
) -> None:
  while not over.wait(_RENEW_SECONDS):
    with contextlib.suppress(OSError):  # a full disk or an absent server: the next time
      now = file.read()
      if now is not None and now.token != us.token:
        lost(f"{directory} was taken over by another learner ({now.says()}); ending this one")
        return
      file.write(us._replace(renewed=time.time()))


def _read(path) -> Holder | None:
  """Who is in a file; None where nobody is, or nobody of ours. Opened anew: NFS looks only then."""
  try:
    return Holder(**json.loads(path.read_bytes()))
  except (FileNotFoundError, ValueError, TypeError):
    return None


class _File:
  """In a directory of this machine, or a mounted one."""

  def __init__(self, path: pathlib.Path):
    self._path, self._handle = path, -1

  def close(self) -> None:
    """And unlocks."""
    if self._handle >= 0:
      os.close(self._handle)

  def lock(self) -> bool | None:
    """True: ours until the process ends; False: another's; None: no locks in this file system."""
    while True:
      self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return False
      except OSError:
        return None
      # Its holder may have removed the file between our opening and locking it.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(self._handle), self._path.stat()):
          return True
      os.close(self._handle)

  def read(self) -> Holder | None:
    """Who is in it."""
    return _read(self._path)

  def write(self, holder: Holder) -> None:
    """In place: a new file would not be the locked one."""
    os.pwrite(self._handle, json.dumps(holder._asdict()).ljust(_BYTES).encode(), 0)
    os.fsync(self._handle)

  def remove(self) -> None:
    """Still locked."""
    self._path.unlink()


class _Object:
  """In a bucket; as `_File`."""

  def __init__(self, path: epath.Path):
    self._path = path

  def lock(self) -> None:
    """There are none."""

  def read(self) -> Holder | None:
    """Who is in it."""
    return _read(self._path)

  def write(self, holder: Holder) -> None:
    """Buckets replace the whole."""
    self._path.write_text(json.dumps(holder._asdict()))

  def remove(self) -> None:
    """So that the next one need not wait."""
    self._path.unlink()
