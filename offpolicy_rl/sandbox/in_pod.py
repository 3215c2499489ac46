"""Runs in a pod: starts one program under limits, behind the filter of system calls.

Its text is an argument of `python3 -I -c`. Stdin begins with a number of bytes and so many bytes of
JSON (`pods.py` says what); the rest is the program's. The program is a child: the exit status is
the program's, 128 + n for signal n, or one of ENDS. Before it starts, stdout gets BEGUN.

The runtime sends SIGTERM when the pod has to go. No program can: the filter keeps it to itself.

This file imports the standard library only.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import tempfile

BEGUN = b"\x06"
GONE = "gone"  # the pod has to go, whatever the program does
ENDS = {152: "cpu", 250: "threads", 251: GONE}
_LOOK_SECONDS = 0.05  # between two looks at the number of threads
# linux/prctl.h, linux/seccomp.h
_END_WITH_PARENT, _NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 1, 38, 22, 2


class _Rules(ctypes.Structure):
  """struct sock_fprog."""

  _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def main() -> None:
  """Starts the program and ends as it does."""
  given = json.loads(_read(int(_read(12))))
  if platform.machine() != given["machine"]:
    sys.exit(f"the sandbox needs pods on {given['machine']}, this one is on {platform.machine()}")
  os.chdir(tempfile.mkdtemp())
  for name, text in given["files"].items():
    with open(name, "w", encoding="utf-8", errors="replace") as file:
      file.write(text)
  awaited = {signal.SIGCHLD, signal.SIGTERM}
  signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
  if not (program := os.fork()):
    _become(given)
  ended, heard = "", None
  while not ended and not (heard := signal.sigtimedwait(awaited, _LOOK_SECONDS)):
    if len(os.listdir(f"/proc/{program}/task")) > given["threads"]:
      ended = "threads"
  if heard and heard.si_signo == signal.SIGTERM:
    ended = GONE
  if ended:
    os.kill(program, signal.SIGKILL)
  _, status, used = os.wait4(program, 0)
  code = os.waitstatus_to_exitcode(status)
  # The kernel counts in ticks for its limit, and exactly for what it reports.
  used_up = 2 * (used.ru_utime + used.ru_stime) > given["limits"]["RLIMIT_CPU"]
  if not ended and code == -signal.SIGKILL and used_up:
    ended = "cpu"
  os._exit(_status(code, ended))


def _status(code: int, ended: str) -> int:
  """The exit status that says how the program ended."""
  by_limit = {name: status for status, name in ENDS.items()}
  if ended:
    return by_limit[ended]
  return 1 if code in ENDS else 128 - code if code < 0 else code


def _read(size: int) -> bytes:
  """So many bytes of stdin, and none more."""
  read = b""
  while len(read) < size and (more := os.read(0, size - len(read))):
    read += more
  return read


def _become(given: dict) -> None:
  """Replaces this process by the program; ends it where that fails."""
  try:
    os.setpgid(0, 0)  # what the runtime sends to the group is not for the program
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
    sink = os.open(os.devnull, os.O_WRONLY)  # the program itself can open nothing to write
    os.dup2(sink, given["sink"])
    os.set_inheritable(given["sink"], True)
    for name, most in given["limits"].items():
      resource.setrlimit(getattr(resource, name), (most, most))
    own = struct.pack("=I", given["own_process"])
    _restrict(bytes.fromhex(given["filter"]).replace(own, struct.pack("=I", os.getpid())))
    os.write(1, BEGUN)
    python = [sys.executable, "-P", "-s", "-B", "main.py"]
    os.execve(sys.executable, python, given["environment"])
  except BaseException as error:
    os.write(2, f"{error}\n".encode())
  os._exit(255)


def _restrict(rules: bytes) -> None:
  """Puts this process and all that it becomes behind a filter, struct sock_filter each."""
  prctl, program = ctypes.CDLL(None, use_errno=True).prctl, _Rules(len(rules) // 8, rules)
  for call in (
    (_END_WITH_PARENT, signal.SIGKILL, 0, 0, 0),
    (_NO_NEW_PRIVILEGES, 1, 0, 0, 0),
    (_SECCOMP, _FILTER, ctypes.byref(program), 0, 0),
  ):
    if prctl(*call):
      raise OSError(ctypes.get_errno(), "no filter of system calls")


if __name__ == "__main__":
  main()
