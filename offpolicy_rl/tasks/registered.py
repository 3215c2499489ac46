"""Tasks that are read with TensorFlow: those in seqio's registries, and what TFDS prepared.

Their problems, splits and rates are known when `Selection.expanded` loads TensorFlow. Until then
they have a name and a verifier, which is all that a sampler needs.
"""

import fnmatch
import functools
import importlib.util
import pathlib
from typing import Any

from offpolicy_rl.system import nearby
from offpolicy_rl.tasks import sources, splits, verifiers
from offpolicy_rl.tasks.rows import TaskError


def seqio_task(settings: Any, label: str) -> splits.Task:
  """The Task or Mixture `label` that task.module registers; `settings`: the section `task`."""
  if not label:
    raise TaskError(f"task.name: got {settings.name!r}, expected seqio:NAME")
  if not settings.module:
    raise TaskError(
      f"task.module: got '', expected the module that registers {label} for {settings.name}"
    )

  def members(verifier: str) -> list[tuple[float, splits.Task]]:
    from offpolicy_rl.tasks import seqio_reader  # TensorFlow, only here

    how = seqio_reader.Reading(
      settings.module,
      settings.train_split,
      settings.heldout_split,
      settings.max_listed,
      settings.max_bad_rows,
      verifier,
    )
    return seqio_reader.members(label, how)

  return splits.Task(
    settings.name,
    problems=_not_expanded,
    verifier=verifiers.SEQIO_METRIC,
    check=functools.partial(_check_module, settings.module),
    slow=True,
    module=settings.module,
    members=members,
  )


def tfds_task(settings: Any, label: str) -> splits.Task:
  """The data set `label` ("name" or "name:version"), columns by name."""
  if not label:
    raise TaskError(f"task.name: got {settings.name!r}, expected tfds:NAME or tfds:NAME:VERSION")
  folder = sources.tfds_folder(settings.data_dir)

  def members(verifier: str) -> list[tuple[float, splits.Task]]:
    found = sources.tfds_splits(label, folder)
    heldout = splits.heldout_split(settings.name, found, settings)
    columns = sources.columns(settings)
    listed = lambda split: functools.cache(
      functools.partial(sources.tfds, label, folder, split, columns, settings.max_listed)
    )
    task = splits.Task(
      settings.name,
      listed(settings.train_split),
      verifier,
      heldout=listed(heldout) if heldout else None,
      slow=True,
      max_bad_rows=settings.max_bad_rows,
    )
    return [(1.0, task)]

  return splits.Task(
    settings.name,
    problems=_not_expanded,
    verifier=verifiers.NAMED["exact"],
    check=functools.partial(_check_prepared, folder, label),
    slow=True,
    members=members,
  )


def _not_expanded() -> sources.Listed:
  raise AssertionError("its members have the problems")


def _check_module(module: str) -> None:
  sources.check_package("seqio", "seqio", extra="seqio")
  if module.endswith(".py"):
    name = module.removesuffix(".py").replace("/", ".")
    raise TaskError(f"task.module: got {module!r}, expected a module, such as {name}")
  try:
    found = importlib.util.find_spec(module)
  except (ImportError, ValueError) as error:
    raise TaskError(f"task.module: got {module!r}, which can't be found: {error}") from None
  if found is None:
    raise TaskError(
      f"task.module: got {module!r}, expected a module that Python finds: is its folder in "
      "PYTHONPATH?"
    )


def _check_prepared(folder: pathlib.Path, label: str) -> None:
  sources.check_package("tensorflow_datasets", "tensorflow-datasets", extra="seqio")
  name, _, version = label.partition(":")
  versions = sorted({path.parent.name for path in (folder / name).glob("**/dataset_info.json")})
  if not versions:
    raise TaskError(
      f"task.data_dir: {folder} has no data set {name}; expected what `tfds build {name} "
      f"--data_dir=DIR` leaves in a DIR{nearby.files(folder / name)}"
    )
  if version[:1].isdigit() and not fnmatch.filter(versions, version):  # TFDS reads 1.*.*, too
    known = ", ".join(f"tfds:{name}:{one}" for one in versions)
    raise TaskError(
      f"task.name: got tfds:{label}, expected one of {known}; that is what {folder / name} has"
    )
