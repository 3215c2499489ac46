"""What a run directory holds, and with which configuration its run goes on. Imports no JAX."""

import contextlib
import functools
import itertools
import json
import operator
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

from offpolicy_rl import config as config_lib
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import schedule
from offpolicy_rl.system import locks

CONFIG = "config.json"
_ASIDE = "before-"
_FILLED_IN = ("task.chat_date",)  # by the run, where its card leaves it open
_STAYS = (locks.FILE, "checkpoints")  # in a run directory whose run begins anew


class Places(NamedTuple):
  """Where a run is: two directories, as checkpoints may be shared and the rest may not."""

  run_dir: pathlib.Path
  checkpoints: pathlib.Path

  def steps_made(self) -> int:
    """How many training steps its metrics tell of."""
    rows = metrics.read(self.run_dir)
    return 1 + max((row["step"] for row in rows if row["kind"] == metrics.TRAIN), default=-1)

  def has_checkpoints(self) -> bool:
    """Whether there ever was one, damaged ones included."""
    return any((self.checkpoints / "steps").glob("*"))

  def holds_a_run(self) -> bool:
    """Something that must not be written over."""
    return self.has_checkpoints() or self.steps_made() > 0


def places(run_dir: str, checkpoint_dir: str | None) -> Places:
  """As the flags name them."""
  return Places(
    pathlib.Path(run_dir), pathlib.Path(checkpoint_dir or pathlib.Path(run_dir) / "checkpoints")
  )


def base(
  where: Places | None, *, card: str | None, replay: str | None, resume: bool, restart: bool
) -> tuple[object, object | None, list[str]]:
  """(the configuration before flags, that of the run to resume or None, lines about both).

  A run that is resumed goes on with its own; a card says how it began, and may have changed since.

  Args:
    where: None = a new place.
    card, replay: files.

  Raises:
    ConfigError: there is none, or the directory holds what is not to be written over.
    ValueError: `replay` can't be read.
  """
  if where:
    _check_directories(where)
  if where and resume:
    _check_resuming(where)
  elif where and not restart:
    _check_beginning(where)
  found = config_lib.load(card) if card else None
  if where and resume and where.has_checkpoints() and (run := saved(where)):
    config, notes = merged(run, found, card)
    return config, run, notes
  if found is None and where and (resume or restart):
    found = saved(where)
    if found is None:
      raise config_lib.ConfigError(
        f"--run_dir: no file {where.run_dir / CONFIG}, expected the run to resume"
      )
  if found is None and replay:
    found = config_lib.from_json(schedule.read(pathlib.Path(replay)).config_json)
  if found is None:
    raise config_lib.ConfigError("--config: missing, expected a file such as configs/demo.py")
  return found, None, []


def _check_directories(where: Places) -> None:
  for flag, path in (("run_dir", where.run_dir), ("checkpoint_dir", where.checkpoints)):
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
      raise config_lib.ConfigError(
        f"--{flag}: got {str(path)!r}, expected a directory, or a place for one; {there} is none"
      )


def _check_beginning(where: Places) -> None:
  if where.holds_a_run():
    raise config_lib.ConfigError(
      f"--run_dir: {where.run_dir} holds a run already; go on with it by --resume, begin it anew "
      f"by --restart (its files are kept), or choose another"
    )


def _check_resuming(where: Places) -> None:
  made = where.steps_made()
  if made and not where.has_checkpoints():
    raise config_lib.ConfigError(
      f"--resume: {where.run_dir / metrics.FILE} tells of {made} steps, but there is no checkpoint "
      f"in {where.checkpoints}; put them back, name their place by --checkpoint_dir, or begin anew "
      "by --restart (the run's files are kept)"
    )


def saved(where: Places):
  """The configuration of the run, None where none is there: with its checkpoints, or beside them.

  Raises:
    ConfigError: it can't be read; names the file.
  """
  for file in (where.checkpoints / CONFIG, where.run_dir / CONFIG):
    if file.is_file():
      return config_lib.load(str(file))
  return None


def merged(run, card, name: str | None) -> tuple[object, list[str]]:
  """(the run's configuration with the keys that a later release has added, a line for each
  difference): a card says how runs begin, and may have changed since.

  Args:
    card: its configuration, and `name`, its file; None = configs/base.py has the new keys.
  """
  ours, notes = config_lib.flatten(run), []
  newer = config_lib.base() if card is None else card
  theirs, nested = config_lib.flatten(newer), newer.to_dict()
  for key, value in theirs.items():
    if key not in ours:
      source = name or "configs/base.py"
      notes.append(f"{key}: {value!r}, as {source} has it; the run began without this key")
      continue
    *sections, last = key.split(".")
    functools.reduce(operator.getitem, sections, nested)[last] = ours[key]
    if name and ours[key] != value and key not in _FILLED_IN:
      notes.append(
        f"{key}: {ours[key]!r}, as the run has it; {name} says {value!r} "
        f"(to change it: --config.{key}={value})"
      )
  for key in ours.keys() - theirs.keys():
    notes.append(f"{key}: left out, this release does not know it; the run had {ours[key]!r}")
  return config_lib.from_json(json.dumps(nested)), notes


def changes(run, now) -> list[str]:
  """A line for each key in which a run goes on differently."""
  before, after = config_lib.flatten(run), config_lib.flatten(now)
  return [
    f"{key}: {value!r} from here on, was {before[key]!r}"
    for key, value in after.items()
    if key in before and before[key] != value
  ]


def set_aside(where: Places) -> list[pathlib.Path]:
  """Moves a run's files out of the way of a new one; where they are now."""
  moved = []
  for directory, stays in ((where.run_dir, _STAYS), (where.checkpoints, (locks.FILE,))):
    paths = list(directory.iterdir()) if directory.exists() else []
    paths = [p for p in paths if p.name not in stays and not p.name.startswith(_ASIDE)]
    if paths:
      moved.append(claim(directory, _ASIDE + time.strftime("%Y%m%d-%H%M%S")))
      for path in paths:
        path.rename(moved[-1] / path.name)
  return moved


def is_of_a_run(path: pathlib.Path) -> bool:
  """Whether something in a checkpoint directory is there to be lost."""
  return path.name not in (locks.FILE, CONFIG) and not path.name.startswith(_ASIDE)


@contextlib.contextmanager
def directory(given: str | None, parent: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
  """The directory that was given, or a new one in `parent`; that goes if nothing comes into it."""
  if given:
    yield pathlib.Path(given)
    return
  path = claim(parent, name)
  try:
    yield path
  finally:
    with contextlib.suppress(OSError):
      path.rmdir()


def claim(parent: pathlib.Path, name: str) -> pathlib.Path:
  """Makes a directory that nobody else has, also of those who choose its name at this moment."""
  parent.mkdir(parents=True, exist_ok=True)
  for i in itertools.count(1):
    path = parent / (name if i == 1 else f"{name}-{i}")
    with contextlib.suppress(FileExistsError):
      path.mkdir()
      return path
  raise AssertionError
