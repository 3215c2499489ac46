"""How connections are kept and bounded: never so many that no file can be opened.

Who connects is unknown until its first call brings a token. So a peer has little time to say
anything, one address has a share of the places only, and the rest of the process's descriptors is
kept for files. gRPC does all of it but the share of an address, which `Shares` sees to.
"""

import collections
import contextlib
import logging
import os
import socket
import stat
import threading

try:
  import resource
except ImportError:  # no Unix: descriptors have no limit that could be asked for
  resource = None

_LOG = logging.getLogger(__name__)

# A peer whose machine or network is gone is noticed after 40 s. Both ends ping.
KEEPALIVE = [
  ("grpc.keepalive_time_ms", 30_000),
  ("grpc.keepalive_timeout_ms", 10_000),
  ("grpc.keepalive_permit_without_calls", 1),
  ("grpc.http2.max_pings_without_data", 0),
]
_FIRST_WORDS_MS = 10_000  # TLS handshake and HTTP/2 settings; gRPC's default is two minutes
_IDLE_MS = 600_000  # without a call; samplers beat far more often
_KEPT = 256  # descriptors for files: checkpoints open many at once
_LOOK_SECONDS = 1.0
_ADDRESSES = 4  # that may use their whole share at the same time


def through(proxy: str | None) -> list[tuple]:
  """Options of a channel: through http://HOST:PORT; None = straight, whatever http_proxy says."""
  if proxy is None:
    return [("grpc.enable_http_proxy", 0)]
  return [("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy)]


def server_options(most: int) -> list[tuple]:
  """Of a server that has at most so many connections at a time."""
  return [
    ("grpc.max_allowed_incoming_connections", most),
    ("grpc.server_handshake_timeout_ms", _FIRST_WORDS_MS),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.so_reuseport", 0),  # two servers on one port must be an error
    *KEEPALIVE,
  ]


def places(share: int) -> int:
  """Connections that a server may have where one address may have `share`.

  Makes room for them: raises this process's limit of open files as far as it may. What is in use,
  and a reserve for files, is not given away.
  """
  most = _ADDRESSES * share
  if resource is None:
    return most
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != hard:
    with contextlib.suppress(OSError, ValueError):  # macOS calls a limit endless that is not
      resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
      soft = hard
  left = most if soft == resource.RLIM_INFINITY else soft - len(_open()) - min(_KEPT, soft // 2)
  if left < share:
    _LOG.warning(
      "the limit of open files (ulimit -n) is %d, which leaves %d connections, expected at least "
      "%d; raise it, or lower transport.max_samplers",
      soft,
      max(left, 1),
      share,
    )
  return max(1, min(most, left))


class Shares:
  """Sees to it, in a thread, that no address has more than its share of a port's connections.

  The newest go: whoever was there before stays connected.
  """

  def __init__(self, port: int, share: int):
    """`port`: that this process serves; looked at until `stop`."""
    self._port, self._share = port, share
    self._known: dict[tuple, None] = {}  # (host, port) of peers, in the order they came in
    self._over = threading.Event()
    threading.Thread(target=self._watch, daemon=True, name="connections").start()

  def stop(self) -> None:
    """Looks no more."""
    self._over.set()

  def _watch(self) -> None:
    while not self._over.wait(_LOOK_SECONDS):
      try:
        self.enforce()
      except OSError as error:  # e.g. no descriptor is left to look with
        _LOG.debug("connections: %r", error)

  def enforce(self) -> None:
    """Looks once."""
    here = {peer: number for number in _open() if (peer := _peer(number, self._port))}
    self._known = {peer: None for peer in (*self._known, *here) if peer in here}
    by_host = collections.defaultdict(list)
    for peer in self._known:  # the oldest first
      by_host[peer[0]].append(peer)
    for host, peers in by_host.items():
      for peer in peers[self._share :]:
        _peer(here[peer], self._port, to_shut=peer)
      if len(peers) > self._share:
        _LOG.warning("%s: %d connections, closed but for %d", host, len(peers), self._share)


def _open() -> list[int]:
  """The descriptors of this process; [] where the system does not say."""
  for folder in ("/proc/self/fd", "/dev/fd"):
    try:
      return [int(name) for name in os.listdir(folder)]
    except OSError:
      continue
  return []


def _peer(number: int, port: int, *, to_shut: tuple | None = None) -> tuple | None:
  """(host, port) of who is connected to this port of ours by a descriptor; None = nobody.

  `to_shut`: ends the connection if it is this peer's. gRPC, whose descriptor it is, then closes it.
  """
  try:
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
      return None
    copy = os.dup(number)
  except OSError:  # closed meanwhile
    return None
  try:
    same = socket.socket(fileno=copy)
  except OSError:  # closed, and the number used again
    os.close(copy)
    return None
  with same, contextlib.suppress(OSError):  # those that listen have no peer
    here, there = same.getsockname(), same.getpeername()
    if same.family in (socket.AF_INET, socket.AF_INET6) and here[1] == port:
      if there[:2] == to_shut:
        same.shutdown(socket.SHUT_RDWR)
      return there[:2]
  return None
