"""A learner of several processes: how they join, and what the first one sends to the others.

Every process runs the same command and the same `training.train`. The first one has prompts,
ledger, samplers and files. It sends the others *orders* through the key-value store of
`jax.distributed`, and broadcasts the rows of each batch over the devices.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sys
import threading
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import distributed  # the key-value store has no public name; orbax uses it, too
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.learner import checkpoint, loop
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.roles import build, build_learner, teacher, training
from offpolicy_rl.roles.weights import WeightPublisher
from offpolicy_rl.system import output

_LOG = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 40  # jax.distributed ends all processes if one is silent for so long
_PREFIX = "offpolicy_rl"
_KEPT_ORDERS = 64  # the others are never further behind, as every step is a collective
_WAIT_MS = 10_000
AUTO = "auto"  # value of --coordinator: TPU pods and clusters know their processes

BEGIN, BATCH, SAVE, STOP, END = "begin", "batch", "save", "stop", "end"


class MultihostError(RuntimeError):
  """The processes of a learner do not match, or one did not join."""


class ProcessGroup(NamedTuple):
  """The processes of a learner, from the command line."""

  coordinator: str  # HOST:PORT of the first process, or AUTO
  processes: int | None = None
  process: int | None = None


def join(group: ProcessGroup) -> None:
  """Connects the processes, which makes all their devices visible. Call it before any use of JAX.

  Raises:
    MultihostError: the others were not found.
  """
  address = None if group.coordinator == AUTO else group.coordinator
  try:
    with _without_proxies():
      jax.distributed.initialize(
        address, group.processes, group.process, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
      )
  except (RuntimeError, ValueError) as error:
    raise MultihostError(
      f"--coordinator: the processes of {group.coordinator} did not find each other: {error}"
    ) from None


@contextlib.contextmanager
def _without_proxies() -> Generator[None]:
  """Keeps JAX's gRPC from using the environment's proxy for local connections."""
  kept = {name: os.environ[name] for name in os.environ if name.lower().endswith("_proxy")}
  for name in kept:
    del os.environ[name]
  try:
    yield
  finally:
    os.environ.update(kept)


def check_agreement(config: ConfigDict) -> int:
  """Checks that all processes have the same configuration; returns the index of this one.

  Raises:
    MultihostError: the configurations differ.
    config_lib.ConfigError: the mesh of the configuration does not cover all devices.
  """
  mesh = build.learner_mesh(config)
  if mesh.size != jax.device_count():
    raise config_lib.ConfigError(
      f"mesh: {dict(mesh.shape)} has {mesh.size} devices, expected all {jax.device_count()} of the "
      f"{jax.process_count()} processes"
    )
  digest = np.frombuffer(hashlib.sha256(config_lib.to_json(config).encode()).digest(), np.uint8)
  digests = multihost_utils.process_allgather(digest)
  for process in range(1, len(digests)):
    if (digests[process] != digests[0]).any():
      raise MultihostError(f"--config: process {process} has another configuration than process 0")
  return jax.process_index()


class Orders:
  """Messages that the first process sends and the others receive, in order.

  With a single process `announce` does nothing.
  """

  def __init__(self, stop: threading.Event):
    """`stop`: asks this process to stop, whereupon all stop."""
    self._store: Any = distributed.global_state.client  # None = one process
    self._count = 0
    if not self.alone:
      pass_on = self._request_stop if jax.process_index() else self._await_stop_request
      threading.Thread(target=pass_on, args=(stop,), daemon=True, name="stop").start()

  @property
  def alone(self) -> bool:
    """True if the learner has a single process."""
    return self._store is None

  def _request_stop(self, stop: threading.Event) -> None:
    """Tells the first process; this one continues until that one announces STOP."""
    stop.wait()
    self._store.key_value_set(f"{_PREFIX}/stop", "1", allow_overwrite=True)

  def _await_stop_request(self, stop: threading.Event) -> None:
    with contextlib.suppress(MultihostError):  # the store is gone when the run ends
      self._wait_for(f"{_PREFIX}/stop")
      stop.set()

  def _wait_for(self, key: str) -> str:
    while True:
      try:
        return self._store.blocking_key_value_get(key, _WAIT_MS)
      except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
          raise MultihostError(
            f"process 0 of the learner is gone ({error}); start all again with --resume"
          ) from None

  def announce(self, kind: str, **values: Any) -> None:
    """Sends an order to the other processes; `values` are JSON."""
    if self.alone:
      return
    self._store.key_value_set(f"{_PREFIX}/{self._count}", json.dumps({"kind": kind, **values}))
    if self._count >= _KEPT_ORDERS:
      self._store.key_value_delete(f"{_PREFIX}/{self._count - _KEPT_ORDERS}")
    self._count += 1

  def receive(self, kind: str) -> dict:
    """Waits for the next order, which must be of this kind, and returns its values.

    Raises:
      loop.Stopped: it is STOP.
      MultihostError: it is of another kind, or the first process is gone.
    """
    order = json.loads(self._wait_for(f"{_PREFIX}/{self._count}"))
    self._count += 1
    if order["kind"] == STOP:
      raise loop.Stopped
    if order["kind"] != kind:
      raise MultihostError(
        f"process 0 is at {order}, this one at {kind!r}: do all processes run the same release?"
      )
    return order

  def send_batch(
    self, mesh: jax.sharding.Mesh, at_step: int, batch: types.Batch, versions: frozenset[int]
  ) -> types.Batch:
    """Puts a batch on the devices of all processes; the first one calls this."""
    if not self.alone:
      arrays = jax.tree.leaves(batch, is_leaf=lambda x: x is None)
      leaves = [None if x is None else (x.shape, x.dtype.name) for x in arrays]
      self.announce(BATCH, step=at_step, versions=sorted(versions), leaves=leaves)
      batch = multihost_utils.broadcast_one_to_all(batch)
    return jax.block_until_ready(state_lib.place_batch(mesh, batch))

  def receive_batch(self, mesh: jax.sharding.Mesh, at_step: int) -> loop.StepBatch:
    """The other side of `send_batch`, for the other processes; raises as `receive`."""
    order = self.receive(BATCH)
    if order["step"] != at_step:
      raise MultihostError(f"process 0 is at step {order['step']}, this one at {at_step}")
    leaves = [None if leaf is None else np.zeros(*leaf) for leaf in order["leaves"]]
    rows = len(types.PackedRows._fields)
    batch = types.Batch(types.PackedRows(*leaves[:rows]), *leaves[rows:])
    batch = multihost_utils.broadcast_one_to_all(batch)
    placed = jax.block_until_ready(state_lib.place_batch(mesh, batch))
    return loop.StepBatch(placed, frozenset(order["versions"]))


@dataclasses.dataclass(frozen=True)
class Follower(training.Process):
  """Any process of a learner except the first."""

  orders: Orders

  def say(self, text: str) -> None:
    """Logs the line; the first process prints it."""
    _LOG.info(text)

  def demonstrations(self, at_step: int) -> types.Batch:
    """Receives the batch of a step of the warm start; raises loop.Stopped."""
    return self.next_batch(at_step).arrays

  def next_batch(self, at_step: int) -> loop.StepBatch:
    """Receives the batch of a step; raises loop.Stopped."""
    return self.orders.receive_batch(self.mesh, at_step)

  def save(self, version: int, state: state_lib.TrainState) -> None:
    """Writes this process's part of a checkpoint."""
    older = self.orders.receive(SAVE)["versions"]
    self.publisher.wait()
    versions = {v: self.publisher.store.tensors(v) for v in older}
    self.checkpoints.save(version, state, versions=versions, position={})


def run_follower(
  config: ConfigDict, checkpoints: pathlib.Path, weights_dir: str, stop: threading.Event
) -> None:
  """Trains together with the first process; the directories are shared by all processes."""
  follower = _make_follower(config, checkpoints, weights_dir, stop)
  training.train(follower)
  # Not after an error, as writers wait for the other processes.
  follower.checkpoints.close()
  follower.publisher.close()
  follower.orders.receive(END)


def _make_follower(
  config: ConfigDict, checkpoints: pathlib.Path, weights_dir: str, stop: threading.Event
) -> Follower:
  """Waits until the first process says where the run begins."""
  orders = Orders(stop)
  begin = orders.receive(BEGIN)
  files = types.ModelFiles(*begin["model_files"]) if begin["model_files"] else None
  mesh = build.learner_mesh(config)
  policy = build.make_policy(config, files)
  choices = build_learner.step_choices(config, policy.model, mesh)
  saved = checkpoint.Checkpoints(checkpoints, keep=config.checkpoint.keep, say=_LOG.warning)
  restored = None if begin["step"] is None else saved.restore_for(choices, mesh, begin["step"])
  store = build_learner.make_store(config, policy.model, weights_dir, session="")
  publisher = WeightPublisher(store, config.transport.weights_dtype)
  found = teacher.find(config, policy)
  return Follower(config, choices, mesh, saved, restored, publisher, found, orders)


@contextlib.contextmanager
def ending_together() -> Generator[None]:
  """Ends the process at once after an error; a normal exit would wait for the others."""
  try:
    yield
  except Exception as error:
    expected = isinstance(error, (ValueError, OSError, RuntimeError))
    _LOG.log(logging.INFO if expected else logging.ERROR, "ended by", exc_info=True)
    print(f"offpolicy-rl learner: {error}", file=sys.stderr, flush=True)
    output.drain()
    os._exit(2 if isinstance(error, config_lib.ConfigError) else 1)
