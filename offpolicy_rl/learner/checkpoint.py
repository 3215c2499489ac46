"""Checkpoints: written in the background, valid only once every byte is on disk.

A checkpoint is a directory `steps/<step>/` that Orbax writes. Its `commit.json` has the run's
position, and the size and SHA-256 of every file. It is written last; without it a checkpoint is
ignored.
"""

import functools
import json
import operator
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

Tensors = dict[str, np.ndarray]  # parameter path -> array; jax.Array with several processes


class CheckpointError(RuntimeError):
  """A checkpoint can't be used; names the file and what is wrong with it."""


class Restored(NamedTuple):
  """The contents of a checkpoint."""

  step: int
  state: TrainState
  versions: dict[int, Tensors]  # older weights that open tickets may need
  position: dict  # JSON: position of the run's files and evaluations

  @property
  def done(self) -> bool:
    """True if the run had finished, with its last evaluation."""
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
    """`say` prints failures; `committed(steps)` is called after each commit.

    Several processes that share the directory call the same methods in the same order. Each writes
    and reads the shards of its devices; the first one commits and removes old checkpoints.
    """
    self._steps = directory.resolve() / "steps"
    self._initial = directory.resolve() / "initial"
    self._plain = files.orbax_path(directory.resolve())  # for Orbax
    self._keep, self._say, self._committed = keep, say, committed
    self._writer = files.orbax_composite("checkpoint")
    self._thread: threading.Thread | None = None
    self._saved = set(self.steps())

  def steps(self) -> list[int]:
    """Returns committed steps, oldest first, without verifying them."""
    return _committed(self._steps)

  def position(self, step: int) -> dict:
    """Returns the position that was saved with a committed step."""
    return json.loads((self._steps / str(step) / _COMMIT).read_text(encoding="utf-8"))["position"]

  def save(
    self, step: int, state: TrainState, *, versions: dict[int, Tensors], position: dict
  ) -> None:
    """Starts writing, after the previous save has ended; then the caller may change `state`.

    A failure (disk full) is printed and leaves earlier checkpoints as they are.
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
    except Exception as error:  # Orbax and tensorstore raise many kinds
      self._failed(step, error)
      return
    position = position | {"versions": sorted(versions)}
    self._thread = threading.Thread(target=self._commit, args=(step, position), name="commit")
    self._thread.start()

  def _commit(self, step: int, position: dict) -> None:
    try:
      self._writer.wait_until_finished()  # until all processes have written
      if jax.process_index():
        return
      _write_commit(self._steps / str(step), position)
    except Exception as error:
      self._failed(step, error)
      return
    try:
      _remove_older(self._steps, self.steps()[-self._keep :][0])
      self._committed(self.steps())
    except Exception as error:  # the new checkpoint is valid; the next one cleans up
      self._say(f"after the checkpoint of step {step}, removing what is old: {_one_line(error)}")

  def _failed(self, step: int, error: Exception) -> None:
    for half in self._steps.glob(f"{step}*"):
      if half.name.partition(".")[0] == str(step) and not half.name.endswith(_DAMAGED):
        shutil.rmtree(half, ignore_errors=True)
    self._saved.discard(step)
    self._writer = files.orbax_composite("checkpoint")  # the old one would raise this error again
    self._say(f"checkpoint of step {step} failed, the run goes on: {_one_line(error)}")

  def amend(self, step: int, position: dict) -> None:
    """Updates the position of a step if it is committed."""
    self.wait()
    if jax.process_index() or step not in self.steps():
      return
    commit = json.loads((self._steps / str(step) / _COMMIT).read_text(encoding="utf-8"))
    commit["position"] |= position
    files.write_durably(self._steps / str(step) / _COMMIT, json.dumps(commit))

  def newest(self) -> int | None:
    """Returns the newest committed step that is undamaged; None if there never was a checkpoint.

    Damaged ones are printed and moved aside.

    Raises:
      CheckpointError: all checkpoints are damaged, or none has a commit though the run went on.
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
    if (why := _unusable(self._steps)).startswith("every"):
      raise CheckpointError(
        f"{self._steps}: {why}; put back a complete one under its number, or start over with "
        "--restart (the run's files are kept)"
      )
    return None

  def restore(self, step: int, like: TrainState, shardings: Any) -> Restored:
    """Reads the checkpoint of a step that `newest` returned.

    `like` has shapes and dtypes, `shardings` is a TrainState of NamedShardings.

    Raises:
      CheckpointError: it does not fit `like`, or can't be read.
    """
    folder, position = self._steps / str(step), self.position(step)
    plain = self._plain / "steps" / str(step)
    items = {"state": ocp.args.StandardRestore(_abstract(like._asdict(), shardings._asdict()))}
    if position["versions"]:
      items["versions"] = ocp.args.StandardRestore(_older(plain, shardings.step.mesh))
    try:
      _require_fit(plain / "state", like.params, "params")
      items = self._writer.restore(plain, args=ocp.args.Composite(**items))
    except CheckpointError:
      raise
    except Exception as error:  # Orbax raises many kinds
      raise CheckpointError(f"{folder}: {_one_line(error)}") from None
    older = items["versions"] if position["versions"] else {}
    if jax.process_count() == 1:
      older = jax.tree.map(np.asarray, older)
    versions = {int(v): policy.flatten(tree) for v, tree in older.items()}
    return Restored(step, TrainState(**items["state"]), versions, position)

  def restore_for(self, choices: StepChoices, mesh: jax.sharding.Mesh, step: int) -> Restored:
    """Reads the checkpoint of a step onto a mesh for a training step; raises as `restore`."""
    like = state_lib.shapes(choices.model, choices.optimizer)
    shardings = state_lib.shardings(choices.model, mesh, choices.optimizer)
    with jax.sharding.set_mesh(mesh):
      return self.restore(step, like, shardings)

  def save_initial(self, params: policy.Params) -> None:
    """Writes version 0, the reference of objectives with a KL term."""
    with files.orbax_standard("initial") as writer:
      writer.save(self._plain / "initial", params, force=True)
    if not jax.process_index():
      _write_commit(self._initial, {})

  def restore_initial(self, like: policy.Params, shardings: policy.Params) -> policy.Params:
    """Reads what `save_initial` wrote; CheckpointError if it is damaged, missing or another's."""
    if not jax.process_index():
      _verified_position(self._initial)
    _require_fit(self._plain / "initial", like)
    with files.orbax_standard("initial") as reader:
      return reader.restore(self._plain / "initial", _abstract(like, shardings))

  def wait(self) -> None:
    """Waits until the last save is committed or has failed."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None

  def close(self) -> None:
    """Waits for the last save and closes the writer."""
    self.wait()
    self._writer.close()


def newest_params(directory: pathlib.Path, like: policy.Params) -> tuple[int, policy.Params]:
  """Reads (step, parameters) of a run's newest checkpoint, without its optimizer state.

  `like`: shapes and dtypes of the parameters.

  Raises:
    CheckpointError: there is none, or it is damaged.
  """
  checkpoints = Checkpoints(directory, keep=1)
  while steps := checkpoints.steps():
    folder = directory.resolve() / "steps" / str(steps[-1])
    try:
      _verified_position(folder)
      return steps[-1], _read_params(folder, like)
    except CheckpointError:
      if (folder / _COMMIT).exists():  # else the run, still alive, has removed it meanwhile
        raise
    except Exception as error:  # Orbax raises many kinds
      if (folder / _COMMIT).exists():
        raise CheckpointError(f"{folder}: {_one_line(error)}") from None
  raise CheckpointError(f"{directory / 'steps'}: {_unusable(directory / 'steps')}")


def digests(directory: pathlib.Path) -> dict[str, str]:
  """{file: SHA-256} of a run's newest checkpoint, and of its frozen version 0 if it has one.

  Reads their commits only.

  Raises:
    CheckpointError: there is none, or a commit is damaged.
  """
  steps = _committed(directory / "steps")
  if not steps:
    raise CheckpointError(f"{directory / 'steps'}: {_unusable(directory / 'steps')}")
  folders = [directory / "steps" / str(steps[-1]), directory / "initial"]
  return {
    f"{folder.name}/{name}": entry["sha256"]
    for folder in folders
    if (folder / _COMMIT).exists()
    for name, entry in _commit_of(folder)["files"].items()
  }


def _committed(steps: pathlib.Path) -> list[int]:
  folders = steps.iterdir() if steps.is_dir() else ()
  return sorted(int(p.name) for p in folders if p.name.isdigit() and (p / _COMMIT).exists())


def _unusable(steps: pathlib.Path) -> str:
  """Says why there is no checkpoint to read in the directory of a run."""
  names = [path.name for path in steps.glob("*")] if steps.is_dir() else []
  damaged = [int(name.removesuffix(_DAMAGED)) for name in names if name.endswith(_DAMAGED)]
  begun = [int(name) for name in names if name.isdigit()]
  if damaged:
    return f"every checkpoint of {sorted(damaged)} is damaged"
  if steps.exists() and not steps.is_dir():
    return "got a file, expected the directory of checkpoints"
  if any(begun):  # the one of step 0 may have been interrupted
    return f"every checkpoint of {sorted(begun)} lacks its {_COMMIT}, which is written last"
  return "no checkpoint yet; a run writes the first one when it begins to sample"


def _require_fit(folder: pathlib.Path, params: policy.Params, *path: str) -> None:
  """Raises CheckpointError unless what Orbax wrote has the shapes of `params` below `path`."""
  tree = ocp.StandardCheckpointHandler().metadata(epath.Path(folder)).tree
  saved = policy.flatten(functools.reduce(operator.getitem, path, tree))
  for name, expected in policy.flatten(params).items():
    got = tuple(saved[name].shape) if name in saved else "nothing"
    if got != expected.shape:
      raise CheckpointError(
        f"{folder}: {name}: got {got}, expected {expected.shape} by the run's config.json; the "
        "checkpoint is of another model: put back what belongs together"
      )


def _read_params(folder: pathlib.Path, like: policy.Params) -> policy.Params:
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  _require_fit(files.orbax_path(folder) / "state", like, "params")
  target = {"params": _abstract(like, jax.tree.map(lambda _: here, like))}
  with ocp.PyTreeCheckpointer() as reader:
    restored = reader.restore(
      files.orbax_path(folder) / "state",
      args=ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
      ),
    )
  return restored["params"]


def _write_commit(folder: pathlib.Path, position: dict) -> None:
  """Syncs every file and folder, then writes the commit."""
  contents = {}
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    files.sync(path)
    name = str(path.relative_to(folder))
    contents[name] = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
  for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder, folder.parent):
    files.sync(path)
  files.write_durably(folder / _COMMIT, json.dumps({"position": position, "files": contents}))


def _commit_of(folder: pathlib.Path) -> dict:
  """{"position", "files"} of a checkpoint; CheckpointError if it is not complete or damaged."""
  try:
    commit = json.loads((folder / _COMMIT).read_text(encoding="utf-8"))
    return {key: commit[key] for key in ("position", "files")}
  except FileNotFoundError:
    raise CheckpointError(
      f"{folder / _COMMIT}: missing, expected because it is written last; the checkpoint is not "
      "complete"
    ) from None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(
      f"{folder / _COMMIT}: got {_one_line(error)}, expected an object with position and files"
    ) from None


def _verified_position(folder: pathlib.Path) -> dict:
  """Checks every file against the commit; CheckpointError names the first that differs."""
  commit = _commit_of(folder)
  for name, expected in commit["files"].items():
    path = folder / name
    if not path.is_file():
      raise CheckpointError(f"{path}: missing, expected {expected['bytes']} bytes")
    if path.stat().st_size != expected["bytes"]:
      raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}")
    if files.sha256(path) != expected["sha256"]:
      raise CheckpointError(f"{path}: its sha256 is not the one of the commit")
  return commit["position"]


def _remove_older(steps: pathlib.Path, oldest: int) -> None:
  """Removes what is before a step, with what a killed process left half-written or half-removed."""
  for folder in steps.glob("[0-9]*"):
    number = folder.name.partition(".")[0]
    if number.isdigit() and int(number) < oldest and not folder.name.endswith(_DAMAGED):
      (folder / _COMMIT).unlink(missing_ok=True)  # first: a half-removed checkpoint is invalid
      shutil.rmtree(folder)


def _one_line(error: Exception) -> str:
  return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _older(folder: pathlib.Path, mesh) -> dict | None:
  """Layout of older versions for several processes; None = one process."""
  if jax.process_count() == 1:
    return None
  saved = ocp.StandardCheckpointHandler().metadata(epath.Path(folder) / "versions").tree
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
  return _abstract(shapes, policy.param_shardings(mesh, shapes))


def _abstract(tree, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )
