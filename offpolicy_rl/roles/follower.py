"""A learner's further process: makes the same steps as the first one, on its own devices.

It has no prompts, no ledger, no samplers and no files of its own: what it needs of them comes from
the first process (transport/hosts.py), in the order in which that one makes its own steps.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax

from offpolicy_rl import types
from offpolicy_rl.learner import checkpoint, loop, step
from offpolicy_rl.model import sharding
from offpolicy_rl.roles import assembly, build, learner, multihost, training
from offpolicy_rl.roles.publishing import Publishing
from offpolicy_rl.transport import hosts

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Process:
  """A following process while it runs; a `training.Process`."""

  config: object
  choices: step.StepChoices
  mesh: jax.sharding.Mesh
  checkpoints: checkpoint.Checkpoints
  restored: checkpoint.Restored | None
  publishing: Publishing
  leader: hosts.Follower

  def say(self, text: str) -> None:
    """The first process says it."""
    _LOG.info(text)

  def ask(self, phase: str, *, version: int, step: int) -> None:
    """The first process asks."""

  def demonstrations(self, at_step: int) -> types.Batch:
    """Of a step of the warm start, on the devices; raises loop.Stopped."""
    return self.next_batch(at_step).placed

  def warmed(self, at_step: int, loss: float) -> None:
    """The first process books it."""

  def next_batch(self, at_step: int, wanted: Callable[[], bool] = lambda: True) -> loop.Consumed:
    """See `loop.Parts`."""
    order = self.leader.batch(at_step, wanted)
    if order is None:
      raise loop.Stopped
    return loop.Consumed(multihost.placed(self.mesh, order), frozenset(order.versions))

  def begin(self, at_step: int, consumed: loop.Consumed) -> None:
    """See `loop.Parts`."""
    if self.leader.next(hosts.STEP, at_step) is None:
      raise loop.Stopped

  def save(self, version: int, state) -> None:
    """This process's part of a checkpoint."""
    older = self.leader.next(hosts.SAVE, version).versions
    self.publishing.settle()
    versions = {v: self.publishing.store.tensors(v) for v in older}
    self.checkpoints.save(version, state, versions=versions, position={})


def run_follower(
  config, checkpoints: pathlib.Path, *, follower: hosts.Follower, weights_dir: str
) -> None:
  """Follows the first process to the end of its run.

  `checkpoints`, `weights_dir`: directories that all processes share.
  """
  me = _make(config, checkpoints, follower, weights_dir)
  _train(me)
  # Not after an error: what is being written waits for the other processes.
  me.checkpoints.close()
  me.publishing.settle()
  me.publishing.store.close()
  follower.next(hosts.END)
  follower.close()


def _make(config, checkpoints, follower: hosts.Follower, weights_dir: str) -> Process:
  begun = follower.next(hosts.BEGIN)
  policy = build.policy_of(config, begun.model_files)
  mesh = sharding.make_mesh(**config.mesh)
  choices = build.step_choices(config, policy.model, mesh)
  saved = checkpoint.Checkpoints(checkpoints, keep=config.checkpoint.keep, say=_LOG.warning)
  return Process(
    config=config,
    choices=choices,
    mesh=mesh,
    checkpoints=saved,
    restored=assembly.restore(saved, begun.step, choices, mesh) if begun.step >= 0 else None,
    publishing=Publishing(
      build.make_store(config, weights_dir, session=""), config.transport.weights_dtype
    ),
    leader=follower,
  )


def _train(me: Process) -> None:
  """The same as the first process, in the same order (`learner._train`)."""
  every = me.config.checkpoint.every
  with jax.sharding.set_mesh(me.mesh):
    try:
      state, reference = training.initial_state(me)
    except loop.Stopped:
      return
    first_step = int(state.step)
    me.publishing.now(first_step, state.params)
    if me.restored is None:
      me.save(0, state)
      me.checkpoints.wait()

    def after_step(version, state):
      """A checkpoint when the first process makes one."""
      if version % every == 0:
        me.save(version, state)

    functions = loop.Parts(
      me.next_batch,
      me.begin,
      learner.train_step(me, reference),
      me.publishing.soon,
      lambda at_step, row: None,
      after_step,
    )
    state = loop.run(state, functions, first_step=first_step, num_steps=me.config.learner.steps)
  me.save(int(state.step), state)
