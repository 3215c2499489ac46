"""Limits on a server's connections, so that descriptors for files are always left.

A peer is unknown until its first call brings a token. So it has little time for that, the number of
connections per address is limited, and file descriptors are kept back for files. gRPC does all of
this but the limit per address, which `AddressLimit` enforces.
"""

import collections
import contextlib
import logging
import os
import socket
import stat
import threading

from offpolicy_rl.transport.protocol import KEEPALIVE

try:
  import resource
except ImportError:  # not Unix: no limit is known
  resource = None

_LOG = logging.getLogger(__name__)

_HANDSHAKE_MS = 10_000  # TLS handshake and HTTP/2 settings; gRPC's default is two minutes
_IDLE_MS = 600_000  # without a call; samplers beat far more often
_RESERVED = 256  # descriptors for files: checkpoints open many at once
_CHECK_SECONDS = 1.0
_ADDRESSES = 4  # that may use their limit in full at the same time


def server_options(max_connections: int) -> list[tuple[str, int]]:
  """Channel arguments of a server."""
  return [
    ("grpc.max_allowed_incoming_connections", max_connections),
    ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
    ("grpc.max_connection_idle_ms", _IDLE_MS),
    ("grpc.so_reuseport", 0),  # two servers on one port must be an error
    *KEEPALIVE,
  ]


def max_connections(per_address: int) -> int:
  """Connections that a server may have if one address may have `per_address`.

  Raises this process's limit of open files as far as allowed, and leaves those in use and a reserve
  for files.
  """
  most = _ADDRESSES * per_address
  if resource is None:
    return most
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != hard:
    with contextlib.suppress(OSError, ValueError):  # macOS reports no limit where there is one
      resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
      soft = hard
  if soft == resource.RLIM_INFINITY:
    return most
  left = soft - len(_descriptors()) - min(_RESERVED, soft // 2)
  if left < per_address:
    _LOG.warning(
      "the limit of open files (ulimit -n) is %d, which leaves %d connections, expected at least "
      "%d; raise it, or lower transport.max_samplers",
      soft,
      max(left, 1),
      per_address,
    )
  return max(1, min(most, left))


class AddressLimit:
  """A thread that closes the newest connections of addresses that have too many."""

  def __init__(self, port: int, per_address: int):
    """`port`: one that this process serves; checked until `stop`."""
    self._port, self._per_address = port, per_address
    self._peers: dict[tuple, None] = {}  # (host, port), oldest first
    self._stopped = threading.Event()
    threading.Thread(target=self._run, daemon=True, name="connections").start()

  def stop(self) -> None:
    """Ends the thread."""
    self._stopped.set()

  def _run(self) -> None:
    while not self._stopped.wait(_CHECK_SECONDS):
      try:
        self.enforce()
      except OSError as error:  # e.g. no descriptor is left to look with
        _LOG.debug("connections: %r", error)

  def enforce(self) -> None:
    """Checks once."""
    current = {peer: number for number in _descriptors() if (peer := _peer(number, self._port))}
    self._peers = {peer: None for peer in (*self._peers, *current) if peer in current}
    by_host = collections.defaultdict(list)
    for peer in self._peers:
      by_host[peer[0]].append(peer)
    for host, peers in by_host.items():
      for peer in peers[self._per_address :]:
        _peer(current[peer], self._port, to_shut=peer)
      if len(peers) > self._per_address:
        _LOG.warning("%s: %d connections, closed but for %d", host, len(peers), self._per_address)


def _descriptors() -> list[int]:
  for folder in ("/proc/self/fd", "/dev/fd"):
    try:
      return [int(name) for name in os.listdir(folder)]
    except OSError:
      continue
  return []


def _peer(number: int, port: int, *, to_shut: tuple | None = None) -> tuple | None:
  """(host, port) of the peer that a descriptor connects to this port of ours; None = no peer.

  `to_shut`: shuts the connection down if it is this peer's. gRPC, which owns it, then closes it.
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
  with same, contextlib.suppress(OSError):  # listening sockets have no peer
    ours, theirs = same.getsockname(), same.getpeername()
    if same.family in (socket.AF_INET, socket.AF_INET6) and ours[1] == port:
      if theirs[:2] == to_shut:
        same.shutdown(socket.SHUT_RDWR)
      return theirs[:2]
  return None
