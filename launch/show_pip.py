"""show_pip.py PIP-COMMAND...: runs pip and shows what it fetches.

On a terminal a line that changes, with a bar for a large file; elsewhere a line per large file.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

_FETCHING = re.compile(r"\s*Downloading (\S+) \(([\d.]+) ([kMG]?)B\)")
_PARTS = re.compile(r"(?:.*/)?([A-Za-z0-9_.]+)-([0-9][^-]*?)(?:-|\.tar|\.zip|$)")  # name, version
_MEGA = {"": 1e-6, "k": 1e-3, "M": 1.0, "G": 1e3}
_LARGE, _BAR = 20.0, 24  # MB; columns
_SECONDS = 0.2  # between looks at what has arrived


class Shown:
  """What pip has said so far, as a line."""

  def __init__(self, folder: str):
    self._folder, self._start = pathlib.Path(folder), time.monotonic()
    self._name, self._size = "", 0.0  # of the file that is being fetched
    self._files, self._megabytes = 0, 0.0  # before it
    self._phase = "looking for packages"

  def hear(self, line: str) -> str:
    """Takes in a line of pip; returns one worth keeping, or ""."""
    if found := _FETCHING.match(line):
      name, size = found[1], float(found[2]) * _MEGA[found[3]]
      if name.endswith(".metadata"):
        return ""
      self._count_file()
      parts = _PARTS.match(name)
      self._name, self._size = f"{parts[1]} {parts[2]}" if parts else name, size
      return f"fetching {self._name}, {size:.0f} MB" if size >= _LARGE else ""
    if line.startswith("Installing collected packages:"):
      self._count_file()
      self._phase = f"unpacking {line.count(',') + 1} packages"
      return f"{self._phase}; {self._files} files ({self._megabytes:,.0f} MB) were fetched"
    if building := re.match(r"\s*Building (?:wheel|editable) for (\S+)", line):
      self._count_file()
      self._phase = f"building {building[1]}"
    return line if line.startswith(("ERROR", "WARNING")) else ""

  def _count_file(self) -> None:
    self._files, self._megabytes = self._files + bool(self._name), self._megabytes + self._size
    self._name, self._size = "", 0.0

  def line(self) -> str:
    """The line for a terminal."""
    seconds = f"{time.monotonic() - self._start:4.0f} s  "
    if not self._name:
      return f"{seconds}{self._phase}"
    before = f"  after {self._megabytes:,.0f} MB" if self._megabytes else ""
    if self._size < _LARGE:
      return f"{seconds}fetching {self._name}{before}"
    share = min(1.0, self._arrived() / self._size)
    bar = "#" * round(share * _BAR)
    return f"{seconds}fetching {self._name} [{bar:-<{_BAR}}] {self._size:,.0f} MB{before}"

  def _arrived(self) -> float:
    """Megabytes of the file so far, which pip writes below TMPDIR."""
    sizes = [0]
    for path in self._folder.glob("pip-unpack-*/*"):
      try:
        sizes.append(path.stat().st_size)
      except OSError:  # moved meanwhile
        continue
    return max(sizes) / 1e6


def _redraw(shown: Shown, done: threading.Event, lock: threading.Lock) -> None:
  while not done.wait(_SECONDS):
    width = shutil.get_terminal_size().columns - 1
    with lock:
      sys.stdout.write(f"\r\x1b[K{shown.line()[:width]}")
      sys.stdout.flush()


def main(command: list[str]) -> int:
  """Runs pip; returns its exit code, after its last lines if it failed."""
  terminal, done, lock = sys.stdout.isatty(), threading.Event(), threading.Lock()
  said = []
  with tempfile.TemporaryDirectory() as folder:
    shown = Shown(folder)
    drawing = threading.Thread(target=_redraw, args=(shown, done, lock), daemon=True)
    if terminal:
      drawing.start()
    env = os.environ | {"TMPDIR": folder, "PIP_PROGRESS_BAR": "off", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
      command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
      for line in pip.stdout or ():
        said.append(line)
        with lock:
          if text := shown.hear(line.rstrip()):
            print(f"\r\x1b[K{text}" if terminal else text, flush=True)
    done.set()
  if terminal:
    drawing.join()
    print("\r\x1b[K", end="", flush=True)
  if pip.returncode:
    print("".join(said[-40:]), end="", file=sys.stderr)
  return pip.returncode


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except KeyboardInterrupt:
    sys.exit(130)
