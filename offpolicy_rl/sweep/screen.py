"""What a person sees of a sweep: a live line for every run at work, a lasting one when it ends."""

import math
import pathlib
import statistics
import time
from collections import Counter

from rich.console import Console
from rich.live import Live
from rich.text import Text

from offpolicy_rl.observe import metrics
from offpolicy_rl.sweep.runs import FINISHED
from offpolicy_rl.system import output

PLAIN_SECONDS = 60.0  # between the lines of a run where there is no terminal


class Screen:
  """Remembers when runs began and what was last known of them."""

  def __init__(self, parallel: int, console: Console | None = None):
    self._console = console or output.console()
    self._parallel = parallel
    self._status: dict[str, str] = {}
    self._todo: dict[str, object] = {}  # not ended yet
    self._started: dict[str, float] = {}  # at work
    self._seconds: list[float] = []  # of the runs that were finished
    self._known: dict[str, dict] = {}
    self._live: Live | None = None
    self._shown = time.monotonic()

  def say(self, text: str) -> None:
    """A line that stays."""
    self._console.print(Text(text))

  def begin(self, status: dict[str, str], todo: list) -> None:
    """What is there, and what is going to be done."""
    self._status, self._todo = dict(status), {run.name: run for run in todo}
    self.say(f"{len(status)} runs: {self._counts()}; {len(todo)} to do, {self._parallel} at a time")

  def started(self, run) -> None:
    """A run is at work. May be called by its thread."""
    self._started[run.name] = time.monotonic()

  def ended(self, run, status: str, run_dir: pathlib.Path) -> None:
    """A run is done, or will not be."""
    self._status[run.name] = status
    del self._todo[run.name]
    if run.name not in self._started:
      return
    seconds = time.monotonic() - self._started.pop(run.name)
    if status == FINISHED:
      self._seconds.append(seconds)
    where = "" if status == FINISHED else f" ({run_dir}/log.txt)"
    self.say(f"{status} in {_clock(seconds)}  {run.name}{where}; {self._counts()}{self._left()}")

  def show(self, rows: dict[str, dict[str, dict]]) -> None:
    """`rows`: of every run that has not ended, its newest row of each kind."""
    for name, newest in rows.items():
      self._known[name] = self._known.get(name, {}) | newest
    lines = [self.line(self._todo[name]) for name in list(self._started) if name in rows]
    now = time.monotonic()
    if self._console.is_terminal:
      if self._live is None:
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()
      self._live.update(Text("\n".join(lines), overflow="ellipsis", no_wrap=True))
    elif now - self._shown >= PLAIN_SECONDS:
      self._shown = now
      for line in lines:
        self.say(line)

  def line(self, run) -> str:
    """How far a run is; numbers first, as lines get cut."""
    known = self._known.get(run.name, {})
    train, heldout = known.get(metrics.TRAIN), known.get(metrics.HELDOUT)
    passed = f"{heldout['heldout/pass@1']:.3f}" if heldout else "  -  "
    if train is None:
      warm = known.get(metrics.WARM_START)
      where = f"warm start {warm['step'] + 1}" if warm else "starting"
      return f"{where:<14}  held-out {passed}  {run.name}"
    steps = f"{train['step'] + 1}/{run.values['learner.steps']}"
    return (
      f"step {steps:<9}  held-out {passed}  reward {train['reward']:.3f}  "
      f"entropy {train['entropy']:.3f}  {run.name}"
    )

  def stop(self) -> None:
    """Ends the live lines."""
    if self._live is not None:
      self._live.stop()
      self._live = None

  def _counts(self) -> str:
    return ", ".join(f"{count} {state}" for state, count in Counter(self._status.values()).items())

  def _left(self) -> str:
    if not self._seconds or not self._todo:
      return ""
    rounds = math.ceil(len(self._todo) / self._parallel)
    return f"; about {_clock(statistics.median(self._seconds) * rounds)} left"


def _clock(seconds: float) -> str:
  minutes, rest = divmod(int(seconds), 60)
  return (
    f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
  )
