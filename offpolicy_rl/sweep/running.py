"""Runs a sweep, several runs at a time. Their state is in their directories:

log.txt      a run's output, locked while one of its processes lives
failed.txt   why it failed; removed when it is retried
"""

import concurrent.futures
import contextlib
import fcntl
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Generator

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.observe import metrics
from offpolicy_rl.sweep import runs as runs_lib
from offpolicy_rl.sweep.runs import FAILED, FINISHED, INTERRUPTED, RUNNING, WAITING
from offpolicy_rl.sweep.screen import Screen
from offpolicy_rl.system import children

LOG = "log.txt"
_FAILED = "failed.txt"
_POLL_SECONDS = 0.5

# (arguments of offpolicy-rl, run directory, stop) -> exit code; ends with a checkpoint once `stop`
# is set.
RunOne = Callable[[list[str], pathlib.Path, threading.Event], int]


def status(run: runs_lib.SweepRun, out: pathlib.Path) -> str:
  """The status of a run, one of `runs.STATES`."""
  run_dir = out / run.name
  if not run_dir.exists():
    return WAITING
  if _is_locked(run_dir / LOG):
    return RUNNING
  if _is_done(run_dir, run.values["learner.steps"]):
    return FINISHED
  return FAILED if (run_dir / _FAILED).exists() else INTERRUPTED


def why_failed(run_dir: pathlib.Path, lines: int = 5) -> tuple[str, list[str]]:
  """(reason, last lines of the log) of a failed run."""
  log = run_dir / LOG
  text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
  return (run_dir / _FAILED).read_text(encoding="utf-8").strip(), text.splitlines()[-lines:]


def _is_done(run_dir: pathlib.Path, steps: int) -> bool:
  """Whether the last evaluation, which ends a run, is in its metrics."""
  return any(
    row["kind"] == metrics.HELDOUT and row["phase"] == "after" and row["version"] == steps
    for row in metrics.read(run_dir)
  )


def _is_locked(path: pathlib.Path) -> bool:
  if not path.exists():
    return False
  with path.open("ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Generator[None]:
  """Locks the directory of a sweep.

  Raises:
    ConfigError: another command has locked it.
  """
  out.mkdir(parents=True, exist_ok=True)
  with (out / ".lock").open("ab") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ConfigError(f"--out: another sweep command is at work in {out}") from None
    yield


def run_process(line: list[str], run_dir: pathlib.Path, stop: threading.Event) -> int:
  """Runs `offpolicy-rl LINE` as a process, with its output in the run's log; the exit code."""
  with (run_dir / LOG).open("ab") as log:
    fcntl.flock(log, fcntl.LOCK_SH)  # inherited by the processes
    log.write(f"$ {runs_lib.command(line)}\n".encode())
    log.flush()
    child = children.start(line, output=log)
  while child.poll() is None and not stop.wait(0.1):
    pass
  if child.poll() is None:
    child.send_signal(signal.SIGTERM)
  return child.wait()


def execute(
  sweep: runs_lib.Sweep,
  out: pathlib.Path,
  *,
  parallel: int,
  stop: threading.Event,
  screen: Screen,
  retry_failed: bool = False,
  samplers: int = 1,
  run_one: RunOne = run_process,
) -> dict[str, str]:
  """Runs a sweep, `parallel` runs at a time; returns {name of run: status}.

  Finished runs are skipped, interrupted ones resumed, failed ones only with `retry_failed`.

  Raises:
    ConfigError: a run is being executed already.
  """
  states = {run.name: status(run, out) for run in sweep.runs}
  running = [name for name, state in states.items() if state == RUNNING]
  if running:
    raise ConfigError(
      f"--out: {out / running[0]} is running already, perhaps left by a killed sweep; wait for its "
      "processes, or end them"
    )
  skipped = {FINISHED} if retry_failed else {FINISHED, FAILED}
  todo = [run for run in sweep.runs if states[run.name] not in skipped]
  screen.begin(states, todo)

  def attempt(run: runs_lib.SweepRun) -> str:
    if stop.is_set():
      return states[run.name]
    screen.started(run)
    line = runs_lib.arguments(sweep, run, out, role="local", samplers=samplers)
    return _attempt(run, out, line, stop=stop, run_one=run_one)

  with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
    attempts = {pool.submit(attempt, run): run for run in todo}
    try:
      return states | _until_ended(attempts, out, stop=stop, screen=screen)
    except BaseException:
      stop.set()  # the pool waits for the others, which end with a checkpoint
      raise
    finally:
      screen.stop()


def _until_ended(attempts: dict, out: pathlib.Path, *, stop: threading.Event, screen: Screen):
  ended, announced = {}, False
  while attempts:
    done, _ = concurrent.futures.wait(attempts, timeout=_POLL_SECONDS)
    if stop.is_set() and not announced:
      announced = True
      screen.say("ending all running runs, each with a checkpoint ...")
    for future in done:
      run = attempts.pop(future)
      ended[run.name] = future.result()
      screen.ended(run, ended[run.name], out / run.name)
    screen.show({run.name: metrics.last_rows(out / run.name) for run in attempts.values()})
  return ended


def _attempt(
  run: runs_lib.SweepRun,
  out: pathlib.Path,
  line: list[str],
  *,
  stop: threading.Event,
  run_one: RunOne,
) -> str:
  run_dir = out / run.name
  if run_dir.exists():
    line = [*line, "--resume"]
  run_dir.mkdir(exist_ok=True)
  (run_dir / _FAILED).unlink(missing_ok=True)
  code = run_one(line, run_dir, stop)
  if _is_done(run_dir, run.values["learner.steps"]):
    return FINISHED
  if stop.is_set() or code in (0, 130):  # 130: someone else interrupted it
    return INTERRUPTED
  reason = children.describe(code)
  (run_dir / _FAILED).write_text(
    f"{reason} at {time.strftime('%Y-%m-%d %H:%M:%S')}\n", encoding="utf-8"
  )
  return FAILED
