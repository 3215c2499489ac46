"""One learner and some samplers as separate processes of one machine, watched until the end."""

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

from offpolicy_rl.observe import watch
from offpolicy_rl.system import children

_MAX_ENDS, _WINDOW_SECONDS = 6, 600.0  # of one sampler, for the same reason: the run ends
_LAST_SECONDS = 10.0  # for samplers to end by themselves
_STOPPED = 130  # exit code
_STOPPING = (
  "stopping, with a checkpoint, after the step or evaluation at work; once more ends at once"
)
_TAIL_BYTES = 4096  # of a log, of which the last line is shown


@dataclasses.dataclass
class _Place:
  """What is to be done by one sampler after the other."""

  index: int
  child: subprocess.Popen | None = None
  not_before: float = 0.0  # when the next one may start
  ends: list[tuple[float, str]] = dataclasses.field(default_factory=list)  # (when, why)

  def log(self, run_dir: pathlib.Path) -> pathlib.Path:
    """Where its samplers write."""
    return run_dir / f"sampler-{self.index}.log"


def run(
  learner_args: list[str],
  *,
  run_dir: pathlib.Path,
  samplers: int,
  stop: threading.Event,
  sampler_args: list[str],
  start=children.start,
) -> int:
  """Starts the processes and waits; returns the learner's exit code.

  1 when samplers keep ending for the same reason, 130 when somebody else stopped the learner. A
  sampler that ends while the run goes on is replaced, after a pause that grows, and said. `stop`
  asks the learner to end with a checkpoint; the samplers end when it tells them. `start`: as
  `children.start`.
  """
  before = _signature(run_dir / "address")
  learner = start(["learner", *learner_args, f"--run_dir={run_dir}"])
  places = [_Place(i) for i in range(samplers)]
  problem = None
  try:
    while learner.poll() is None and not stop.is_set() and problem is None:
      if _signature(run_dir / "address") not in (None, before):
        address = (run_dir / "address").read_text()
        line = ["sampler", f"--learner={address}", *sampler_args]
        problem = next(filter(None, (_tend(p, line, run_dir, start) for p in places)), None)
      stop.wait(0.1)
    if stop.is_set() and learner.poll() is None:
      print(_STOPPING, file=sys.stderr)
    asked = stop.is_set() or problem is not None
    return _said(_end_learner(learner), run_dir, asked=asked, problem=problem)
  finally:
    _end_learner(learner)
    _end_samplers([p.child for p in places if p.child], told=learner.returncode == 0)


def _signature(path: pathlib.Path):
  """Differs once a learner has written the file; an earlier run's file is left alone."""
  try:
    found = path.stat()
  except FileNotFoundError:
    return None
  return found.st_ino, found.st_mtime_ns


def _tend(place: _Place, line: list[str], run_dir: pathlib.Path, start) -> str | None:
  """Starts the first sampler of a place, or one after it; why the run has to end, if so."""
  now = time.monotonic()
  if place.child is not None and place.child.poll() is not None:
    code, child, place.child = place.child.returncode, place.child, None
    children.kill(child)  # what it may have left
    if code == 0 and _ended(run_dir):
      place.not_before = float("inf")  # the learner has told it that the run is over
      return None
    why = "it was asked to stop, exit code 0" if code == 0 else _why(code)
    return _booked(place, why, run_dir)
  if place.child is None and now >= place.not_before:
    try:
      with place.log(run_dir).open("ab") as log:
        place.child = start([*line, f"--name=local-{place.index}"], output=log)
    except OSError as error:
      return _booked(place, f"not started: {error}", run_dir)
  return None


def _booked(place: _Place, why: str, run_dir: pathlib.Path) -> str | None:
  """Says that a sampler ended, and when the next one starts; why the run has to end, if so."""
  now = time.monotonic()
  place.ends = [(at, w) for at, w in place.ends if now - at < _WINDOW_SECONDS] + [(now, why)]
  count = sum(w == why for _, w in place.ends)
  told = f"sampler {place.index} ended ({why})"
  if count >= _MAX_ENDS:
    minutes = (now - place.ends[0][0]) / 60
    last = _last_line(place.log(run_dir))
    return f"{told} {count} times within {minutes:.0f} minutes; {last}"
  pause = 2 ** (len(place.ends) - 1) - 1  # seconds: 0, 1, 3, 7, ...
  place.not_before = now + pause
  print(
    f"{told} while the run goes on; starting another{f' in {pause} s' if pause else ''}",
    file=sys.stderr,
  )
  return None


def _why(code: int) -> str:
  killed = children.exit_code(code) == 128 + signal.SIGKILL
  return children.describe(code) + ("; by the kernel, for lack of memory?" if killed else "")


def _last_line(log: pathlib.Path) -> str:
  """The last line of a log, and where it is."""
  lines = []
  with contextlib.suppress(OSError), log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
    lines = file.read().decode(errors="replace").split("\n")
  last = next((line.strip() for line in reversed(lines) if line.strip()), "")
  return f"{log} ends with: {last}" if last else f"{log} says nothing"


def _end_learner(learner: subprocess.Popen) -> int:
  """Its exit code, after it was asked to end, as long as that may take."""
  if learner.poll() is None:
    learner.terminate()
  return learner.wait()


def _said(code: int, run_dir: pathlib.Path, *, asked: bool, problem: str | None) -> int:
  """The exit code of it all; what the learner can't have said itself is said."""
  go_on = f"go on with --resume --run_dir={shlex.quote(str(run_dir))}"
  if problem is not None:
    print(f"{problem}\nthe run was ended for that, with a checkpoint; {go_on}", file=sys.stderr)
    return children.exit_code(code) or 1
  if code < 0 or code > 2:
    print(f"the learner ended ({_why(code)}); {go_on}", file=sys.stderr)
  elif code == 0 and not asked and _ended(run_dir) == "stopped":
    print(f"the learner was asked to stop, not by us; {go_on}", file=sys.stderr)
    return _STOPPED
  return children.exit_code(code)


def _ended(run_dir: pathlib.Path) -> str:
  """How the learner says that the run ended; "" while it goes on."""
  try:
    return json.loads((run_dir / watch.FILE).read_text())["ended"]
  except (OSError, ValueError, KeyError, TypeError):
    return ""


def _end_samplers(samplers: list[subprocess.Popen], *, told: bool) -> None:
  """Waits a moment for them to end by themselves, as the learner has `told` them to; or kills."""
  if not told:
    for child in samplers:
      child.terminate()
  deadline = time.monotonic() + _LAST_SECONDS
  for child in samplers:
    try:
      child.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      children.kill(child)
      child.wait()
