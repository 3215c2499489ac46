"""What can go wrong: a proxy that cuts, slows and damages, a disk that fills, a jumping clock."""

import contextlib
import os
import pathlib
import random
import select
import socket
import subprocess
import threading
import time
from collections.abc import Sequence

CLOCK_HOOK = '''"""Makes Python's wall clock jump by the seconds in a file.

gRPC hands deadlines made of it to C code that reads the real clock, so gRPC sees the real one, too.
"""

import os
import sys
import time

_real, _file = time.time, os.environ["CHAOS_CLOCK"]


def _jumping():
  if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
    return _real()
  try:
    with open(_file) as file:
      return _real() + float(file.read() or 0)
  except (OSError, ValueError):
    return _real()


time.time = _jumping
'''


class Proxy:
  """Forwards TCP connections to `target`; what it does to them can be changed at any time."""

  def __init__(self, draw: random.Random):
    self.target: tuple[str, int] | None = None
    self.delay = 0.0  # seconds before each chunk
    self.refusing = False  # new connections are closed at once
    self.corrupt = 0  # so many of the next chunks get one bit changed
    self._draw = draw
    self._pairs: set[tuple[socket.socket, socket.socket]] = set()
    self._lock = threading.Lock()
    self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
    threading.Thread(target=self._accept, daemon=True).start()

  def cut(self) -> None:
    """Ends every connection there is."""
    with self._lock:
      pairs = list(self._pairs)
    for pair in pairs:
      for end in pair:
        with contextlib.suppress(OSError):
          end.shutdown(socket.SHUT_RDWR)

  def _accept(self) -> None:
    while True:
      client, _ = self._listener.accept()
      threading.Thread(target=self._serve, args=(client,), daemon=True).start()

  def _serve(self, client: socket.socket) -> None:
    try:
      if self.refusing or self.target is None:
        return
      server = socket.create_connection(self.target, timeout=5)
    except OSError:
      return
    else:
      pair = (client, server)
      with self._lock:
        self._pairs.add(pair)
      with contextlib.suppress(OSError), server:
        self._forward(client, server)
      with self._lock:
        self._pairs.discard(pair)
    finally:
      client.close()

  def _forward(self, client: socket.socket, server: socket.socket) -> None:
    other = {client: server, server: client}
    while True:
      for source in select.select([client, server], [], [], 1.0)[0]:
        data = source.recv(1 << 16)
        if not data:
          return
        if self.delay:
          time.sleep(self.delay)
        other[source].sendall(self._damaged(data))

  def _damaged(self, data: bytes) -> bytes:
    with self._lock:
      if not self.corrupt:
        return data
      self.corrupt -= 1
    changed = bytearray(data)
    changed[self._draw.randrange(len(changed))] ^= 1 << self._draw.randrange(8)
    return bytes(changed)


class SmallDisk:
  """A tmpfs that can be filled; a plain folder where mounting is not allowed."""

  def __init__(self, path: pathlib.Path, megabytes: int):
    self.path = path
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    self.mounted = subprocess.run(mount, capture_output=True).returncode == 0

  def fill(self) -> None:
    """Leaves no free byte."""
    with contextlib.suppress(OSError), (self.path / "ballast").open("wb", buffering=0) as file:
      while True:
        file.write(bytes(1 << 12))

  def free(self) -> None:
    """Undoes `fill`."""
    (self.path / "ballast").unlink(missing_ok=True)

  def close(self) -> None:
    """Unmounts."""
    if self.mounted:
      subprocess.run(["umount", "-l", str(self.path)], check=False)


def damage_newest_checkpoint(run_dir: pathlib.Path, draw: random.Random) -> bool:
  """Truncates or changes one file of the newest checkpoint, if there is one to fall back to."""
  steps = [p for p in (run_dir / "checkpoints" / "steps").glob("*") if p.name.isdigit()]
  committed = sorted((p for p in steps if (p / "commit.json").exists()), key=lambda p: int(p.name))
  if len(committed) < 2:
    return False
  files = sorted(p for p in committed[-1].rglob("*") if p.is_file() and p.stat().st_size)
  victim = draw.choice(files)
  data = bytearray(victim.read_bytes())
  if draw.random() < 0.5:
    data = data[: draw.randrange(len(data))]
  else:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  victim.write_bytes(data)
  return True


def megabytes(pids: Sequence[int]) -> float:
  """Resident memory of processes and of all that they started, pages of files included."""
  parents, pages = {}, {}
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError, ValueError, IndexError):  # it may end meanwhile
      parents[int(folder.name)] = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
      pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
  family = set(pids)
  while more := {pid for pid, parent in parents.items() if parent in family} - family:
    family |= more
  return sum(pages.get(pid, 0) for pid in family) * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_clock_hook(folder: pathlib.Path) -> dict[str, str]:
  """Environment that makes Python processes read the wall clock through `folder`/clock."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "sitecustomize.py").write_text(CLOCK_HOOK)
  (folder / "clock").write_text("0")
  path = os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH")) if p)
  return {"CHAOS_CLOCK": str(folder / "clock"), "PYTHONPATH": path}
