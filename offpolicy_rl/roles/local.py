"""One learner and some samplers as separate processes of one machine, watched until the end."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

_MAX_RESTARTS = 5  # of samplers, in all


def run(
  learner_args: list[str], *, run_dir: pathlib.Path, samplers: int, stop: threading.Event,
  sampler_args: list[str],
) -> int:  # fmt: skip
  """Starts the processes and waits; returns the learner's exit code.

  A sampler that dies is replaced. `stop` asks the learner to end with a checkpoint; the samplers
  end when it tells them.
  """
  address_file = run_dir / "address"
  address_file.unlink(missing_ok=True)
  learner = _start(["learner", *learner_args, f"--run_dir={run_dir}"])
  children: list[subprocess.Popen] = []
  try:
    restarts = 0
    while learner.poll() is None and not stop.is_set():
      if address_file.exists():
        found = [f"--learner={address_file.read_text()}", *sampler_args]
        children, failed = _keep_alive(children, samplers, found, run_dir)
        restarts += failed
      if restarts > _MAX_RESTARTS:
        print(f"samplers died {restarts} times; see {run_dir}/sampler-*.log", file=sys.stderr)
        stop.set()
      time.sleep(0.1)
    if learner.poll() is None:
      learner.send_signal(signal.SIGTERM)
    return learner.wait()
  finally:
    _end([learner, *children])


def _start(arguments: list[str], log: pathlib.Path | None = None) -> subprocess.Popen:
  """A role in its own session, so that Ctrl-C reaches only us and we pass it on in order."""
  output = log.open("a") if log else None
  return subprocess.Popen(
    [sys.executable, "-m", "offpolicy_rl.main", *arguments],
    stdout=output, stderr=output, start_new_session=True,
  )  # fmt: skip


def _keep_alive(children, count: int, sampler_args: list[str], run_dir: pathlib.Path):
  """(children with the dead ones replaced, number of those that had failed)."""
  failed = [i for i, child in enumerate(children) if child.poll() not in (None, 0)]
  for i in failed:
    print(f"sampler {i} died (exit {children[i].returncode}), starting another", file=sys.stderr)
  for i in [*failed, *range(len(children), count)]:
    child = _start(["sampler", *sampler_args, f"--name=local-{i}"], run_dir / f"sampler-{i}.log")
    children = [*children[:i], child, *children[i + 1 :]]
  return children, len(failed)


def _end(processes: list[subprocess.Popen]) -> None:
  """Waits a moment for processes to end by themselves, then ends them."""
  deadline = time.monotonic() + 10
  for process in processes:
    try:
      process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
