"""Programs in the sandbox: outcomes, limits, machines without one. Attacks: attacks_test.py."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from offpolicy_rl.sandbox import bubblewrap
from offpolicy_rl.sandbox.bubblewrap import Limits, Outcome, Program
from tests.conftest import ROOT
from tests.sandbox import here


@here.needs_sandbox
def test_a_program_reads_prints_and_ends():
  outcome = bubblewrap.run(
    "import sys\nprint(int(input()) + 1)\nsys.stderr.write('é')\nexit(3)", "41"
  )
  assert outcome == Outcome("42\n", "é", 3, "exit")


@here.needs_sandbox
def test_a_program_has_the_standard_library_and_nothing_else():
  program = """
import asyncio, ctypes, decimal, hashlib, json, random, sqlite3, threading, zlib
asyncio.run(asyncio.sleep(0.001))
thread = threading.Thread(target=print, args=("thread",))
thread.start(), thread.join()
try:
  import pip
except ImportError as error:
  print(error)
print(hash("seeded"), __name__, open("/more.txt").read())
"""
  first, second = (bubblewrap.run(Program(program, {"more.txt": "more"})) for _ in range(2))
  assert first == second, "also the hashes"
  assert first.stdout.startswith("thread\nNo module named 'pip'\n"), first
  assert first.stdout.endswith(" __main__ more\n")


@here.needs_sandbox
def test_bytes_that_are_no_text_are_replaced():
  outcome = bubblewrap.run(
    "import os, sys\nos.write(1, b'a\\xff')\nprint(sys.stdin.read())", "\ud800"
  )
  assert outcome.stdout == "a\ufffd?\n"


@here.needs_sandbox
def test_a_program_that_crashes_says_by_which_signal():
  outcome = bubblewrap.run("import ctypes\nctypes.string_at(0)")
  assert (outcome.status, outcome.ended) == (128 + signal.SIGSEGV, "exit")


@here.needs_sandbox
@pytest.mark.parametrize(
  ("limits", "ended"),
  [(Limits(seconds=0.3), "seconds"), (Limits(seconds=100.0, cpu_seconds=0.5), "cpu")],
)
def test_an_endless_loop_ends(limits, ended):
  outcome = bubblewrap.run("while True: pass", limits=limits)
  assert outcome.ended == ended and outcome.status == 128 + signal.SIGKILL
  assert not here.processes()


@here.needs_sandbox
def test_a_program_that_sleeps_ends():
  assert (
    bubblewrap.run("import time; time.sleep(60)", limits=Limits(seconds=0.2)).ended == "seconds"
  )


@here.needs_sandbox
def test_output_is_cut_at_the_limit():
  limits = Limits(output_bytes=1000)
  exactly = bubblewrap.run("print('x' * 999)", limits=limits)
  assert exactly == Outcome("x" * 999 + "\n", "", 0, "exit")
  more = bubblewrap.run("print('x' * 1000)", limits=limits)
  assert more.stdout == "x" * 1000 and more.ended == "output"
  errors = bubblewrap.run("import sys; sys.stderr.write('x' * 2000)", limits=limits)
  assert errors.stderr == "x" * 1000 and errors.ended == "output"


@here.needs_sandbox
def test_memory_is_limited():
  program = "try: x = bytearray({} << 20); print('there')\nexcept MemoryError: print('none')"
  given = [
    bubblewrap.run(program.format(n), limits=Limits(memory_mb=200)).stdout for n in (100, 300)
  ]
  assert given == ["there\n", "none\n"]


ECHO = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"


@here.needs_sandbox
def test_two_programs_talk():
  asks = (
    "print('a', flush=True)\nassert input() == 'A'\nprint('b', flush=True)\nexit(input() == 'B')"
  )
  assert bubblewrap.converse(Program(asks), Program(ECHO)) == Outcome("", "", 1, "exit")
  assert not here.processes()


@here.needs_sandbox
def test_one_that_leaves_is_noticed():
  asks = "import sys\nprint('a', flush=True)\nexit(3 if sys.stdin.readline() == '' else 0)"
  assert bubblewrap.converse(Program(asks), Program("exit(0)")).status in (3, 120)
  assert not here.processes()


@here.needs_sandbox
@pytest.mark.parametrize("broken", [0, 1])
def test_one_that_bwrap_can_not_start_is_no_fault_of_the_other(broken):
  """Else a machine that has no namespaces left for a moment would make right programs wrong."""
  talking = [Program("input()"), Program(ECHO)]
  talking[broken] = Program("", {"dev/null/x": ""})  # bwrap can't make that file
  with pytest.raises(bubblewrap.SandboxError, match="bwrap can't start a program here, got"):
    bubblewrap.converse(*talking)
  assert not here.processes()


@here.needs_sandbox
def test_two_that_wait_for_each_other_end():
  wait = Program("input()")
  assert bubblewrap.converse(wait, wait, Limits(seconds=0.3)).ended == "seconds"
  assert not here.processes()


@here.needs_sandbox
def test_threads_of_this_process_may_run_programs():
  """Also those that have ended."""
  found = []
  threads = [
    threading.Thread(target=lambda n=n: found.append((n, bubblewrap.run(f"print({n})").stdout)))
    for n in range(6)
  ]
  [t.start() for t in threads], [t.join() for t in threads]
  assert sorted(found) == [(n, f"{n}\n") for n in range(6)]


@here.needs_sandbox
@pytest.mark.long
def test_nothing_is_left_open():
  bubblewrap.run("")
  before = sorted(os.listdir("/proc/self/fd"))
  for text in ("", "while 1: pass", "import os; os.abort()"):
    bubblewrap.run(text, limits=Limits(seconds=0.2))
  bubblewrap.converse(Program(""), Program(ECHO))
  assert sorted(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- machines without a sandbox


@pytest.fixture
def without(monkeypatch):
  """A machine with no bwrap, as far as this process can tell."""

  def use(bwrap: str | None):
    monkeypatch.setattr(bubblewrap.importlib.util, "find_spec", lambda name: None)
    known = {"bwrap": bwrap, "prlimit": "/bin/true"}
    monkeypatch.setattr(bubblewrap.shutil, "which", known.get)
    bubblewrap._wrapping.cache_clear()
    bubblewrap.check.cache_clear()

  yield use
  bubblewrap._wrapping.cache_clear()
  bubblewrap.check.cache_clear()


def test_no_bwrap_is_refused_with_what_to_install(without):
  without(None)
  with pytest.raises(
    bubblewrap.SandboxError, match=r"no bwrap .* pip install offpolicy-rl\[sandbox\]"
  ):
    bubblewrap.check()
  with pytest.raises(bubblewrap.SandboxError, match="no bwrap"):
    bubblewrap.run("print(1)")


def test_another_machine_is_refused(without, monkeypatch):
  without("/bin/true")
  monkeypatch.setattr(bubblewrap.platform, "machine", lambda: "aarch64")
  with pytest.raises(bubblewrap.SandboxError, match="x86_64, this is linux, aarch64"):
    bubblewrap.check()


def test_a_kernel_without_what_we_wait_by_is_refused(without, monkeypatch):
  without("/bin/true")

  def missing(pid):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(os, "pidfd_open", missing)
  with pytest.raises(bubblewrap.SandboxError, match=r"pidfd_open: .* Function not implemented"):
    bubblewrap.check()
  monkeypatch.delattr(os, "pidfd_open")
  with pytest.raises(bubblewrap.SandboxError, match=r"Linux 5.3 with pidfd_open: .*no attribute"):
    bubblewrap.check()


@here.needs_sandbox
def test_a_program_that_can_not_be_watched_is_ended(monkeypatch):
  bubblewrap.check()

  def full(pid):
    _wait_for(lambda: len(here.processes()) >= 2)  # bwrap and the program
    raise OSError(errno.EMFILE, "Too many open files")

  monkeypatch.setattr(os, "pidfd_open", full)
  with pytest.raises(OSError, match="Too many open files"):
    bubblewrap.run("import time; time.sleep(99)")
  monkeypatch.undo()
  _wait_for(lambda: not here.processes())


def test_a_bwrap_that_may_not_make_namespaces_is_refused(without, tmp_path):
  stand_in = tmp_path / "bwrap"
  stand_in.write_text(
    "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
  )
  stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
  without(str(stand_in))
  with pytest.raises(bubblewrap.SandboxError, match="No permissions to create new namespace"):
    bubblewrap.check()
  ran = tmp_path / "ran"
  with pytest.raises(bubblewrap.SandboxError):
    bubblewrap.run(f"open({str(ran)!r}, 'w')")
  assert not ran.exists(), "a program was run bare"


@here.needs_sandbox
def test_a_program_can_not_look_like_a_missing_sandbox():
  """That would count as a failure of the verifier, not as a wrong answer."""
  text = (
    "import sys, os\nsys.stderr.write('bwrap: No permissions')\nsys.stderr.flush()\nos._exit(1)"
  )
  assert bubblewrap.run(text).status == 1


@here.needs_sandbox
@pytest.mark.long
def test_a_program_ends_with_the_process_that_runs_it():
  code = "from offpolicy_rl.sandbox import bubblewrap as b\nb.run('import time; time.sleep(99)')"
  runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
  _wait_for(lambda: len(here.processes()) >= 2)
  runner.kill()
  runner.wait()
  _wait_for(lambda: not here.processes())


def _wait_for(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)
