"""A learner and its samplers as processes of one machine; samplers that end are replaced."""

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

_MAX_ENDS, _WINDOW_SECONDS = 6, 600.0  # ends of a slot's samplers for one reason that end the run
_HOPELESS = 2  # exit code: a wrong configuration, or a judge that is of no more use
_GRACE_SECONDS = 10.0  # for samplers to end by themselves
_KILLED = 128 + signal.SIGKILL
_LESS_MEMORY = (
  "an update needs less memory with --config.learner.microbatches=2 (or more), "
  "--config.learner.layout=shared or --config.learner.remat=full"
)
_TAIL_BYTES = 4096  # of a log, searched for its last line
_STOPPING = (
  "stopping after the current step or evaluation, with a checkpoint; again to stop at once"
)


@dataclasses.dataclass
class _SamplerSlot:
  """A slot for one sampler process at a time."""

  index: int
  run_dir: pathlib.Path
  child: subprocess.Popen | None = None
  not_before: float = 0.0  # time at which the next process may start
  ends: list[tuple[float, str]] = dataclasses.field(default_factory=list)  # (time, reason)

  @property
  def log(self) -> pathlib.Path:
    return self.run_dir / f"sampler-{self.index}.log"

  def update(self, flags: list[str], start: Callable[..., subprocess.Popen]) -> str | None:
    """Starts a sampler if there is none; returns the reason if the run has to end."""
    if self.child is not None and self.child.poll() is not None:
      code, child, self.child = self.child.returncode, self.child, None
      children.kill(child)  # its leftover children
      if code == 0 and _how_it_ended(self.run_dir):
        self.not_before = float("inf")  # the run is over
        return None
      if code == _HOPELESS:
        return f"sampler {self.index} can't go on; {_last_line(self.log)}"
      return self._ended("it was asked to stop, exit code 0" if code == 0 else _reason(code))
    if self.child is None and time.monotonic() >= self.not_before:
      try:
        with self.log.open("ab") as log:
          self.child = start([*flags, f"--name=local-{self.index}"], output=log)
      except OSError as error:
        return self._ended(f"not started: {error}")
    return None

  def _ended(self, reason: str) -> str | None:
    """Schedules the next start after a growing pause, or returns why the run has to end."""
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
  start_sampler: Callable[..., subprocess.Popen] | None = None,
) -> int:
  """Starts the processes and waits for the learner; returns its exit code.

  It is 1 if samplers keep ending for the same reason, 130 if someone else stopped the learner.
  `stop` asks the learner to end with a checkpoint; the learner then ends the samplers. `start`
  starts processes, `start_sampler` samplers if that differs.
  """
  address, before = run_dir / "address", _signature(run_dir / "address")
  learner = start(["learner", *learner_args, f"--run_dir={run_dir}"])
  slots = [_SamplerSlot(i, run_dir) for i in range(samplers)]
  problem = None
  try:
    while learner.poll() is None and not stop.is_set() and problem is None:
      if _signature(address) not in (None, before):
        flags = ["sampler", f"--learner={address.read_text(encoding='utf-8')}", *sampler_args]
        begin = start_sampler or start
        problem = next(filter(None, (slot.update(flags, begin) for slot in slots)), None)
      stop.wait(0.1)
    if stop.is_set() and learner.poll() is None:
      print(_STOPPING, file=sys.stderr)
    stopped = stop.is_set() or problem is not None
    return _exit_code(_end_learner(learner), run_dir, stopped=stopped, problem=problem)
  finally:
    _end_learner(learner)
    running = [slot.child for slot in slots if slot.child]
    _end_samplers(running, terminate=learner.returncode != 0)


def _signature(path: pathlib.Path) -> tuple[int, int] | None:
  """Identifies a version of a file; None = no file."""
  try:
    status = path.stat()
  except FileNotFoundError:
    return None
  return status.st_ino, status.st_mtime_ns


def _reason(code: int) -> str:
  killed = children.exit_code(code) == _KILLED
  return children.describe(code) + ("; by the kernel, for lack of memory?" if killed else "")


def _last_line(log: pathlib.Path) -> str:
  lines = []
  with contextlib.suppress(OSError), log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
    lines = file.read().decode(errors="replace").split("\n")
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  return f"{log} ends with: {last}" if last else f"{log} says nothing"


def _end_learner(learner: subprocess.Popen) -> int:
  if learner.poll() is None:
    learner.terminate()
  return learner.wait()


def _exit_code(code: int, run_dir: pathlib.Path, *, stopped: bool, problem: str | None) -> int:
  """The exit code of the command; prints what the learner could not print itself."""
  go_on = f"continue with offpolicy-rl local --resume --run_dir={shlex.quote(str(run_dir))}"
  if problem is not None:
    print(f"{problem}\nso the run was ended, with a checkpoint; {go_on}", file=sys.stderr)
    return children.exit_code(code) or 1
  if code < 0 or code > 2:
    print(f"the learner ended ({_reason(code)}); {go_on}", file=sys.stderr)
    if children.exit_code(code) == _KILLED:
      print(_LESS_MEMORY, file=sys.stderr)
  elif code == 0 and not stopped and _how_it_ended(run_dir) == "stopped":
    print(f"someone else asked the learner to stop; {go_on}", file=sys.stderr)
    return signals.INTERRUPTED
  return children.exit_code(code)


def _how_it_ended(run_dir: pathlib.Path) -> str:
  """RunStatus.ended of the run; "" while it is running."""
  try:
    return json.loads((run_dir / watch.FILE).read_text(encoding="utf-8"))["ended"]
  except (OSError, ValueError, KeyError, TypeError):
    return ""


def _end_samplers(samplers: list[subprocess.Popen], *, terminate: bool) -> None:
  """Waits for samplers to end, then kills them; `terminate`: sends SIGTERM first."""
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
