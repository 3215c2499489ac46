"""A learner and its samplers as processes of one machine; a sampler that ends is replaced."""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from offpolicy_rl.observe import watch
from offpolicy_rl.system import children, signals

_MAX_ENDS, _WINDOW_SECONDS = 6, 600.0  # of one place's samplers for one reason: the run ends
_GRACE_SECONDS = 10.0  # for samplers to end by themselves
_TAIL_BYTES = 4096  # of a log, searched for its last line
_STOPPING = (
  "stopping, with a checkpoint, after the step or evaluation at work; once more ends at once"
)


@dataclasses.dataclass
class _Place:
  """A place for one sampler process at a time."""

  index: int
  run_dir: pathlib.Path
  child: subprocess.Popen | None = None
  not_before: float = 0.0  # time at which the next process may start
  ends: list[tuple[float, str]] = dataclasses.field(default_factory=list)  # (time, reason)

  @property
  def log(self) -> pathlib.Path:
    return self.run_dir / f"sampler-{self.index}.log"

  def tend(self, flags: list[str], start: Callable[..., subprocess.Popen]) -> str | None:
    """Starts a sampler if there is none; returns why the run has to end, if it has to."""
    if self.child is not None and self.child.poll() is not None:
      code, child, self.child = self.child.returncode, self.child, None
      children.kill(child)  # what it may have left
      if code == 0 and _how_it_ended(self.run_dir):
        self.not_before = float("inf")  # the learner has told it that the run is over
        return None
      return self._ended("it was asked to stop, exit code 0" if code == 0 else _reason(code))
    if self.child is None and time.monotonic() >= self.not_before:
      try:
        with self.log.open("ab") as log:
          self.child = start([*flags, f"--name=local-{self.index}"], output=log)
      except OSError as error:
        return self._ended(f"not started: {error}")
    return None

  def _ended(self, reason: str) -> str | None:
    """Plans the next start after a growing pause; returns why the run has to end, if it has to."""
    now = time.monotonic()
    self.ends = [(at, why) for at, why in self.ends if now - at < _WINDOW_SECONDS]
    self.ends.append((now, reason))
    count = sum(why == reason for _, why in self.ends)
    line = f"sampler {self.index} ended ({reason})"
    if count >= _MAX_ENDS:
      minutes = (now - self.ends[0][0]) / 60
      return f"{line} {count} times within {minutes:.0f} minutes; {_last_line(self.log)}"
    pause = 2 ** (len(self.ends) - 1) - 1  # seconds: 0, 1, 3, 7, ...
    self.not_before = now + pause
    when = f" in {pause} s" if pause else ""
    print(f"{line} while the run goes on; starting another{when}", file=sys.stderr)
    return None


def run(
  learner_args: list[str],
  *,
  run_dir: pathlib.Path,
  samplers: int,
  stop: threading.Event,
  sampler_args: list[str],
  start: Callable[..., subprocess.Popen] = children.start,
) -> int:
  """Starts the processes and waits for the learner; returns its exit code.

  1 when samplers keep ending for the same reason, 130 when somebody else stopped the learner. A
  sampler that ends while the run goes on is replaced. `stop` asks the learner to end with a
  checkpoint; the samplers end when it tells them. `start`: as `children.start`.
  """
  address, before = run_dir / "address", _signature(run_dir / "address")
  learner = start(["learner", *learner_args, f"--run_dir={run_dir}"])
  places = [_Place(i, run_dir) for i in range(samplers)]
  problem = None
  try:
    while learner.poll() is None and not stop.is_set() and problem is None:
      if _signature(address) not in (None, before):
        flags = ["sampler", f"--learner={address.read_text()}", *sampler_args]
        problem = next(filter(None, (place.tend(flags, start) for place in places)), None)
      stop.wait(0.1)
    if stop.is_set() and learner.poll() is None:
      print(_STOPPING, file=sys.stderr)
    stopped = stop.is_set() or problem is not None
    return _exit_code(_end_learner(learner), run_dir, stopped=stopped, problem=problem)
  finally:
    _end_learner(learner)
    running = [place.child for place in places if place.child]
    _end_samplers(running, terminate=learner.returncode != 0)


def _signature(path: pathlib.Path) -> tuple[int, int] | None:
  """Differs from an earlier run's once the learner has written the file; None = no file."""
  try:
    status = path.stat()
  except FileNotFoundError:
    return None
  return status.st_ino, status.st_mtime_ns


def _reason(code: int) -> str:
  killed = children.exit_code(code) == 128 + signal.SIGKILL
  return children.describe(code) + ("; by the kernel, for lack of memory?" if killed else "")


def _last_line(log: pathlib.Path) -> str:
  lines = []
  with contextlib.suppress(OSError), log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
    lines = file.read().decode(errors="replace").split("\n")
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  return f"{log} ends with: {last}" if last else f"{log} says nothing"


def _end_learner(learner: subprocess.Popen) -> int:
  """Asks it to end, waits as long as that takes, and returns its exit code."""
  if learner.poll() is None:
    learner.terminate()
  return learner.wait()


def _exit_code(code: int, run_dir: pathlib.Path, *, stopped: bool, problem: str | None) -> int:
  """The exit code of the command; prints what the learner can't have printed itself."""
  go_on = f"go on with offpolicy-rl local --resume --run_dir={shlex.quote(str(run_dir))}"
  if problem is not None:
    print(f"{problem}\nthe run was ended for that, with a checkpoint; {go_on}", file=sys.stderr)
    return children.exit_code(code) or 1
  if code < 0 or code > 2:
    print(f"the learner ended ({_reason(code)}); {go_on}", file=sys.stderr)
  elif code == 0 and not stopped and _how_it_ended(run_dir) == "stopped":
    print(f"the learner was asked to stop, not by us; {go_on}", file=sys.stderr)
    return signals.INTERRUPTED
  return children.exit_code(code)


def _how_it_ended(run_dir: pathlib.Path) -> str:
  """The learner's word for how the run ended; "" while it goes on."""
  try:
    return json.loads((run_dir / watch.FILE).read_text())["ended"]
  except (OSError, ValueError, KeyError, TypeError):
    return ""


def _end_samplers(samplers: list[subprocess.Popen], *, terminate: bool) -> None:
  """Waits a moment for them to end, as the learner or SIGTERM has told them; then kills."""
  if terminate:
    for child in samplers:
      child.terminate()
  deadline = time.monotonic() + _GRACE_SECONDS
  for child in samplers:
    try:
      child.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      children.kill(child)
      child.wait()
