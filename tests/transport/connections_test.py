"""Silent connections: few of one address, not for long, and never at the cost of files."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from offpolicy_rl.transport import connections, server
from tests.conftest import ROOT
from tests.transport.learners import Learner, connect, ticket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
SHARE = 2 * 1 + 2 * server.MAX_WATCHERS  # of an address, where there may be one sampler


def opened(address: str, count: int, source: str = "127.0.0.1", says: bytes = b""):
  """Connections that say this and no more."""
  host, port = address.rsplit(":", 1)
  made = []
  for _ in range(count):
    made.append(socket.create_connection((host, int(port)), source_address=(source, 0)))
    with contextlib.suppress(OSError):  # closed already
      made[-1].sendall(says)
    made[-1].setblocking(False)
  return made


def is_open(one: socket.socket) -> bool:
  try:
    while one.recv(1 << 16):
      pass
    return False
  except BlockingIOError:
    return True
  except OSError:
    return False


def still_open(many) -> int:
  return sum(map(is_open, many))


def wait_for(condition, seconds: float = 10.0) -> bool:
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  return condition()


@pytest.fixture
def closing():
  with contextlib.ExitStack() as stack:

    def keep(many):
      for one in many:
        stack.enter_context(one)
      return many

    yield keep


@pytest.mark.parametrize("says", [b"", b"PRI", PREFACE, b"\x16\x03\x01\x02\x00\x01"])
def test_who_says_nothing_useful_is_soon_gone(monkeypatch, closing, says):
  """Before the token is asked for; a sampler that works is not disturbed."""
  monkeypatch.setattr(connections, "_HANDSHAKE_MS", 500)
  learner = Learner()
  wire = connect(learner.address)
  silent = closing(opened(learner.address, 5, says=says))
  assert wait_for(lambda: not still_open(silent), 5.0)
  learner.book.add([ticket("a")])
  assert [t.ticket_id for t in wire.lease(1)] == ["a"]
  learner.stop()


def test_who_shakes_hands_and_then_does_nothing_goes_too(monkeypatch, closing):
  monkeypatch.setattr(connections, "_IDLE_MS", 500)
  learner = Learner()
  idle = closing(opened(learner.address, 5, says=PREFACE + SETTINGS))
  assert wait_for(lambda: not still_open(idle), 8.0)
  learner.stop()


def test_one_address_has_its_share_and_others_theirs(closing):
  learner = Learner(max_samplers=1)
  wire = connect(learner.address)
  flood = closing(opened(learner.address, 3 * SHARE, "127.0.0.2"))
  shares = learner.server._address_limit
  assert wait_for(lambda: shares.enforce() or still_open(flood) == SHARE)
  assert all(map(is_open, flood[:SHARE]))  # the newest went
  learner.book.add([ticket("a"), ticket("b")])
  assert [t.ticket_id for t in wire.lease(1)] == ["a"]
  assert connect(learner.address).session == "one"
  learner.stop()


def test_a_sampler_stays_connected_while_its_own_address_floods(closing):
  learner = Learner(max_samplers=1)
  wire = connect(learner.address)
  shares = learner.server._address_limit
  shares.enforce()
  flood = closing(opened(learner.address, 3 * SHARE))
  assert wait_for(lambda: shares.enforce() or still_open(flood) == SHARE - 1)
  connected = wire._channel
  learner.book.add([ticket("a")])
  assert [t.ticket_id for t in wire.lease(1)] == ["a"] and wire._channel is connected
  learner.stop()


def test_flooding_ends_and_the_places_are_free_again(monkeypatch, closing):
  monkeypatch.setattr(connections, "_HANDSHAKE_MS", 1000)
  learner = Learner(max_samplers=1)
  places = connections.max_connections(SHARE)
  flood = closing(
    [one for n in range(2, 8) for one in opened(learner.address, SHARE, f"127.0.0.{n}")]
  )
  assert len(flood) > places == 4 * SHARE
  assert wait_for(lambda: still_open(flood) <= places)
  assert connect(learner.address, patience=20).session == "one"  # once their time is over
  learner.stop()


# The descriptors of a process are its own: this one has few.
FEW = """
import contextlib, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
from tests.transport.learners import Learner
learner = Learner(max_samplers=int(sys.argv[4]))
print(learner.address, *resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
for line in sys.stdin:
  with contextlib.ExitStack() as files:
    try:
      for n in range(100):  # as a checkpoint does
        files.enter_context(open(f"{sys.argv[1]}/{n}", "w")).write("x")
      print("written", flush=True)
    except OSError as error:
      print(error, flush=True)
learner.stop()
"""


@contextlib.contextmanager
def with_few_descriptors(tmp_path: pathlib.Path, soft: int, hard: int, samplers: int):
  """(process, address, limits)."""
  command = [sys.executable, "-c", FEW, *map(str, (tmp_path, soft, hard, samplers))]
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    address, *limits = process.stdout.readline().split()
    yield process, address, [int(limit) for limit in limits]
  finally:
    process.kill()
    process.communicate()


def test_files_are_written_whatever_connects(tmp_path, closing):
  """The limit leaves room for 100 files, and no more than a part of the rest to strangers."""
  with with_few_descriptors(tmp_path, 300, 300, samplers=16) as (process, address, _):
    flood = [one for n in range(1, 6) for one in opened(address, 100, f"127.0.0.{n}")]
    closing(flood)
    for _ in range(3):
      process.stdin.write("write\n")
      process.stdin.flush()
      assert process.stdout.readline() == "written\n"
      time.sleep(0.3)
    assert 0 < still_open(flood) <= 150
    for one in flood:
      one.close()
    assert connect(address, patience=20).session == "one"


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(tmp_path):
  with with_few_descriptors(tmp_path, 200, 1000, samplers=1) as (_, _, limits):
    assert limits == [1000, 1000]


def test_too_few_descriptors_for_the_samplers_are_said(monkeypatch, caplog):
  monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (100, 100))
  assert 1 <= connections.max_connections(48) <= 50
  assert "limit of open files (ulimit -n) is 100" in caplog.text and "at least 48" in caplog.text


def test_descriptors_are_looked_at_without_keeping_any():
  before = len(connections._descriptors())
  learner = Learner()
  learner.server._address_limit.enforce()
  held = len(connections._descriptors())
  for _ in range(20):
    learner.server._address_limit.enforce()
  assert len(connections._descriptors()) <= held + 1 and held >= before
  learner.stop()
