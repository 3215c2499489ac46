"""Calls that hang, crash or hoard cost their own answer only, and leave nothing behind."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from offpolicy_rl.tasks import pool

HOARD = []


def nothing():
  """Nothing to prepare."""


def takes_long_and_much():
  time.sleep(1.0)
  HOARD.append(bytearray(300 << 20))


def is_missing():
  raise ModuleNotFoundError("no such package")


def plus_one(x):
  return x + 1


def plus_what_it_imports(folder, x):
  """As verifiers do that import a package when they are called."""
  sys.path.insert(0, str(folder))
  import slow_and_large_of_pool_test

  return x + slow_and_large_of_pool_test.ONE


def leak(mb):
  HOARD.append(bytearray(mb << 20))
  return mb


def leak_in_secret(mb):
  """As a verifier does that takes every exception for a wrong answer."""
  try:
    return leak(mb)
  except MemoryError:
    return 0


def note_and_sleep(path):
  with open(path, "a") as file:
    file.write("called\n")
  time.sleep(60)


def note_and_die(path):
  with open(path, "a") as file:
    file.write("called\n")
  os._exit(3)


def fork(x):
  """As a library does that means to end in its child, and does not."""
  if os.fork():
    time.sleep(0.5)  # the child is done first
  return x


def prints(x):
  """More than a pipe holds."""
  print("x" * 200_000, flush=True)
  return x


def start_and_hang(path):
  """Programs, one in a session of its own, one whose parent has ended; then stays in C.

  One has a name that is no Unicode.
  """
  nameless = pathlib.Path(path).with_name("\udcff")
  nameless.symlink_to(shutil.which("sleep"))
  programs = ((nameless, True), ("sleep", False))
  found = [subprocess.Popen([p, "97"], start_new_session=new) for p, new in programs]
  orphan = ["sh", "-c", "setsid sleep 97 >/dev/null 2>&1 & echo $!"]
  orphans = subprocess.run(orphan, check=True, capture_output=True, text=True).stdout.split()
  pids = [str(pid) for pid in (os.getpid(), *(p.pid for p in found))]
  pathlib.Path(path).write_text(" ".join(pids + orphans))
  return re.match(r"(a+)+$", "a" * 60 + "b")


def stop_later(x):
  """As a thread does that stays in C and lets no other run."""
  threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
  return x


def length(text):
  return len(text)


def made(*, time_limit=10.0, memory_mb=0, prepare=nothing):
  return pool.WorkerPool(1, prepare=prepare, time_limit=time_limit, memory_mb=memory_mb)


@pytest.fixture
def a_pool(request):
  one = made(**request.param)
  yield one
  one.close()


def with_limits(**limits):
  return pytest.mark.parametrize("a_pool", [limits], indirect=True)


def alive(pid: int) -> bool:
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
  except FileNotFoundError:
    return False


def wait_for(holds, seconds=20.0):
  end = time.monotonic() + seconds
  while not holds() and time.monotonic() < end:
    time.sleep(0.05)
  assert holds()


@with_limits(prepare=takes_long_and_much, time_limit=0.5, memory_mb=64)
def test_preparing_counts_in_no_limit(a_pool):
  assert a_pool.submit(plus_one, [(1,), (2,)]).result() == [2, 3]


@with_limits(time_limit=0.5, memory_mb=64)
def test_a_late_import_counts_in_no_limit_either(a_pool, tmp_path):
  (tmp_path / "slow_and_large_of_pool_test.py").write_text(
    "import time; HOARD = bytearray(300 << 20); time.sleep(1.0); import colorsys; ONE = 1"
  )
  calls = [(tmp_path, 1), (tmp_path, 2)]
  assert a_pool.submit(plus_what_it_imports, calls).result() == [2, 3]
  [failed] = a_pool.submit(leak, [(100,)]).result()  # what is not imported counts
  assert failed.reason.startswith("MemoryError: ")
  assert a_pool.submit(note_and_sleep, [(tmp_path / "log",)]).result() == [
    pool.Failed("not done after 0.5 s", late=True)
  ]


@with_limits()
def test_a_fork_by_a_call_answers_nothing(a_pool):
  """Its answer would be taken for that of the next call, whose for that of the one behind it."""
  assert a_pool.submit(fork, [(7,)]).result() == [7]
  time.sleep(1.0)
  assert a_pool.submit(plus_one, [(1,), (2,), (3,)]).result() == [2, 3, 4]


@with_limits(prepare=is_missing)
def test_what_cant_prepare_itself_is_no_failure_of_the_call(a_pool):
  with pytest.raises(pool.PoolError, match="can't prepare itself: ModuleNotFoundError: no such pa"):
    a_pool.submit(plus_one, [(1,)]).result()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("function", [leak, leak_in_secret])
@with_limits(memory_mb=64)
def test_what_earlier_calls_hoarded_costs_no_later_one(a_pool, function):
  """Each has enough; a worker that kept what they left would serve three of them."""
  assert a_pool.submit(function, [(20,)] * 4).result() == [20] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@with_limits(memory_mb=256)
def test_a_call_that_takes_too_much_fails_alone(a_pool):
  first, failed, last = a_pool.submit(leak, [(40,), (400,), (40,)]).result()
  assert first == last == 40
  line = leak.__code__.co_firstlineno + 1
  assert failed == pool.Failed(f"MemoryError:  ({__file__}, line {line})")


@with_limits(time_limit=1.0)
def test_a_hang_is_waited_for_once(a_pool, tmp_path):
  started = time.monotonic()
  found = a_pool.submit(note_and_sleep, [(tmp_path / "log",)]).result()
  assert found == [pool.Failed("not done after 1 s", late=True)]
  assert (tmp_path / "log").read_text() == "called\n"
  assert a_pool.submit(plus_one, [(1,)]).result() == [2]
  assert time.monotonic() - started < 30  # two starts of a process on a busy machine


@with_limits()
def test_a_call_whose_process_dies_is_made_again_only_after_others(a_pool, tmp_path):
  """The others may have left the process in a state that it dies of."""
  found = a_pool.submit(note_and_die, [(tmp_path / "fresh",)]).result()
  assert found == [pool.Failed("its process died, exit code 3")]
  assert (tmp_path / "fresh").read_text().count("called") == 1
  calls = a_pool.submit(plus_one, [(1,)]), a_pool.submit(note_and_die, [(tmp_path / "used",)])
  assert [call.result() for call in calls] == [[2], found]
  assert (tmp_path / "used").read_text().count("called") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("ending", ["time", "close"])
def test_what_a_killed_worker_started_ends_with_it(tmp_path, ending):
  one, file = made(time_limit=2.0 if ending == "time" else 60.0), tmp_path / "pids"
  call = one.submit(start_and_hang, [(file,)])
  if ending == "time":
    assert call.result() == [pool.Failed("not done after 2 s", late=True)]
  wait_for(lambda: file.exists() and len(file.read_text().split()) == 4)
  one.close()
  pids = [int(pid) for pid in file.read_text().split()]
  wait_for(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_and_what_they_started_end_when_their_sampler_is_killed(tmp_path):
  file = tmp_path / "pids"
  program = (
    "from tests.tasks import pool_test\n"
    "if __name__ == '__main__':\n"
    "  one = pool_test.made(time_limit=600.0)\n"
    f"  one.submit(pool_test.start_and_hang, [({str(file)!r},)]).result()"
  )
  script = tmp_path / "sampler.py"
  script.write_text(program)
  sampler = subprocess.Popen(
    [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  )
  wait_for(lambda: file.exists() and len(file.read_text().split()) == 4)
  sampler.send_signal(signal.SIGKILL)
  sampler.wait()
  pids = [int(pid) for pid in file.read_text().split()]
  wait_for(lambda: not any(alive(pid) for pid in pids))


def test_a_process_that_we_may_not_kill_keeps_no_other_one_alive(monkeypatch):
  """It has another user, by sudo: the call costs its own answer, not the sampler."""
  killed = []

  def kill(pid: int, _signal: int) -> None:
    killed.append(pid)
    raise PermissionError

  monkeypatch.setattr(pool, "_descendants", lambda leader: {leader + 1, leader + 2})
  monkeypatch.setattr(pool.os, "kill", kill)
  monkeypatch.setattr(pool.os, "killpg", kill)
  pool._kill_all(1 << 30)
  assert sorted(killed) == [1 << 30, (1 << 30) + 1, (1 << 30) + 2]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("output", ["gone", "full", "unread"])
def test_what_a_call_prints_costs_it_nothing_whoever_reads(tmp_path, output):
  program = (
    "import pathlib, sys\n"
    "from tests.tasks import pool_test\n"
    "one = pool_test.made(time_limit=3.0)\n"
    "found = one.submit(pool_test.prints, [(1,), (2,)]).result()\n"
    "pathlib.Path(sys.argv[1]).write_text(str(found))\n"
    "one.close()"
  )
  theirs, ours = os.pipe()
  if output == "gone":
    os.close(theirs)
  with open("/dev/full" if output == "full" else ours, "wb") as stream:
    subprocess.run(
      [sys.executable, "-c", program, str(tmp_path / "found")], stdout=stream, stderr=stream,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60, check=True,
    )  # fmt: skip
  if output != "gone":
    os.close(theirs)
  assert (tmp_path / "found").read_text() == "[1, 2]"


def _limits() -> tuple[float, int] | None:
  found = pool.call_limits()
  return found and (found.end - time.monotonic(), found.memory_mb)


def test_a_call_knows_its_limits():
  workers = pool.WorkerPool(1, prepare=int, time_limit=50.0, memory_mb=300)
  with contextlib.closing(workers):
    first, second = workers.submit(_limits, [(), ()]).result()
  for seconds, memory_mb in (first, second):
    assert 40 < seconds <= 50 and memory_mb == 300
  assert pool.call_limits() is None, "this process is no worker"


def test_a_process_that_stops_in_the_middle_of_a_message_costs_its_time_only():
  """A message that no pipe holds; without a limit of its own, sending it would never end."""
  worker = pool.Worker(nothing, 1.0, 0)
  late = threading.Timer(20, worker.close)
  late.start()
  assert worker.answer(stop_later, (1,)) == 1
  time.sleep(0.5)
  assert worker.answer(length, ("x" * (4 << 20),)) == 4 << 20  # in a fresh process
  late.cancel()
  worker.close()
