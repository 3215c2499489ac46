"""Run directories: claiming one, and the configuration of a resumed run. Loads no JAX."""

import contextlib
import functools
import json
import operator
import os
import pathlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import schedule
from offpolicy_rl.system import locks

CONFIG = "config.json"
_PREVIOUS = "before-"  # prefix of directories with the files of a run before a restart
_FILLED_IN = ("task.chat_date", "environment.tools")  # by the run, if empty in its card


class RunDirectory(NamedTuple):
  """The directories of a run: checkpoints may be shared between hosts, the rest may not."""

  path: pathlib.Path
  checkpoints: pathlib.Path

  def steps(self) -> int:
    """Number of training steps in the run's metrics."""
    rows = metrics.read(self.path)
    return 1 + max((row["step"] for row in rows if row["kind"] == metrics.TRAIN), default=-1)

  def has_checkpoints(self) -> bool:
    """Whether there is a checkpoint, damaged ones included."""
    return any((self.checkpoints / "steps").glob("*"))

  def saved_config(self) -> ConfigDict | None:
    """Reads the configuration next to the checkpoints or in the run; None if there is none.

    Raises:
      ConfigError: it can't be read; names the file.
    """
    for file in (self.checkpoints / CONFIG, self.path / CONFIG):
      if file.is_file():
        return config_lib.read(str(file))
    return None


def from_flags(run_dir: str, checkpoint_dir: str | None) -> RunDirectory:
  """The directories of --run_dir and --checkpoint_dir."""
  path = pathlib.Path(run_dir)
  return RunDirectory(
    path, pathlib.Path(checkpoint_dir) if checkpoint_dir else path / "checkpoints"
  )


def configuration(
  run: RunDirectory | None,
  *,
  card: str | None,
  replay: str | None,
  resume: bool,
  restart: bool,
  assignments: Sequence[tuple[str, str]],
) -> tuple[ConfigDict, list[str]]:
  """The checked configuration of a run, and lines about differences from its card or before.

  A resumed run keeps its configuration, as its card may have changed since it began.

  Args:
    run: None = a new directory.
    card, replay: files.
    assignments: keys and the texts of their values, from the command line.

  Raises:
    ConfigError: it is wrong, or a directory has a run that must not be overwritten.
    ValueError: `replay` can't be read.
  """
  if run is not None:
    _check(run, resume=resume, restart=restart)
  elif resume or restart:
    raise config_lib.ConfigError(
      "--run_dir: missing, expected the directory of the run to go on with, such as "
      f"--run_dir={config_lib.example_run()}"
    )
  config, notes = config_lib.load(card) if card else None, []
  before = run.saved_config() if run and resume and run.has_checkpoints() else None
  if before:
    config, notes = merge(before, config, card)
  elif config is None and run and (resume or restart):
    config = run.saved_config()
    if config is None:
      raise config_lib.ConfigError(
        f"--run_dir: no file {run.path / CONFIG}, expected the directory of a run, such as "
        f"--run_dir={config_lib.example_run()}; to begin one there, leave --resume and --restart "
        "out and give --config"
      )
    config = config_lib.with_defaults(config)
  elif config is None and replay:
    config = _recorded_config(pathlib.Path(replay))
  elif config is None:
    raise config_lib.ConfigError(f"--config: missing, expected {config_lib.example_card()}")
  if replay:
    config.lag.mode, config.lag.schedule = "replay", str(pathlib.Path(replay).resolve())
  for key, value in config_lib.override(config, assignments).items():
    notes.append(f"{key}: {value!r} is left out, as the card has it for another objective")
  config_lib.validate(config)
  if before is not None:
    config_lib.check_resume(before, config)
    given = {key for key, _ in assignments}
    notes = [line for line in notes if line.partition(":")[0] not in given]
    notes += _changes(before, config)
  return config, notes


def _recorded_config(path: pathlib.Path) -> ConfigDict:
  """The configuration of a recorded run; ConfigError names the file if it is none."""
  try:
    config = config_lib.with_defaults(config_lib.from_json(schedule.read(path).config_json))
    config_lib.check_keys(config)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f"--replay: {path}: {error}") from None
  return config


def require_directory(flag: str, path: pathlib.Path) -> None:
  """Raises ConfigError, naming the flag, if `path` is something else, or could not be made."""
  there = next(place for place in (path, *path.parents) if os.path.lexists(place))
  if not there.is_dir():
    raise config_lib.ConfigError(
      f"--{flag}: got {str(path)!r}, expected a directory; {there} is none"
    )


def _check(run: RunDirectory, *, resume: bool, restart: bool) -> None:
  require_directory("run_dir", run.path)
  require_directory("checkpoint_dir", run.checkpoints)
  if restart:
    return
  for name in ("steps", "initial"):
    require_directory("checkpoint_dir", run.checkpoints / name)
  steps, has_checkpoints = run.steps(), run.has_checkpoints()
  if resume and steps and not has_checkpoints:
    raise config_lib.ConfigError(
      f"--resume: {run.path / metrics.FILE} has {steps} steps, but there is no checkpoint in "
      f"{run.checkpoints}; put them back, set --checkpoint_dir, or start over with --restart "
      "(the run's files are kept)"
    )
  if not resume and (steps or has_checkpoints):
    raise config_lib.ConfigError(
      f"--run_dir: {run.path} already has a run; continue it with --resume, start over with "
      "--restart (its files are kept), or choose another directory"
    )


def merge(
  run: ConfigDict, card: ConfigDict | None, card_name: str | None
) -> tuple[ConfigDict, list[str]]:
  """Adds the keys that a later release has to the configuration of a run; also returns notes.

  Args:
    card: the card's configuration now; None = new keys come from configs/base.py.
  """
  saved, notes = config_lib.flatten(run), []
  newer = config_lib.base() if card is None else card
  current, nested = config_lib.flatten(newer), newer.to_dict()
  for key, value in current.items():
    if key not in saved:
      source = card_name or "configs/base.py"
      notes.append(f"{key}: {value!r}, from {source}; the run began without this key")
      continue
    *sections, last = key.split(".")
    functools.reduce(operator.getitem, sections, nested)[last] = saved[key]
    if card_name and saved[key] != value and key not in _FILLED_IN:
      notes.append(
        f"{key}: {saved[key]!r}, from the run; {card_name} has {value!r} "
        f"(to change it: --config.{key}={value})"
      )
  for key in saved.keys() - current.keys():
    notes.append(f"{key}: ignored, unknown to this release; the run had {saved[key]!r}")
  return config_lib.from_json(json.dumps(nested)), notes


def _changes(before, now) -> list[str]:
  saved = config_lib.flatten(before)
  return [
    f"{key}: {value!r} from now on, was {saved[key]!r}"
    for key, value in config_lib.flatten(now).items()
    if key in saved and saved[key] != value
  ]


@contextlib.contextmanager
def given_or_new(given: str | None, parent: str, name: str) -> Generator[pathlib.Path]:
  """Yields the given directory, or a new one in `parent`, which is removed if it stays empty."""
  if given:
    yield pathlib.Path(given)
    return
  path = files.make_unique(pathlib.Path(parent), name)
  try:
    yield path
  finally:
    with contextlib.suppress(OSError):
      path.rmdir()


@contextlib.contextmanager
def claimed(
  run: RunDirectory,
  weights_dir: str | None,
  *,
  resume: bool,
  restart: bool,
  lost: Callable[[str], None],
) -> Generator[None]:
  """Locks the directories of a run against other learners, and prepares them.

  Args:
    lost: see `locks.hold`.

  Raises:
    locks.Held: another learner uses one of them.
    FileExistsError: the checkpoints' directory has files of another run.
  """
  directories = {"run_dir": run.path, "checkpoint_dir": run.checkpoints, "weights_dir": weights_dir}
  with contextlib.ExitStack() as stack:
    for flag, directory in directories.items():
      if directory:
        stack.enter_context(locks.hold(str(directory), f"--{flag}", lost))
    if restart:
      for moved in _move_previous(run):
        print(f"the previous run is kept in {moved}")
    if run.checkpoints != run.path / "checkpoints":
      link(run.path / "checkpoints", run.checkpoints, empty=not resume)
    yield


def _move_previous(run: RunDirectory) -> list[pathlib.Path]:
  """Moves a run's files to new directories, which are returned."""
  moved = []
  for directory in run:
    stays = (locks.FILE, "checkpoints") if directory == run.path else (locks.FILE,)
    paths = list(directory.iterdir()) if directory.exists() else []
    paths = [p for p in paths if p.name not in stays and not p.name.startswith(_PREVIOUS)]
    if paths:
      moved.append(files.make_unique(directory, _PREVIOUS + time.strftime("%Y%m%d-%H%M%S")))
      for path in paths:
        path.rename(moved[-1] / path.name)
  return moved


def link(name: pathlib.Path, to: pathlib.Path, *, empty: bool) -> None:
  """Makes `name` a link to the directory `to`, which is created if necessary.

  Raises:
    FileExistsError: `name` is something else, or `to` must be `empty` and has a run.
  """
  to = to.resolve()
  to.mkdir(parents=True, exist_ok=True)
  if name.is_symlink() and name.resolve() == to:
    return
  if name.exists() or name.is_symlink():
    raise FileExistsError(f"{name}: exists, expected no such file or a link to {to}")
  kept = [p for p in to.iterdir() if p.name not in (locks.FILE, CONFIG)]
  if empty and not all(path.name.startswith(_PREVIOUS) for path in kept):
    raise FileExistsError(f"{to}: has files of another run, expected an empty directory")
  name.parent.mkdir(parents=True, exist_ok=True)
  name.symlink_to(to)
