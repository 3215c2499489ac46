"""Sends the metrics of a run to experiment trackers; trackers.py has their packages.

RUN/tracked.jsonl gets every row once: what a resumed run computes again is not written there again.
Each tracker follows that file in a thread of its own, so none can delay or end a run. A row's
number is its line there. A tracker says how many rows it has and gets the others: those that it
lost, or all if it joins later.
"""

import os
import pathlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from offpolicy_rl.observe import metrics

FILE = "tracked.jsonl"
ARTIFACTS = ("config.json", "report.html", "completions.jsonl")
_SECONDS = 1.0  # between looks at the file
_END_SECONDS = 60.0  # to send the rest when the run is over


class TrackedRun(NamedTuple):
  """A run as trackers know it."""

  id: str  # the same after a resume
  name: str
  group: str  # the name of its sweep; "" = none
  directory: pathlib.Path
  config: Mapping[str, Any]  # key -> value
  first_row: int = 0  # number of the file's first line; above 0 only if earlier ones were lost


class Row(NamedTuple):
  """The numeric values of a row, by tag: "train/reward"."""

  number: int
  kind: str
  step: int
  values: dict[str, float]


class Tracker(Protocol):
  """A run that is open in a tracker."""

  rows: int  # it has those with smaller numbers
  where: str  # people find it there

  def write(self, row: Row) -> None:
    """Adds a row."""

  def close(self, result: str, artifacts: Sequence[pathlib.Path]) -> None:
    """Ends the run; `result` is "finished", "stopped" or "failed"."""


class Package(NamedTuple):
  """The package of a tracker."""

  open: Callable[[TrackedRun], Tracker]  # ModuleNotFoundError if it is not installed
  advice: str  # what to type if something fails


class Tracking:
  """Feeds the trackers of a run."""

  def __init__(
    self,
    packages: Mapping[str, Package],
    run_dir: pathlib.Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    group: str = "",
    position: Mapping[str, Any] | None = None,
  ):
    """Prepares a run for `start`.

    Args:
      say: prints a line.
      group: the name of the run's sweep; "" = none.
      position: of the checkpoint that the run continues from; None = the run begins.
    """
    self._packages, self._say = packages, say
    self._rows = (position or {}).get("rows", 0)
    run_id = (position or {}).get("id") or uuid.uuid4().hex[:12]
    self._run = TrackedRun(run_id, run_dir.name, group, run_dir, config)
    self._path, self._begins = run_dir / FILE, position is None
    self._file: metrics.JsonLines | None = None
    self._known: set[tuple] = set()
    self._over, self._ending = threading.Event(), ("", [])
    self._threads: dict[str, threading.Thread] = {}

  def start(self) -> None:
    """Opens the run in each of the trackers; metrics.jsonl must end where the run continues."""
    before = self._rows
    data = b"" if self._begins or not self._path.exists() else self._path.read_bytes()
    self._file = metrics.JsonLines(self._path, data.rfind(b"\n") + 1)
    self._rows = data.count(b"\n")
    self._known = {_identity(row) for row in metrics.read_lines(self._path)}
    for row in metrics.read(self._run.directory):  # all of them, if there was no tracker before
      self.write(row.pop("kind"), row.pop("step"), row)
    lost = max(0, before - self._rows)
    self._rows += lost
    run = self._run._replace(first_row=lost)
    for name, package in self._packages.items():
      arguments = (name, package, run)
      self._threads[name] = threading.Thread(target=self._follow, args=arguments, daemon=True)
      self._threads[name].start()

  def position(self) -> dict[str, Any]:
    """Returns what a resumed run needs."""
    return {"id": self._run.id, "rows": self._rows}

  def write(self, kind: str, step: int, row: Mapping[str, Any]) -> None:
    """Adds a row, unless the run has had it before a resume."""
    phase = {"phase": row["phase"]} if "phase" in row else {}
    line = {"kind": kind, "step": step, **phase, **metrics.numbers(dict(row))}
    if self._file is None or _identity(line) in self._known:
      return
    try:
      self._file.append(line)
    except OSError as error:
      self._file = None
      self._say(f"trackers: {error}; they get no more rows. A --resume sends what they lack")
      return
    self._known.add(_identity(line))
    self._rows += 1

  def finish(self, result: str) -> None:
    """Sends the last rows and the artifacts; returns after a minute even if that takes longer."""
    artifacts = [self._run.directory / name for name in ARTIFACTS]
    self._ending = (result, [path for path in artifacts if path.exists()])
    self._over.set()
    end = time.monotonic() + _END_SECONDS
    for name, thread in self._threads.items():
      thread.join(max(0.0, end - time.monotonic()))
      if thread.is_alive():
        self._say(f"tracker {name}: not done after {_END_SECONDS:.0f} s, left as it is")
    if self._file is not None:
      self._file.close()

  def _follow(self, name: str, package: Package, run: TrackedRun) -> None:
    try:
      tracker = package.open(run)
      self._say(f"tracker {name}: {tracker.where}")
      for row in _rows(run, self._over):
        if row.number >= tracker.rows:
          tracker.write(row)
      tracker.close(*self._ending)
    except Exception as error:  # whatever it is, the run goes on
      missing = isinstance(error, ModuleNotFoundError)
      advice = f"pip install 'offpolicy-rl[{name}]'" if missing else package.advice
      reason = next(iter(str(error).splitlines()), "")
      self._say(
        f"tracker {name}: {type(error).__name__}: {reason:.300}; the run goes on without it. Type "
        f"{advice}; a --resume of the run sends what the tracker lacks"
      )


def _identity(row: Mapping[str, Any]) -> tuple:
  return row.get("kind"), row.get("step"), row.get("phase")


def _rows(run: TrackedRun, over: threading.Event) -> Iterator[Row]:
  """The rows of a run, as they are written, until it is `over`."""
  for number, line in enumerate(_lines(run.directory / FILE, over), run.first_row):
    for row in metrics.parse([line]):  # none if it is damaged
      tags = {metrics.tag(row.kind, name): value for name, value in row.values.items()}
      yield Row(number, row.kind, row.step, tags)


def _lines(path: pathlib.Path, over: threading.Event) -> Iterator[bytes]:
  with path.open("rb") as file:
    while True:
      last = over.is_set()
      while (line := file.readline()).endswith(b"\n"):
        yield line
      if last:
        return
      file.seek(-len(line), os.SEEK_CUR)
      over.wait(_SECONDS)
