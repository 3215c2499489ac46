"""A learner of several processes: how they find one another, and what one does with an order.

Every process runs the same command. `jax.distributed` makes one set of devices of all of theirs;
then the first one tells the others, by a collective of these devices, where it can be asked.
"""

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.model import sharding
from offpolicy_rl.system import output
from offpolicy_rl.transport import hosts

_LOG = logging.getLogger(__name__)
_SECRET_BYTES, _ADDRESS_BYTES = 32, 256
_HEARTBEAT_SECONDS = 40  # without one from a process, jax.distributed ends all others
LOST = 4  # exit code
FOUND = "auto"  # --coordinator: a TPU pod's or a cluster's environment says who is who


class Group(NamedTuple):
  """The processes that belong together, as the command line names them."""

  coordinator: str  # HOST:PORT of the first process, or FOUND
  processes: int | None = None
  process: int | None = None


def join(group: Group) -> None:
  """Makes the devices of all processes visible; before anything else uses JAX.

  Raises:
    HostsError: the others were not found.
  """
  address = None if group.coordinator == FOUND else group.coordinator
  try:
    with _without_proxies():
      jax.distributed.initialize(
        address, group.processes, group.process, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
      )
  except (RuntimeError, ValueError) as error:
    raise hosts.HostsError(
      f"--coordinator: the processes of {group.coordinator} did not find one another: {error}"
    ) from None


@contextlib.contextmanager
def _without_proxies():
  """JAX's gRPC would go through the environment's proxy, also to the machine next door."""
  kept = {name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")}
  for name in kept:
    del os.environ[name]
  try:
    yield
  finally:
    os.environ.update(kept)


def meet(
  group: Group, config, *, stop: threading.Event, lost: Callable[[str], None]
) -> tuple[hosts.Leader | None, hosts.Follower | None]:
  """(leader, None) in the first process, (None, follower) in the others.

  `stop`, `lost`: as in `hosts.Leader`. A follower that is to stop tells the leader and goes on
  until that one says so.

  Raises:
    HostsError: they do not fit together.
    ValueError: the mesh of the configuration does not cover all devices.
  """
  mesh = sharding.make_mesh(**config.mesh)
  if mesh.size != jax.device_count():
    raise ValueError(
      f"mesh: {dict(mesh.shape)} has {mesh.size} devices, expected all {jax.device_count()} of the "
      f"{jax.process_count()} processes"
    )
  shards = sharding.batch_shards(mesh.shape)
  digest = hashlib.sha256(config_lib.to_json(config).encode()).digest()
  secret, leader = secrets.token_bytes(_SECRET_BYTES), None
  if jax.process_index() == 0:
    leader = hosts.Leader(
      _own_host(group.coordinator),
      followers=jax.process_count() - 1,
      shards=shards,
      secret=secret,
      config_sha256=digest,
      lost=lost,
      stop=stop,
    )
  told = _tell_all(secret + (leader.address.encode() if leader else b""))
  if leader is not None:
    leader.wait_for_all()
    return leader, None
  follower = hosts.Follower(
    told[_SECRET_BYTES:].decode(),
    process=jax.process_index(),
    shards=sharding.local_batch_shards(mesh),
    secret=told[:_SECRET_BYTES],
    config_sha256=digest,
    lost=lost,
  )
  _pass_on(stop, follower)
  return None, follower


def _tell_all(message: bytes) -> bytes:
  """The first process's message, in every process."""
  padded = message.ljust(_SECRET_BYTES + _ADDRESS_BYTES, b" ")
  told = multihost_utils.broadcast_one_to_all(np.frombuffer(padded, np.uint8))
  return np.asarray(told, np.uint8).tobytes().rstrip(b" ")


def _own_host(coordinator: str) -> str:
  """The address of this machine that the others can reach."""
  if coordinator != FOUND:
    return coordinator.rpartition(":")[0]
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("10.255.255.255", 1))  # sends nothing: asks which interface would be used
    return probe.getsockname()[0]


def placed(mesh: jax.sharding.Mesh, share: hosts.Order) -> types.Batch:
  """A batch on the devices of all processes, from this one's share of its rows."""
  held = sharding.local_batch_shards(mesh)
  rows = len(types.PackedRows._fields)
  arrays = [sharding.from_share(mesh, x, held) for x in share.arrays]
  return types.Batch(types.PackedRows(*arrays[:rows]), *arrays[rows:])


def leaves(batch: types.Batch) -> list[np.ndarray]:
  """The arrays of a batch in the order in which `placed` takes them."""
  return [*batch.rows, *batch[1:]]


def abandon(reason: str) -> None:
  """Another process is gone: ends this one at once, since no program can end without all of them.

  Nothing is lost that the checkpoints and the stored groups do not hold.
  """
  message = f"offpolicy-rl learner: {reason}; start all again with --resume"
  print(message, file=sys.stderr, flush=True)
  output.drain()
  os._exit(LOST)


@contextlib.contextmanager
def ending_together():
  """An error in one process ends it at once: at its exit JAX would wait for all others."""
  try:
    yield
  except Exception as error:
    expected = isinstance(error, (ValueError, OSError, RuntimeError))
    _LOG.log(logging.INFO if expected else logging.ERROR, "ended by", exc_info=True)
    print(f"offpolicy-rl learner: {error}", file=sys.stderr, flush=True)
    output.drain()
    os._exit(2 if isinstance(error, config_lib.ConfigError) else 1)


def _pass_on(stop: threading.Event, follower: hosts.Follower) -> None:
  def watch():
    """Tells the first process once `stop` is set."""
    stop.wait()
    follower.ask_to_stop()

  threading.Thread(target=watch, daemon=True, name="asks-to-stop").start()
