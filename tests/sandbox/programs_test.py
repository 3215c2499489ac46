"""Programs in every sandbox there is: outcomes and limits. Attacks: attacks_test.py."""

import signal
import threading
from typing import NamedTuple

import pytest

from offpolicy_rl.sandbox import outcomes, programs
from offpolicy_rl.sandbox.outcomes import Limits, Outcome, Program
from tests.sandbox import here

pytestmark = here.needs_sandbox
ECHO = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"


class Sandbox(NamedTuple):
  seconds: float  # in which a program has certainly begun


@pytest.fixture(params=["bubblewrap", "pods"])
def sandbox(request, monkeypatch):
  """Where the programs of a test run; nothing may be left of them there."""
  if request.param == "bubblewrap":
    yield Sandbox(0.3)
    assert not here.processes()
    return
  cluster = request.getfixturevalue("cluster")
  monkeypatch.setenv(outcomes.WHERE, "pods:agents/pool")
  yield Sandbox(5.0)
  assert not cluster.pods


def test_a_program_reads_prints_and_ends(sandbox):
  outcome = programs.run(
    "import sys\nprint(int(input()) + 1)\nsys.stderr.write('é')\nexit(3)", "41"
  )
  assert outcome == Outcome("42\n", "é", 3, "exit")


def test_a_program_has_the_standard_library(sandbox):
  program = """
import asyncio, ctypes, decimal, hashlib, json, random, sqlite3, threading, zlib
asyncio.run(asyncio.sleep(0.001))
thread = threading.Thread(target=print, args=("thread",))
thread.start(), thread.join()
print(hash("seeded"), __name__, open("more.txt").read())
"""
  first, second = (programs.run(Program(program, {"more.txt": "more"})) for _ in range(2))
  assert first == second, "also the hashes"
  assert first.stdout.startswith("thread\n") and first.stdout.endswith(" __main__ more\n"), first


def test_bytes_that_are_no_text_are_replaced(sandbox):
  outcome = programs.run(
    "import os, sys\nos.write(1, b'a\\xff')\nprint(sys.stdin.read())", "\ud800"
  )
  assert outcome.stdout == "a\ufffd?\n"


def test_a_program_that_crashes_says_by_which_signal(sandbox):
  outcome = programs.run("import ctypes\nctypes.string_at(0)")
  assert (outcome.status, outcome.ended) == (128 + signal.SIGSEGV, "exit")


def test_an_endless_loop_ends(sandbox):
  by_clock, by_cpu = Limits(seconds=sandbox.seconds), Limits(seconds=100.0, cpu_seconds=0.5)
  for kind, limits in (("seconds", by_clock), ("cpu", by_cpu)):
    outcome = programs.run("while True: pass", limits=limits)
    assert outcome == Outcome("", "", 128 + signal.SIGKILL, kind)


def test_a_program_that_sleeps_ends(sandbox):
  limits = Limits(seconds=sandbox.seconds)
  assert programs.run("import time; time.sleep(60)", limits=limits).ended == "seconds"


def test_threads_are_limited(sandbox):
  program = """
import threading, time
for _ in range({}): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
time.sleep(0.5)
"""
  found = [programs.run(program.format(n), limits=Limits(threads=20)).ended for n in (10, 30)]
  assert found == ["exit", "threads"]


def test_output_is_cut_at_the_limit(sandbox):
  limits = Limits(output_bytes=1000)
  exactly = programs.run("print('x' * 999)", limits=limits)
  assert exactly == Outcome("x" * 999 + "\n", "", 0, "exit")
  more = programs.run("print('x' * 1000)", limits=limits)
  assert more.stdout == "x" * 1000 and more.ended == "output"
  errors = programs.run("import sys; sys.stderr.write('x' * 2000)", limits=limits)
  assert errors.stderr == "x" * 1000 and errors.ended == "output"


def test_long_texts_go_in_and_out(sandbox):
  """Megabytes, which a pipe does not hold, to a program that prints before it has read all."""
  text = "äöü" * 400_000
  echo = "import sys\nwhile part := sys.stdin.read(50_000): sys.stdout.write(part)"
  outcome = programs.run(echo, text, Limits(seconds=60.0, output_bytes=1 << 24))
  assert outcome == Outcome(text, "", 0, "exit")
  unread = programs.run("print('no need')", text)
  assert unread == Outcome("no need\n", "", 0, "exit")


def test_memory_is_limited(sandbox):
  program = "try: x = bytearray({} << 20); print('there')\nexcept MemoryError: print('none')"
  given = [programs.run(program.format(n), limits=Limits(memory_mb=200)).stdout for n in (100, 300)]
  assert given == ["there\n", "none\n"]


def test_two_programs_talk(sandbox):
  asks = (
    "print('a', flush=True)\nassert input() == 'A'\nprint('b', flush=True)\nexit(input() == 'B')"
  )
  assert programs.converse(Program(asks), Program(ECHO)) == Outcome("", "", 1, "exit")


def test_one_that_leaves_is_noticed(sandbox):
  asks = "import sys\nprint('a', flush=True)\nexit(3 if sys.stdin.readline() == '' else 0)"
  assert programs.converse(Program(asks), Program("exit(0)")).status in (3, 120)


def test_two_that_wait_for_each_other_end(sandbox):
  wait = Program("input()")
  assert programs.converse(wait, wait, Limits(seconds=sandbox.seconds)).ended == "seconds"


def test_threads_of_this_process_may_run_programs(sandbox):
  """Also those that have ended."""
  found = []
  threads = [
    threading.Thread(target=lambda n=n: found.append((n, programs.run(f"print({n})").stdout)))
    for n in range(6)
  ]
  [t.start() for t in threads], [t.join() for t in threads]
  assert sorted(found) == [(n, f"{n}\n") for n in range(6)]
