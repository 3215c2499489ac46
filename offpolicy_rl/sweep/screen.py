"""Shows a sweep on a terminal: a live line for every running run, a lasting one at its end."""

import math
import pathlib
import statistics
import time
from collections import Counter

from rich.console import Console

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, terminal
from offpolicy_rl.sweep.runs import FINISHED, SweepRun

LINE_SECONDS = 60.0  # between lines of a run if the output is no terminal


class Screen:
  """The terminal of a sweep."""

  def __init__(self, parallel: int, console: Console | None = None):
    self._lines, self._parallel = terminal.Lines(console, LINE_SECONDS), parallel
    self._status: dict[str, str] = {}
    self._todo: dict[str, SweepRun] = {}  # not ended yet
    self._started: dict[str, float] = {}  # start times of running ones
    self._seconds: list[float] = []  # durations of finished ones
    self._newest: dict[str, terminal.Newest] = {}
    self.say, self.stop = self._lines.say, self._lines.stop

  def begin(self, status: dict[str, str], todo: list[SweepRun]) -> None:
    """Prints the number of runs by status, and how many are to be done."""
    self._status, self._todo = dict(status), {run.name: run for run in todo}
    self.say(f"{len(status)} runs: {self._counts()}; {len(todo)} to do, {self._parallel} at a time")

  def started(self, run: SweepRun) -> None:
    """Records the start of a run. May be called by its thread."""
    self._started[run.name] = time.monotonic()

  def ended(self, run: SweepRun, status: str, run_dir: pathlib.Path) -> None:
    """Prints how a run ended, if it was started."""
    self._status[run.name] = status
    del self._todo[run.name]
    if run.name not in self._started:
      return
    seconds = time.monotonic() - self._started.pop(run.name)
    if status == FINISHED:
      self._seconds.append(seconds)
    where = "" if status == FINISHED else f" ({run_dir}/log.txt)"
    clock = terminal.clock(seconds)
    self.say(f"{status} in {clock}  {run.name}{where}; {self._counts()}{self._left()}")

  def show(self, rows: dict[str, list[types.MetricsRow]]) -> None:
    """Shows the running runs; `rows`: the newest of every run that has not ended."""
    self._lines.show([self.line(self._todo[n], rows[n]) for n in list(self._started) if n in rows])

  def line(self, run: SweepRun, rows: list[types.MetricsRow]) -> str:
    """A line about a run, with its name last, as it may be cut."""
    newest = self._newest[run.name] = metrics.newest(self._newest.get(run.name, {}), rows)
    steps = run.values["learner.steps"]
    if metrics.TRAIN not in newest:
      return f"{terminal.phase(newest, steps)}  {run.name}"
    return f"{terminal.step_line(newest, steps, terminal.seconds_left(rows, steps))}  {run.name}"

  def _counts(self) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(self._status.values()).items())

  def _left(self) -> str:
    if not self._seconds or not self._todo:
      return ""
    rounds = math.ceil(len(self._todo) / self._parallel)
    return f"; about {terminal.clock(statistics.median(self._seconds) * rounds)} left"
