"""Checkpoints through Orbax: written in the background, valid only when complete."""

import pathlib

import jax
import orbax.checkpoint as ocp

from offpolicy_rl.learner.state import TrainState


class Checkpoints:
  """The states of one run by step, and the frozen initial policy."""

  def __init__(self, directory: pathlib.Path, *, keep: int):
    self._directory = directory.resolve()
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(self._directory / "steps", options=options)

  def latest(self) -> int | None:
    """Newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState) -> None:
    """Starts writing; the arrays are copied first, so the caller may go on changing them."""
    if step != self.latest():
      self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

  def restore(self, step: int, like: TrainState, shardings: TrainState) -> TrainState:
    """Reads a step straight into its sharding; `like` gives shapes and dtypes."""
    abstract = _abstract(like._asdict(), shardings._asdict())
    return TrainState(**self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))

  def save_initial(self, params) -> None:
    """Keeps version 0, the reference of objectives with a KL term."""
    with ocp.StandardCheckpointer() as writer:
      writer.save(self._directory / "initial", params, force=True)

  def restore_initial(self, like, shardings):
    """Inverse of `save_initial`."""
    with ocp.StandardCheckpointer() as reader:
      return reader.restore(self._directory / "initial", _abstract(like, shardings))

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def _abstract(tree, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
