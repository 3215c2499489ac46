"""Checkpoints: written in the background, valid only once every byte of them is on disk.

A checkpoint is a directory `steps/<step>/` that Orbax writes, and `commit.json` in it: the run's
position, and size and SHA-256 of every file. It is written last. What has no commit does not count.
"""

import hashlib
import json
import pathlib
import shutil
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from offpolicy_rl import files
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner.state import TrainState
from offpolicy_rl.learner.step import StepChoices
from offpolicy_rl.model import policy

_COMMIT = "commit.json"
_DAMAGED = ".damaged"
_BLOCK = 1 << 22

Tensors = dict[str, np.ndarray]  # parameter path -> array; of several processes, a jax.Array


class CheckpointError(RuntimeError):
  """A checkpoint that can't be used; names the file and what is wrong with it."""


class Restored(NamedTuple):
  """The contents of a checkpoint."""

  step: int
  state: TrainState
  versions: dict[int, Tensors]  # older weights that open tickets may still need
  position: dict  # JSON: where the run's files and evaluations stood

  @property
  def done(self) -> bool:
    """True if the run had ended there, with its last evaluation."""
    return self.position.get("done", False)


class Checkpoints:
  """The checkpoints of one run by step, and the frozen initial policy."""

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    keep: int,
    say: Callable[[str], None] = print,
    committed: Callable[[list[int]], None] = lambda steps: None,
  ):
    """`say` tells people what failed; `committed(steps)` is called after each new commit.

    Several processes on one directory call the same methods in the same order; each writes and
    reads what its devices hold, the first one commits and tidies up.
    """
    self._steps = directory.resolve() / "steps"
    self._initial = directory.resolve() / "initial"
    self._plain = files.orbax_path(directory.resolve())  # for Orbax
    self._keep, self._say, self._committed = keep, say, committed
    self._writer = files.orbax_composite("checkpoint")
    self._thread: threading.Thread | None = None
    self._saved = set(self.steps())

  def steps(self) -> list[int]:
    """Committed steps, oldest first; whether their bytes are still right only `restore` finds."""
    found = self._steps.iterdir() if self._steps.exists() else ()
    return sorted(int(p.name) for p in found if p.name.isdigit() and (p / _COMMIT).exists())

  def position(self, step: int) -> dict:
    """The position that was saved with a committed step."""
    return json.loads((self._steps / str(step) / _COMMIT).read_text())["position"]

  def save(
    self, step: int, state: TrainState, *, versions: dict[int, Tensors], position: dict
  ) -> None:
    """Starts writing, after the save before has ended; the caller may go on changing `state`.

    A failure (disk full) is said and leaves the checkpoints before as they are.
    """
    self.wait()
    if step in self._saved:
      return
    self._saved.add(step)
    folder = self._plain / "steps" / str(step)
    items = {"state": ocp.args.StandardSave(state._asdict())}
    if versions:
      items["versions"] = ocp.args.StandardSave(
        {str(v): policy.unflatten(tensors) for v, tensors in versions.items()}
      )
    try:
      self._writer.save(folder, args=ocp.args.Composite(**items), force=True)
    except Exception as error:  # Orbax and tensorstore raise whatever the disk makes them
      self._failed(step, error)
      return
    position = position | {"versions": sorted(versions)}
    self._thread = threading.Thread(target=self._commit, args=(step, position), name="commit")
    self._thread.start()

  def _commit(self, step: int, position: dict) -> None:
    try:
      self._writer.wait_until_finished()  # of several processes: until all have written
      if jax.process_index():
        return
      _write_commit(self._steps / str(step), position)
    except Exception as error:
      self._failed(step, error)
      return
    try:
      for old in self.steps()[: -self._keep]:
        _remove(self._steps / str(old))
      self._committed(self.steps())
    except Exception as error:  # the new checkpoint counts all the same; the next one tidies up
      self._say(f"after the checkpoint of step {step}, removing what is old: {_one_line(error)}")

  def _failed(self, step: int, error: Exception) -> None:
    for half in self._steps.glob(f"{step}*"):
      if half.name.partition(".")[0] == str(step) and not half.name.endswith(_DAMAGED):
        shutil.rmtree(half, ignore_errors=True)
    self._saved.discard(step)
    self._writer = files.orbax_composite("checkpoint")  # the old one would raise this error again
    self._say(f"checkpoint of step {step} failed, the run goes on: {_one_line(error)}")

  def amend(self, step: int, position: dict) -> None:
    """Replaces the position of a step, if it is committed: files have grown since, its state is as
    it was.
    """
    self.wait()
    if jax.process_index() or step not in self.steps():
      return
    commit = json.loads((self._steps / str(step) / _COMMIT).read_text())
    commit["position"] |= position
    files.write_durably(self._steps / str(step) / _COMMIT, json.dumps(commit))

  def newest(self) -> int | None:
    """The newest committed step whose bytes are all right; None when none was ever committed.

    Damaged ones are said and moved aside.

    Raises:
      CheckpointError: there are or were checkpoints, and every one is damaged.
    """
    steps = self.steps()
    for step in reversed(steps):
      folder = self._steps / str(step)
      try:
        _verified_position(folder)
        return step
      except CheckpointError as error:
        self._say(f"checkpoint of step {step} is damaged, moved aside: {error}")
        aside = folder.with_name(f"{step}{_DAMAGED}")
        shutil.rmtree(aside, ignore_errors=True)  # an older one of the same step
        folder.rename(aside)
        self._saved.discard(step)
    damaged = sorted(int(p.name.removesuffix(_DAMAGED)) for p in self._steps.glob(f"*{_DAMAGED}"))
    if damaged:
      raise CheckpointError(
        f"{self._steps}: every checkpoint of {damaged} is damaged; put one that is whole there, "
        "under its number, or begin anew by --restart (the run's files are kept)"
      )
    return None

  def restore(self, step: int, like: TrainState, shardings: Any) -> Restored:
    """The checkpoint of a step that `newest` found.

    `like` gives shapes and dtypes, `shardings` is a TrainState of NamedShardings.
    Raises:
      CheckpointError: it does not fit `like`.
    """
    folder, position = self._steps / str(step), self.position(step)
    plain = self._plain / "steps" / str(step)
    items = {"state": ocp.args.StandardRestore(_abstract(like._asdict(), shardings._asdict()))}
    if position["versions"]:
      items["versions"] = ocp.args.StandardRestore(_older(plain, shardings.step.mesh))
    try:
      found = self._writer.restore(plain, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises whatever it likes
      raise CheckpointError(f"{folder}: {_one_line(error)}") from None
    older = found["versions"] if position["versions"] else {}
    if jax.process_count() == 1:
      older = jax.tree.map(np.asarray, older)
    versions = {int(v): policy.flatten(tree) for v, tree in older.items()}
    return Restored(step, TrainState(**found["state"]), versions, position)

  def restore_for(self, choices: StepChoices, mesh: jax.sharding.Mesh, step: int) -> Restored:
    """The checkpoint of a step, laid out on a mesh for a training step; raises as `restore`."""
    like = state_lib.shapes(choices.model, choices.optimizer)
    shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
    with jax.sharding.set_mesh(mesh):
      return self.restore(step, like, shardings)

  def save_initial(self, params: policy.Params) -> None:
    """Keeps version 0, the reference of objectives with a KL term."""
    with files.orbax_standard("initial") as writer:
      writer.save(self._plain / "initial", params, force=True)
    if not jax.process_index():
      _write_commit(self._initial, {})

  def restore_initial(self, like: policy.Params, shardings: policy.Params) -> policy.Params:
    """Inverse of `save_initial`; CheckpointError when it is damaged or missing."""
    if not jax.process_index():
      _verified_position(self._initial)
    with files.orbax_standard("initial") as reader:
      return reader.restore(self._plain / "initial", _abstract(like, shardings))

  def wait(self) -> None:
    """Returns once the save that was started is committed, or has failed."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def close(self) -> None:
    """Waits until everything is on disk."""
    self.wait()
    self._writer.close()


def newest_params(directory: pathlib.Path, like: policy.Params) -> tuple[int, policy.Params]:
  """(step, parameters) of a run's newest checkpoint; its optimizer state is not read.

  `like`: shapes and dtypes of the parameters.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  steps = Checkpoints(directory, keep=1).steps()
  if not steps:
    raise CheckpointError(f"{directory}: no checkpoint")
  folder = directory.resolve() / "steps" / str(steps[-1])
  _verified_position(folder)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = {"params": _abstract(like, jax.tree.map(lambda _: here, like))}
  with ocp.PyTreeCheckpointer() as reader:
    found = reader.restore(
      files.orbax_path(folder) / "state",
      args=ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
      ),
    )
  return steps[-1], found["params"]


def _write_commit(folder: pathlib.Path, position: dict) -> None:
  """Syncs every file and folder, then writes the commit."""
  contents = {}
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    files.sync(path)
    name = str(path.relative_to(folder))
    contents[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
  for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent):
    files.sync(path)
  files.write_durably(folder / _COMMIT, json.dumps({"position": position, "files": contents}))


def _verified_position(folder: pathlib.Path) -> dict:
  """Checks every file against the commit; CheckpointError names the first that differs."""
  try:
    commit = json.loads((folder / _COMMIT).read_text())
    position, contents = commit["position"], commit["files"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(f"{folder / _COMMIT}: {_one_line(error)}") from None
  for name, expected in contents.items():
    path = folder / name
    if not path.is_file():
      raise CheckpointError(f"{path}: missing, expected {expected['bytes']} bytes")
    if path.stat().st_size != expected["bytes"]:
      raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}")
    if _sha256(path) != expected["sha256"]:
      raise CheckpointError(f"{path}: its sha256 is not the one of the commit")
  return position


def _remove(folder: pathlib.Path) -> None:
  """The commit goes first: a half-removed checkpoint does not count."""
  (folder / _COMMIT).unlink()
  shutil.rmtree(folder)


def _sha256(path: pathlib.Path) -> str:
  found = hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      found.update(block)
  return found.hexdigest()


def _one_line(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _older(folder: pathlib.Path, mesh) -> dict | None:
  """Layout of the older versions among several processes; None = as they are (one process)."""
  if jax.process_count() == 1:
    return None
  found = ocp.StandardCheckpointHandler().metadata(epath.Path(folder) / "versions").tree
  return _abstract(found, policy.param_shardings(mesh, jax.tree.map(_shape, found)))


def _shape(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _abstract(tree, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
