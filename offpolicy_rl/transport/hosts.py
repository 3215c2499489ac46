"""Between the processes of one learner: what comes next, and each one's share of a batch.

The leader orders, the followers obey in the same order (hosts.proto). A process that is gone can't
be replaced in a running program: the others notice within a minute and end, too, and all begin
again from the last checkpoint.
"""

import concurrent.futures
import contextlib
import hmac
import json
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.transport import connections, refusals
from offpolicy_rl.transport import hosts_pb2 as pb
from offpolicy_rl.transport import hosts_pb2_grpc as rpc

# What is ordered.
BEGIN, BATCH, STEP = pb.WHAT_BEGIN, pb.WHAT_BATCH, pb.WHAT_STEP
SAVE, STOP, END = pb.WHAT_SAVE, pb.WHAT_STOP, pb.WHAT_END
_JOIN_SECONDS = 300  # for the last process to come up, as `jax.distributed` waits
_LOOK_SECONDS = 0.5  # how often one that waits for a batch looks whether it is wanted
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class HostsError(RuntimeError):
  """The processes of a learner do not fit together, or one did not come."""


class Order(NamedTuple):
  """What all processes do next; see hosts.proto."""

  what: int
  step: int
  versions: tuple[int, ...] = ()
  arrays: tuple[np.ndarray, ...] = ()
  model_files: types.ModelFiles | None = None


class Leader:
  """The first process: serves the others."""

  def __init__(
    self,
    host: str,
    *,
    followers: int,
    shards: int,
    secret: bytes,
    config_sha256: bytes,
    lost: Callable[[str], None],
    stop: threading.Event,
  ):
    """Serves at `host`, at any free port; `address` has it.

    Args:
      shards: in how many parts the rows of a batch are split over the mesh.
      stop: set when a follower is asked to stop.
      lost: called, from any thread, when a follower is gone before the end.
    """
    self._followers, self._shards, self._lost = followers, shards, lost
    self._secret, self._config_sha256 = secret, config_sha256
    self._queues: dict[int, tuple[queue.SimpleQueue, list[int]]] = {}
    self._changed = threading.Condition()
    self._problem: str | None = None
    self._ended = False
    self.stop = stop
    pool = concurrent.futures.ThreadPoolExecutor(2 * followers + 1, thread_name_prefix="hosts")
    share = 2 * followers + 8
    kept = connections.server_options(connections.places(share))
    self._server = grpc.server(pool, options=[*_UNLIMITED, *kept])
    rpc.add_HostsServicer_to_server(_Servicer(self), self._server)
    port = self._server.add_insecure_port(f"{host}:0")
    self.address = f"{host}:{port}"
    self._server.start()
    self._shares = connections.Shares(port, share)

  def wait_for_all(self) -> None:
    """Returns when every follower is there.

    Raises:
      HostsError: one did not come in time, or has another configuration.
    """
    done = lambda: self._problem or len(self._queues) == self._followers
    with self._changed:
      self._changed.wait_for(done, _JOIN_SECONDS)
      if self._problem:
        raise HostsError(self._problem)
      if len(self._queues) < self._followers:
        missing = sorted(set(range(1, self._followers + 1)) - set(self._queues))
        raise HostsError(f"--process_id: {missing} did not come within {_JOIN_SECONDS} s")

  def order(self, order: Order) -> None:
    """Tells every follower; of `arrays` [parts, rows, ...] each gets the rows that it holds."""
    files = json.dumps(order.model_files._asdict()) if order.model_files else ""
    for waiting, shards in self._queues.values():
      shares = [_message(self._share(x, shards)) for x in order.arrays]
      waiting.put(
        pb.Order(
          what=order.what,
          step=order.step,
          versions=order.versions,
          arrays=shares,
          model_files=files,
        )
      )

  def _share(self, array: np.ndarray, shards: list[int]) -> np.ndarray:
    size = array.shape[1] // self._shards
    return np.concatenate([array[:, s * size : (s + 1) * size] for s in shards], axis=1)

  def end(self) -> None:
    """All is done; returns when the followers know."""
    self._ended = True
    self.order(Order(END, 0))
    self._server.stop(grace=10).wait()
    self._shares.stop()

  def orders_for(self, request: pb.FollowRequest, context: grpc.ServicerContext):
    """The orders for one follower, until the end."""
    self._check(request, context)
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    context.add_callback(lambda: waiting.put(None))
    with self._changed:
      self._queues[request.process] = (waiting, list(request.shards))
      self._changed.notify_all()
    while (order := waiting.get()) is not None:
      yield order
      if order.what == END:
        return
    if not self._ended:
      self._lost(f"process {request.process} of the learner ({context.peer()}) is gone")

  def _check(self, request: pb.FollowRequest, context: grpc.ServicerContext) -> None:
    self.check_secret(request.secret, context)
    if request.config_sha256 == self._config_sha256:
      return
    problem = f"--config: process {request.process} has another configuration than process 0"
    with self._changed:
      self._problem = problem
      self._changed.notify_all()
    refusals.abort(context, grpc.StatusCode.FAILED_PRECONDITION, problem)

  def check_secret(self, secret: bytes, context: grpc.ServicerContext) -> None:
    """Ends a call of anybody else."""
    if not hmac.compare_digest(secret, self._secret):
      refusals.abort(context, grpc.StatusCode.UNAUTHENTICATED, "secret: not this learner's")


class _Servicer(rpc.HostsServicer):
  def __init__(self, leader: Leader):
    self._leader = leader

  def Follow(self, request, context):
    """See hosts.proto."""
    return self._leader.orders_for(request, context)

  def AskToStop(self, request, context):
    """See hosts.proto."""
    self._leader.check_secret(request.secret, context)
    self._leader.stop.set()
    return pb.StopReply()


class Follower:
  """Any other process."""

  def __init__(
    self,
    address: str,
    *,
    process: int,
    shards: Sequence[int],
    secret: bytes,
    config_sha256: bytes,
    lost: Callable[[str], None],
  ):
    """Arguments as for `Leader`; `shards`: of a batch, that this process's devices hold."""
    options = [*_UNLIMITED, *connections.KEEPALIVE, *connections.through(None)]
    self._channel = grpc.insecure_channel(address, options=options)
    self._stub, self._secret, self._lost = rpc.HostsStub(self._channel), secret, lost
    self._batches: queue.SimpleQueue = queue.SimpleQueue()
    self._next: queue.SimpleQueue = queue.SimpleQueue()
    self._refused = ""
    request = pb.FollowRequest(
      secret=secret, process=process, shards=shards, config_sha256=config_sha256
    )
    orders = self._stub.Follow(request, wait_for_ready=True)
    self._reader = threading.Thread(target=self._read, args=(orders,), daemon=True, name="orders")
    self._reader.start()

  def _read(self, orders) -> None:
    """Sorts the orders: batches come ahead of their step."""
    try:
      for message in orders:
        arrays = tuple(_array(array) for array in message.arrays)
        files = message.model_files and types.ModelFiles(**json.loads(message.model_files))
        order = Order(message.what, message.step, tuple(message.versions), arrays, files or None)
        if order.what in (BATCH, STOP):
          self._batches.put(order)
        if order.what != BATCH:
          self._next.put(order)
        if order.what == END:
          return
      self._lost("process 0 of the learner is gone")
    except grpc.RpcError as error:
      if refusals.reason_of(error) is None:
        self._lost(f"process 0 of the learner is gone: {error.details()}")
      self._refused = error.details()
      self._batches.put(None)
      self._next.put(None)

  def _told(self, order: Order | None) -> Order:
    if order is None:
      raise HostsError(self._refused)
    return order

  def batch(self, step: int, wanted: Callable[[], bool]) -> Order | None:
    """This process's share of the batch of `step`.

    None when there is no such step any more, or nobody wants it.
    """
    while wanted():
      with contextlib.suppress(queue.Empty):
        order = self._told(self._batches.get(timeout=_LOOK_SECONDS))
        return None if order.what == STOP else _expected(order, BATCH, step)
    return None

  def next(self, what: int, step: int | None = None) -> Order | None:
    """Waits for the leader's next order, which must be this one; None = no step any more."""
    order = self._told(self._next.get())
    if order.what == STOP:
      if what == STEP:
        return None
      order = self._told(self._next.get())
    return _expected(order, what, order.step if step is None else step)

  def ask_to_stop(self) -> None:
    """Tells the leader that this process has to go soon."""
    self._stub.AskToStop(pb.StopRequest(secret=self._secret))

  def close(self) -> None:
    """After the end."""
    self._reader.join(10)
    self._channel.close()


def _expected(order: Order, what: int, step: int) -> Order:
  if (order.what, order.step) != (what, step):
    name = pb.What.Name
    raise HostsError(
      f"process 0 is at {name(order.what)} {order.step}, this one at {name(what)} {step}: do all "
      "processes run the same release?"
    )
  return order


def _message(array: np.ndarray) -> pb.Array:
  return pb.Array(dtype=array.dtype.name, shape=array.shape, data=array.tobytes())


def _array(message: pb.Array) -> np.ndarray:
  return np.frombuffer(message.data, message.dtype).reshape(tuple(message.shape))
