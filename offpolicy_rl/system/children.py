"""Child processes that end with their parent, whatever ends it, and descriptions of how one ended.

A parent holds a pipe to which nobody writes; a child reads from it. The kernel closes the pipe when
the parent is gone, even by SIGKILL, so the child notices on every system.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

PARENT = "OFFPOLICY_RL_PARENT"  # environment variable: the descriptor that a child reads from
_GRACE_SECONDS = 60.0  # for a child to end in order after its parent
_MAIN = (sys.executable, "-m", "offpolicy_rl.cli.main")

_started: list[subprocess.Popen] = []
_lifeline: tuple[int, int] | None = None  # (read, written by nobody)
_lock = threading.Lock()


def start(
  arguments: list[str],
  *,
  output: IO | None = None,
  command: tuple[str, ...] = _MAIN,
  stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen:
  """Starts `offpolicy-rl ARGUMENTS`; returns the `subprocess.Popen`.

  It has its own session, so that Ctrl-C reaches only the parent, which passes it on in order.

  Args:
    output: a file for its standard output and error; None = those of the parent.
  """
  global _lifeline
  with _lock:
    _lifeline = _lifeline or os.pipe()
    child = subprocess.Popen(
      [*command, *arguments],
      stdin=stdin,
      stdout=output,
      stderr=output,
      start_new_session=True,
      pass_fds=_lifeline[:1],
      env=os.environ | {PARENT: str(_lifeline[0])},
    )
    _started.append(child)
  return child


class Spares:
  """Processes that import a module while they wait for their arguments (cli/spare.py)."""

  def __init__(self, module: str, count: int):
    """Starts them."""
    command = (sys.executable, "-m", "offpolicy_rl.cli.spare")
    self._waiting = [start([module], command=command, stdin=subprocess.PIPE) for _ in range(count)]

  def start(self, arguments: list[str], *, output: IO) -> subprocess.Popen:
    """Has a waiting process run `offpolicy-rl ARGUMENTS`, or starts one; see `start`."""
    while self._waiting:
      child = self._waiting.pop()
      order = json.dumps({"arguments": arguments, "output": os.path.abspath(output.name)})
      with contextlib.suppress(OSError):  # it has ended
        if child.poll() is None and child.stdin is not None:
          child.stdin.write(f"{order}\n".encode())
          child.stdin.close()
          return child
    return start(arguments, output=output)

  def close(self) -> None:
    """Ends those that were not needed."""
    for child in self._waiting:
      kill(child)
      child.wait()


def end_with_parent() -> None:
  """In a child: sends this process SIGTERM when the parent is gone, SIGKILL a minute later."""
  text = os.environ.pop(PARENT, None)  # not for our own children
  if text is None:
    return
  lifeline = int(text)
  os.set_inheritable(lifeline, False)

  def watch() -> None:
    with contextlib.suppress(OSError):
      os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=watch, daemon=True, name="parent").start()


def kill(child: subprocess.Popen) -> None:
  """Kills a child and all processes that it has started."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(child.pid, signal.SIGKILL)


def kill_all() -> None:
  """Kills all remaining children."""
  for child in _started:
    if child.returncode is None:
      kill(child)


def describe(code: int) -> str:
  """Describes how a process ended, from its exit code as Python or a shell gives it."""
  number = -code if code < 0 else code - 128
  try:
    name = signal.Signals(number).name
  except ValueError:
    return f"exit code {code}"
  if code == 128 + signal.SIGINT:
    return "interrupted, exit code 130"
  return f"killed by {name}"


def exit_code(code: int) -> int:
  """The exit code to end with after a child's: 128 + N for signal N, as in shells."""
  return code if code >= 0 else 128 - code
