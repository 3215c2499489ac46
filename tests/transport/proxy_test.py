"""No proxy of the environment stands between the parts of a run; one that a flag names does."""

import contextlib
import os
import socket
import threading

import pytest

from offpolicy_rl.cli import main
from offpolicy_rl.roles import multihost
from offpolicy_rl.transport import client
from tests.transport.learners import Learner, connect, ticket

NOWHERE = "http://127.0.0.1:9"
VARIABLES = ["http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy"]


@pytest.fixture(params=VARIABLES)
def environment(request, monkeypatch):
  for name in (*VARIABLES, "no_proxy", "no_grpc_proxy", "NO_PROXY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv(request.param, NOWHERE)


@pytest.mark.usefixtures("environment")
def test_a_sampler_connects_straight(learner):
  learner.book.add([ticket("a")])
  assert [t.ticket_id for t in connect(learner.address, patience=3).lease(1)] == ["a"]


@pytest.mark.usefixtures("environment")
def test_jax_connects_the_processes_straight(monkeypatch):
  before, seen = dict(os.environ), []
  monkeypatch.setattr(
    multihost.jax.distributed, "initialize", lambda *_, **__: seen.append(dict(os.environ))
  )
  multihost.join(multihost.ProcessGroup("a.example:1", 2, 0))
  assert not [name for name in seen[0] if name.lower().endswith("_proxy")]
  assert dict(os.environ) == before  # downloads may need it


class Proxy:
  """An HTTP proxy that knows CONNECT; counts and forwards."""

  def __init__(self):
    self._server = socket.create_server(("127.0.0.1", 0))
    self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
    self.asked = []
    threading.Thread(target=self._serve, daemon=True).start()

  def _serve(self):
    with contextlib.suppress(OSError):
      while True:
        theirs, _ = self._server.accept()
        threading.Thread(target=self._connect, args=(theirs,), daemon=True).start()

  def _connect(self, theirs):
    request = b""
    while b"\r\n\r\n" not in request:
      request += theirs.recv(4096)
    self.asked.append(request.split(b" ")[1].decode())
    host, port = self.asked[-1].rsplit(":", 1)
    ours = socket.create_connection((host, int(port)))
    theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for pair in ((theirs, ours), (ours, theirs)):
      threading.Thread(target=self._forward, args=pair, daemon=True).start()

  def _forward(self, source, sink):
    with contextlib.suppress(OSError):
      while data := source.recv(1 << 16):
        sink.sendall(data)
      sink.shutdown(socket.SHUT_WR)

  def close(self):
    self._server.close()


def test_a_proxy_that_is_asked_for_is_used(monkeypatch):
  monkeypatch.setenv("http_proxy", NOWHERE)  # the flag's goes first
  learner, proxy = Learner(), Proxy()
  wire = client.LearnerClient(learner.address, "me", reconnect_seconds=5, proxy=proxy.url)
  wire.hello()
  assert proxy.asked == [learner.address]
  wire.close()
  proxy.close()
  learner.stop()


@pytest.mark.parametrize("role", [["sampler", "--learner="], ["watch", "--once", ""]])
def test_the_flag_is_passed_on(monkeypatch, capsys, role):
  asked = {}

  class Client:
    def __init__(self, address, name, **how):
      asked.update(how, address=address)
      raise client.LearnerGone("stop here")

  monkeypatch.setattr(client, "LearnerClient", Client)
  *flags, last = role
  assert main.main([*flags, f"{last}a.example:1", "--proxy=http://proxy.example:3128"]) == 1
  assert (asked["address"], asked["proxy"]) == ("a.example:1", "http://proxy.example:3128")
  assert main.main([*flags, f"{last}a.example:1"]) == 1
  assert asked["proxy"] is None and "stop here" in capsys.readouterr().err
