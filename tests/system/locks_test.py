"""One learner per directory: a lock that dies with its process, and a lease for other machines."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from offpolicy_rl.system import locks
from tests.conftest import ROOT

HOLD = """
import sys, time
from offpolicy_rl.system import locks
with locks.hold(sys.argv[1], "--run_dir", print):
  print("held", flush=True)
  sys.stdin.read()
"""
HOW = ["kernel's locks", "no locks", "bucket"]


def never(text: str):
  raise AssertionError(text)


def hold(directory, lost=never):
  return locks.hold(str(directory), "--run_dir", lost)


@contextlib.contextmanager
def another(directory):
  """A process that holds the directory until the end."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(directory)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout.readline() == "held\n"
    yield process
  finally:
    process.kill()
    process.communicate()


class Bucket(locks._Object):
  """A bucket that is a directory."""

  def __init__(self, path):
    super().__init__(epath.Path(path))

  def close(self):
    pass


@pytest.fixture(params=HOW)
def how(request, monkeypatch):
  """Where the directory is; leases are short."""
  monkeypatch.setattr(locks, "_LEASE_SECONDS", 0.8)
  monkeypatch.setattr(locks, "_RENEW_SECONDS", 0.1)

  def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  if request.param != "kernel's locks":
    monkeypatch.setattr(fcntl, "flock", no_locks)
  if request.param == "bucket":
    monkeypatch.setattr(locks, "_File", Bucket)
  return request.param


def put(directory, **changed) -> locks.Holder:
  """A holder of another machine, in the lock file."""
  holder = locks.Holder("elsewhere", "its boot", 7, "2026-01-01", "a token", time.time())
  holder = holder._replace(**changed)
  directory.mkdir(exist_ok=True)
  (directory / locks.FILE).write_text(json.dumps(holder._asdict()))
  return holder


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path):
  with another(tmp_path / "run") as first:
    with pytest.raises(locks.Held) as refused, hold(tmp_path / "run"):
      pass
    assert str(refused.value).startswith(
      f"--run_dir: a learner is at work in {tmp_path}/run (host {os.uname().nodename}, process "
      f"{first.pid}, since 20"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_dies_with_its_process(tmp_path, number):
  with another(tmp_path / "run") as first:
    first.send_signal(number)
    first.wait(10)
    began = time.monotonic()
    with hold(tmp_path / "run"):
      pass
  assert time.monotonic() - began < 5


def test_children_do_not_keep_it(tmp_path):
  with hold(tmp_path / "run"):
    child = subprocess.Popen(["sleep", "60"])
  with hold(tmp_path / "run"):
    pass
  child.kill()
  child.wait()


def test_two_of_one_process_exclude_each_other_and_nothing_is_left(tmp_path, how):
  with hold(tmp_path / "run"):
    with pytest.raises(locks.Held, match=f"process {os.getpid()}, since"), hold(tmp_path / "run"):
      pass
    (tmp_path / "run" / "file").write_text("")
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
  with hold(tmp_path / "other"):
    pass
  assert not (tmp_path / "other").exists()


def test_a_lease_of_another_machine_counts_while_it_is_renewed(tmp_path, how):
  holder, over = put(tmp_path / "run"), threading.Event()

  def renew():
    while not over.wait(0.1):
      put(tmp_path / "run", renewed=time.time())

  thread = threading.Thread(target=renew)
  thread.start()
  with pytest.raises(locks.Held, match="host elsewhere, process 7"), hold(tmp_path / "run"):
    pass
  over.set()
  thread.join()
  assert locks._read(tmp_path / "run" / locks.FILE).token == holder.token


@pytest.mark.parametrize("clock", [0.0, -3600.0, 3600.0])
def test_a_lease_that_nobody_renews_ends(tmp_path, how, clock, capsys):
  """Whatever the time was at that machine."""
  put(tmp_path / "run", renewed=time.time() + clock)
  began = time.monotonic()
  with hold(tmp_path / "run"):
    assert time.monotonic() - began > 0.8
  assert (
    "(host elsewhere, process 7, since 2026-01-01); watching for 1 s" in capsys.readouterr().err
  )


def test_a_half_written_or_foreign_lock_file_is_nobodys(tmp_path, how):
  (tmp_path / locks.FILE).write_bytes(b"\xff{")
  with hold(tmp_path):
    pass


def test_who_was_taken_over_is_told_and_leaves_the_other_alone(tmp_path, how):
  told = threading.Event()
  with hold(tmp_path, lambda text: told.set()):
    put(tmp_path)
    assert told.wait(5)
  assert locks._read(tmp_path / locks.FILE).host == "elsewhere"


def test_of_two_that_come_at_once_one_stays(tmp_path, how):
  found = []

  def come():
    with contextlib.suppress(locks.Held), hold(tmp_path):
      found.append(True)
      time.sleep(1.5)

  both = [threading.Thread(target=come) for _ in range(2)]
  for thread in both:
    thread.start()
  for thread in both:
    thread.join()
  assert found == [True]
