"""A learner without a model, for whatever talks to one: a server around a ledger."""

import concurrent.futures
import dataclasses

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.transport import bounds, client, protocol, receiver, server, weights

LAYOUT: receiver.Layout = {"w": ((3,), np.dtype(np.float32))}  # of its weights


def done(outcomes: list) -> concurrent.futures.Future:
  """A future that has this result."""
  future: concurrent.futures.Future = concurrent.futures.Future()
  future.set_result(outcomes)
  return future


def outcome(book: Ledger, group: types.Group | bounds.WireError) -> types.PushOutcome:
  """Books a group that could be read."""
  if isinstance(group, bounds.WireError):
    return types.PushOutcome(types.PushStatus.REFUSED, str(group))
  return types.PushOutcome(book.finish(group, 0))


def believed(book: Ledger, groups: list) -> concurrent.futures.Future:
  """Books every group that could be read; what `server.Handlers.finish` returns."""
  return done([outcome(book, group) for group in groups])


def handlers(book: Ledger, **others) -> server.Handlers:
  """A learner that knows nothing but its ledger and believes every group; `others` replace some."""
  plain = server.Handlers(
    join=book.join,
    lease=book.lease,
    heartbeat=lambda sampler, stats, progress: book.heartbeat(sampler, progress),
    decline=book.decline,
    finish=lambda groups, _: believed(book, groups),
    leave=book.leave,
    run_finished=lambda: False,
    newest_version=lambda: 0,
  )
  return dataclasses.replace(plain, **others)


def ticket(name: str) -> types.Ticket:
  """One completion, version 0."""
  return types.Ticket(name, types.TRAIN, 0, 0, np.array([3], np.int32), "", 0, 0, 1, 1.0)


def answer(name: str) -> types.Group:
  """A good one to `ticket(name)`."""
  tokens = np.array([5], np.int32)
  trajectory = types.Trajectory(tokens, np.array([-1.0], np.float32), tokens * 0, True, 1.0)
  return types.Group(name, (trajectory,))


class Learner:
  """A running server, on a port of our choice."""

  def __init__(self, session="one", listen="127.0.0.1:0", max_samplers=4, **protection):
    self.set_aside = lambda ticket, why: None
    self.book = Ledger(lease_seconds=5, set_aside=lambda *arguments: self.set_aside(*arguments))
    self.store = weights.WeightStore()
    self.store.put(0, {"w": np.arange(3, dtype=np.float32)})
    self.finished = False
    self.refuse = False  # every group
    self.beats = []
    asked = handlers(
      self.book,
      heartbeat=lambda *said: self.beats.append(said),
      finish=self._finish,
      run_finished=lambda: self.finished,
    )
    identity = protocol.Identity(session, "run", "{}", "print")
    self.server, self.address = server.start(
      listen, identity, asked, self.store, max_samplers=max_samplers, max_message_mb=4, **protection
    )

  def _finish(self, groups: list, _) -> concurrent.futures.Future:
    if self.refuse:
      return believed(self.book, [bounds.WireError("group: not wanted")] * len(groups))
    return believed(self.book, groups)

  def stop(self) -> None:
    """Ends everything."""
    self.book.close()
    self.server.stop(0).wait()


def connect(address: str, patience: float = 10.0) -> client.LearnerClient:
  """A sampler that has joined."""
  wire = client.LearnerClient(address, "me", reconnect_seconds=patience)
  wire.hello()
  return wire
