"""Weights through a directory that learner and samplers share: local, NFS, or gs:// on pods.

    <directory>/<version>/    one orbax checkpoint of {path: array}
    <directory>/index.json    {"session": ..., "versions": [...]}: complete ones that stay

A version enters the index after its checkpoint is complete and leaves it before anything is
removed. So a reader that finds it there before *and* after reading has read all of it. The path
comes from a flag on each side, never from the wire. The only file of this folder that needs JAX.
"""

import concurrent.futures
import json
import logging
import re
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from offpolicy_rl import files

_LOG = logging.getLogger(__name__)
_INDEX = "index.json"
_OURS = re.compile(r"-?\d+(\.orbax-checkpoint-tmp.*)?|(index|lock)\.json(\.tmp)?")
_MAX_WRITING = 2  # versions being written at once; more would fill the host's memory


class NotFound(ConnectionError):
  """No version within the bounds appeared in time."""


class Gone(LookupError):
  """Only newer versions are left: no open ticket needs those within the bounds."""


class WeightsDirectory:
  """The learner's side, with the interface of `weights.WeightStore`.

  In a learner of several processes each has one: all write what their devices hold, the first one
  keeps the index and removes old versions.
  """

  def __init__(self, directory: str, session: str):
    """Takes the directory over, removing earlier sessions' versions; ValueError for other files."""
    self._directory, self._session = _path(directory), session
    self._leads = jax.process_index() == 0
    self._complete: set[int] = set()
    self._leaving: set[int] = set()  # no longer complete, but still on the disk
    # One worker, so that index and directory change in order and the caller waits for neither.
    self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="weights-dir")
    self._jobs: dict[int, concurrent.futures.Future] = {}  # version -> its write, oldest first
    self._like: dict[int, dict[str, jax.ShapeDtypeStruct]] = {}  # of every version
    if self._leads:
      self._take_over(directory)

  def _take_over(self, directory: str) -> None:
    self._directory.mkdir(parents=True, exist_ok=True)
    strange = [p.name for p in self._directory.iterdir() if not _OURS.fullmatch(p.name)]
    if strange:
      raise ValueError(
        f"--weights_dir: {directory} holds {sorted(strange)[:3]}, expected an empty directory or "
        "the one of an earlier run"
      )
    self._write_index()
    for old in self._directory.iterdir():
      if old.is_dir():
        old.rmtree()

  def put(self, version: int, tensors: dict[str, jax.Array]) -> None:
    """Starts writing; returns when the arrays are copied to the host.

    Waits while two versions are being written. Raises the error of an earlier write.
    """
    while self._jobs:
      oldest = next(iter(self._jobs))
      if len(self._jobs) < _MAX_WRITING and not self._jobs[oldest].done():
        break
      self._jobs.pop(oldest).result()
    self._like[version] = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding_to_read(x))
      for name, x in tensors.items()
    }
    writer = files.orbax_standard(f"weights-{version}")
    writer.save(self._directory / str(version), tensors)
    self._jobs[version] = self._worker.submit(self._finish, writer, version)

  def retain(self, needed: Callable[[int], bool]) -> None:
    """Removes complete versions for which `needed(version)` is false, in the background.

    They go after earlier writes have ended, so that there is always one to read. One that can't be
    removed is tried again at the next call; a reader on NFS may still have its files open.
    """
    going = {v for v in self._complete if not needed(v)}
    if going or self._leaving:
      self._worker.submit(self._remove, going)

  def versions(self) -> list[int]:
    """The versions that are complete or being written, oldest first."""
    writing = {version for version, job in self._jobs.items() if not job.done()}
    return sorted(writing | self._complete)

  def tensors(self, version: int) -> dict[str, np.ndarray | jax.Array]:
    """Reads a version back, once it is written, for a checkpoint that needs it.

    Several processes each read their part into arrays of their devices.
    """
    if version in self._jobs:
      self._jobs[version].result()
    tensors = restore(str(self._directory), version, self._like[version])
    return tensors if jax.process_count() > 1 else {k: np.asarray(x) for k, x in tensors.items()}

  def close(self) -> None:
    """Waits until everything is written."""
    self._worker.shutdown(wait=True)
    for job in self._jobs.values():
      job.result()

  def _finish(self, writer: ocp.StandardCheckpointer, version: int) -> None:
    writer.wait_until_finished()
    writer.close()
    if self._leads:
      self._complete = self._complete | {version}
      self._write_index()

  def _remove(self, versions: set[int]) -> None:
    self._complete = self._complete - versions
    self._leaving = self._leaving | versions
    try:
      self._write_index()
      for version in sorted(self._leaving):
        self._like.pop(version, None)
        (self._directory / str(version)).rmtree(missing_ok=True)
        self._leaving = self._leaving - {version}
    except OSError as error:
      _LOG.warning("--weights_dir: can't remove versions %s yet: %s", sorted(self._leaving), error)

  def _write_index(self) -> None:
    text = json.dumps({"session": self._session, "versions": sorted(self._complete)})
    temporary = self._directory / f"{_INDEX}.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(self._directory / _INDEX)


def _sharding_to_read(x: jax.Array) -> jax.sharding.Sharding:
  """The host's, but with several processes, that of the array that was written."""
  if jax.process_count() > 1:
    return x.sharding
  return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])


def _path(directory: str) -> epath.Path:
  """An absolute path, for orbax; `absolute()` would treat gs:// as a relative path."""
  path = epath.Path(directory)
  return files.orbax_path(path if path.is_absolute() else path.absolute())


def complete_versions(directory: str, session: str) -> list[int]:
  """Versions that can be restored now, oldest first; [] if another session wrote them."""
  try:
    index = json.loads((_path(directory) / _INDEX).read_text(encoding="utf-8"))
    return index["versions"] if index["session"] == session else []
  except FileNotFoundError:
    return []
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{directory}/{_INDEX}: no list of versions: {error!r:.100}") from None


def restore(directory: str, version: int, like: dict[str, jax.ShapeDtypeStruct]) -> dict:
  """{path: array}, each read straight into its sharding in `like`.

  Raises:
    OSError, ValueError, KeyError: it is damaged, or was removed while being read.
  """
  folder = _path(directory) / str(version)
  with files.orbax_standard(f"reads-{version}") as reader:
    try:
      return reader.restore(folder, like)
    except Exception as error:
      if type(error) is not Exception:  # Orbax's for an array that ends early
        raise
      raise OSError(f"{folder}: {error.__cause__ or error!s:.300}") from error


def pull(
  directory: str,
  min_version: int,
  max_version: int,
  *,
  session: str,
  held_version: int,
  like: dict[str, jax.ShapeDtypeStruct],
  seconds: float,
  check: Callable[[], None] = lambda: None,
) -> tuple[int, dict | None]:
  """Newest complete version within the bounds -> (version, {path: array}), None if it is held.

  Args:
    seconds: time to wait for one.
    check: called while waiting; may raise, e.g. because the learner was restarted.

  Raises:
    Gone: there are only newer ones.
    NotFound: none came in time, or none could be read.
  """
  deadline, pause, problem = time.monotonic() + seconds, 0.02, "nothing to read"
  while True:
    try:
      pulled = _try(directory, min_version, max_version, session, held_version, like)
    except (OSError, ValueError, KeyError) as error:  # removed while we read it, or damaged
      pulled, problem = None, error
    if pulled is not None:
      return pulled
    check()
    if time.monotonic() > deadline:
      raise NotFound(
        f"--weights_dir: no version in [{min_version}, {max_version}] in {directory} after "
        f"{seconds:.0f} s ({problem}); is it the learner's directory?"
      )
    time.sleep(pause)
    pause = min(2 * pause, 1.0)


def _try(directory, low: int, high: int, session: str, held_version: int, like):
  complete = complete_versions(directory, session)
  version = max((v for v in complete if low <= v <= high), default=None)
  if version is None:
    if complete and max(complete) > high:  # they are completed in order
      raise Gone(f"{directory}: no version in [{low}, {high}], only newer ones")
    return None
  if version == held_version:
    return version, None
  tensors = restore(directory, version, like)
  return (version, tensors) if version in complete_versions(directory, session) else None
