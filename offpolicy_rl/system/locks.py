"""One learner per directory: a lock that ends with its process, and a lease for other machines.

`lock.json` in the directory names the holder, which locks the file (flock); the kernel ends that
lock with the process. That is enough on file systems with locks (local disks, NFS). For those
without (buckets), the holder also renews the file's content, and a learner on another machine first
watches whether it is renewed.
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
from collections.abc import Callable, Generator
from typing import NamedTuple, NoReturn

from etils import epath

FILE = "lock.json"
_RENEW_SECONDS = 10.0
_LEASE_SECONDS = 60.0  # without renewal the holder is dead; mounted buckets lag by a minute
_BYTES = 512  # constant length of a file that is rewritten in place, so that it is never empty
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")


class Held(RuntimeError):
  """Another learner holds the directory; names it, and says what to do."""


class Holder(NamedTuple):
  """The process that holds a directory."""

  host: str
  machine: str  # this boot of its kernel, within which locks count
  pid: int
  since: str
  token: str  # random, of this process
  renewed: float  # seconds since 1970

  def __str__(self) -> str:
    return f"host {self.host}, process {self.pid}, since {self.since}"


@contextlib.contextmanager
def hold(directory: str, flag: str, lost: Callable[[str], None]) -> Generator[None]:
  """Holds a directory, which is created if it is missing.

  Args:
    directory: local, mounted, or in a bucket (gs://).
    flag: the flag that named it, for messages.
    lost: called with a line when another learner took the directory over because this process did
      not renew its lease for long (a machine that slept): it must write nothing more.

  Raises:
    Held: another learner holds it.
    OSError: it can't be created or written.
  """
  with _lock_file(directory) as file:
    lease, done = _Lease(file, directory, flag), threading.Event()
    lease.take()
    renewer = threading.Thread(target=lease.keep, args=(done, lost), daemon=True, name="lease")
    renewer.start()
    try:
      yield
    finally:
      done.set()
      renewer.join(_RENEW_SECONDS)
      lease.give_back()


@contextlib.contextmanager
def _lock_file(directory: str) -> Generator["_File | _Object"]:
  """The lock file of a directory, which is created if missing, and removed if it stays empty."""
  if "://" in directory:
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    yield _Object(epath.Path(directory) / FILE)
    return
  path = pathlib.Path(directory)
  is_new = not path.exists()
  path.mkdir(parents=True, exist_ok=True)
  file = _File(path / FILE)
  try:
    yield file
  finally:
    file.close()
    if is_new:
      with contextlib.suppress(OSError):
        path.rmdir()


class _Lease:
  def __init__(self, file: "_File | _Object", directory: str, flag: str):
    host = socket.gethostname()
    machine = _BOOT.read_text(encoding="utf-8").strip() if _BOOT.exists() else host
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    self._file, self._directory, self._flag = file, directory, flag
    self._holder = Holder(host, machine, os.getpid(), since, secrets.token_hex(8), time.time())

  def take(self) -> None:
    locked, holder = self._file.lock(), self._file.read()
    if locked is False:
      self._refuse(holder or self._read_again())
    if holder is not None and not (locked and holder.machine == self._holder.machine):
      self._wait_for_its_end(holder)
    self._file.write(self._holder)
    if not locked:  # of two that start together, the last to write stays
      time.sleep(min(2.0, _LEASE_SECONDS / 2))
      if (other := self._other()) is not None:
        self._refuse(other)

  def _refuse(self, holder: Holder | None) -> NoReturn:
    raise Held(
      f"{self._flag}: a learner is at work in {self._directory} "
      f"({holder or 'not named yet'}); wait for its end or end it, or choose "
      "another directory for a second one"
    )

  def _read_again(self) -> Holder | None:
    time.sleep(0.3)  # it may have been about to write its name
    return self._file.read()

  def _wait_for_its_end(self, holder: Holder) -> None:
    """Returns when a holder on another machine is dead; raises Held if it renews its lease.

    Clocks are not trusted: those of hosts differ, and jump.
    """
    print(
      f"{self._flag}: {self._directory} was left by a learner of another machine ({holder}); "
      f"watching for {_LEASE_SECONDS:.0f} s whether it is alive",
      file=sys.stderr,
    )
    end = time.monotonic() + _LEASE_SECONDS
    while time.monotonic() < end:
      time.sleep(min(1.0, _LEASE_SECONDS / 4))
      now = self._file.read() or self._read_again()
      if now is None:  # it has ended in order
        return
      if now != holder:
        self._refuse(now)

  def _other(self) -> Holder | None:
    now = self._file.read()
    return now if now is not None and now.token != self._holder.token else None

  def keep(self, done: threading.Event, lost: Callable[[str], None]) -> None:
    while not done.wait(_RENEW_SECONDS):
      with contextlib.suppress(OSError):  # a full disk or an absent server: the next time
        if (other := self._other()) is not None:
          lost(f"{self._directory} was taken over by another learner ({other}); ending this one")
          return
        self._file.write(self._holder._replace(renewed=time.time()))

  def give_back(self) -> None:
    with contextlib.suppress(OSError):
      if self._other() is None:
        self._file.remove()


def _read(path) -> Holder | None:
  """The holder in a file; None if there is none. Opens the file anew, else NFS serves its cache."""
  try:
    return Holder(**json.loads(path.read_bytes()))
  except (FileNotFoundError, ValueError, TypeError):
    return None


class _File:
  def __init__(self, path: pathlib.Path):
    self._path, self._handle = path, -1

  def close(self) -> None:
    if self._handle >= 0:
      os.close(self._handle)

  def lock(self) -> bool | None:
    """True = locked until this process ends, False = another's, None = no locks on this system."""
    while True:
      self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return False
      except OSError:
        return None
      # Its holder may have removed the file after we opened and before we locked it.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(self._handle), self._path.stat()):
          return True
      os.close(self._handle)

  def read(self) -> Holder | None:
    return _read(self._path)

  def write(self, holder: Holder) -> None:
    """Writes in place: a new file would not be the locked one."""
    os.pwrite(self._handle, json.dumps(holder._asdict()).ljust(_BYTES).encode(), 0)
    os.fsync(self._handle)

  def remove(self) -> None:
    self._path.unlink()


class _Object:
  """A lock file in a bucket, with the interface of `_File`."""

  def __init__(self, path: epath.Path):
    self._path = path

  def lock(self) -> None:  # buckets have no locks
    pass

  def read(self) -> Holder | None:
    return _read(self._path)

  def write(self, holder: Holder) -> None:
    self._path.write_text(json.dumps(holder._asdict()), encoding="utf-8")

  def remove(self) -> None:
    self._path.unlink()
