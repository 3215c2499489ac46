"""From a sweep file to runs: checked configurations with names made of what differs."""

import json
import pathlib
import re
import shlex
from typing import Any, NamedTuple

from offpolicy_rl import config as config_lib
from offpolicy_rl.config import text as config_text

FILE = "sweep.json"
STATES = "waiting", "running", "interrupted", "failed", "finished"
WAITING, RUNNING, INTERRUPTED, FAILED, FINISHED = STATES
_NAME_LENGTH = 160  # of a directory; file systems take 255


class SweepRun(NamedTuple):
  """A run of a sweep."""

  name: str  # of its directory
  settings: dict[str, Any]  # set by the sweep, with the types of the configuration
  values: dict[str, Any]  # of all keys, flat


class Sweep(NamedTuple):
  """Runs with the same `card` and `assignments`."""

  card: str
  assignments: list[tuple[str, str]]
  base: dict[str, Any]  # the configuration before the sweep sets anything, flat
  runs: list[SweepRun]


def short(key: str) -> str:
  """The name of a key in tables and files: objective.name -> objective."""
  return key.removesuffix(".name")


def varying(runs: list[SweepRun]) -> list[str]:
  """Keys that differ between runs, in the order in which the sweep names them."""
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  return [key for key in keys if len({repr(run.values[key]) for run in runs}) > 1]


def expand(path: str, card: str, assignments: list[tuple[str, str]]) -> Sweep:
  """Makes the runs of a sweep file on a card; starts nothing.

  Raises:
    ConfigError: an unknown key, a wrong value, or two equal runs; names the run.
  """
  base = config_lib.load(card)
  config_lib.override(base, assignments)
  config_lib.validate(base)
  runs, first_of = [], {}
  for i, settings in enumerate(_settings(path)):
    try:
      config = _config(card, assignments, settings)
      config_lib.validate(config)
    except config_lib.ConfigError as error:
      raise config_lib.ConfigError(f"--sweep: run {i} ({_label(settings)}): {error}") from None
    values = config_lib.flatten(config)
    before = first_of.setdefault(_identity(values), i)
    if before != i:
      raise config_lib.ConfigError(
        f"--sweep: run {i} ({_label(settings)}): the same configuration as run {before}, expected "
        "every run once"
      )
    runs.append(SweepRun("", {key: values[key] for key in settings}, values))
  return Sweep(card, assignments, config_lib.flatten(base), _named(runs, {}))


def check_data(sweep: Sweep) -> None:
  """Raises ConfigError if this machine lacks the problems of a run."""
  checked = set()
  for run in sweep.runs:
    config = _config(sweep.card, sweep.assignments, run.settings)
    task = _identity(config.task.to_dict())
    if task not in checked:
      config_lib.check_data(config)
    checked.add(task)


def _settings(path: str) -> list[dict]:
  """The settings that get_sweep() returns, with Python's numbers instead of numpy's."""
  rows = config_text.call(path, "get_sweep", "--sweep")
  if not isinstance(rows, list) or not rows:
    raise config_lib.ConfigError(
      f"--sweep: {path}: get_sweep returned {rows!r:.100}, expected a list of settings"
    )
  for i, settings in enumerate(rows):
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
      raise config_lib.ConfigError(
        f"--sweep: run {i}: got {settings!r:.100}, expected a dict of keys and values"
      )
  return [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in rows]


def _config(card: str, assignments: list[tuple[str, str]], settings: dict):
  given = [key for key, _ in assignments if key in settings]
  if given:
    raise config_lib.ConfigError(f"--config.{given[0]}: the sweep sets it, expected another key")
  for key, value in settings.items():
    if not isinstance(value, (str, bool, int, float, type(None))):
      raise config_lib.ConfigError(f"{key}: got {value!r:.100}, expected a single value")
  config = config_lib.load(card)
  set_by_sweep = [(key, str(value)) for key, value in settings.items()]
  config_lib.override(config, [*assignments, *set_by_sweep])
  return config


def _identity(values: dict) -> str:
  return json.dumps(values, sort_keys=True)


def _label(settings: dict) -> str:
  return ",".join(f"{short(key)}={value}" for key, value in settings.items())


def _named(runs: list[SweepRun], known: dict[str, str]) -> list[SweepRun]:
  """Names runs: as in `known` ({identity: name}), else by the next number and what differs."""
  differs = varying(runs)
  number = 1 + max((int(name.partition("-")[0]) for name in known.values()), default=-1)
  named = []
  for run in runs:
    name = known.get(_identity(run.values))
    if name is None:
      label = _label({key: value for key, value in run.settings.items() if key in differs})
      safe = re.sub(r"[^\w.=,+-]+", "_", label, flags=re.ASCII)[:_NAME_LENGTH]
      name, number = f"{number:03d}-{safe}".rstrip("-"), number + 1
    named.append(run._replace(name=name))
  return named


def read(out: pathlib.Path) -> Sweep:
  """Reads the sweep of a directory.

  Raises:
    ConfigError: there is none.
  """
  if not (out / FILE).is_file():
    raise config_lib.ConfigError(f"--out: no file {out / FILE}, expected the directory of a sweep")
  saved = json.loads((out / FILE).read_text(encoding="utf-8"))
  base = saved["base"]
  runs = [SweepRun(name, settings, base | settings) for name, settings in saved["runs"].items()]
  return Sweep(saved["card"], [], base, runs)


def write(sweep: Sweep, out: pathlib.Path) -> None:
  """Writes a sweep for `read`, without its assignments, which `base` includes."""
  runs = {run.name: run.settings for run in sweep.runs}
  text = json.dumps({"card": sweep.card, "base": sweep.base, "runs": runs}, indent=1)
  temporary = out / f".{FILE}"
  temporary.write_text(text + "\n", encoding="utf-8")
  temporary.replace(out / FILE)


def reconcile(sweep: Sweep, out: pathlib.Path) -> Sweep:
  """Names the runs as in `out`; new ones are added.

  Raises:
    ConfigError: `out` has started a run that is not in the sweep; names the difference.
  """
  if not (out / FILE).exists():
    return sweep
  known = {_identity(run.values): run.name for run in read(out).runs}
  wanted = {_identity(run.values) for run in sweep.runs}
  for identity, name in known.items():
    if identity not in wanted and (out / name).exists():
      gaps = [_difference(json.loads(identity), run.values) for run in sweep.runs]
      gap = "; ".join(f"{key}: {a!r} then, {b!r} now" for key, a, b in min(gaps, key=len))
      raise config_lib.ConfigError(
        f"--out: {out} has another sweep, whose run {name} is not in this one; the closest differs "
        f"in {gap} (runs may be added; for other changes choose another --out)"
      )
  return sweep._replace(runs=_named(sweep.runs, known))


def _difference(then: dict, now: dict) -> list[tuple]:
  keys = dict.fromkeys([*then, *now])
  return [(k, then.get(k), now.get(k)) for k in keys if then.get(k) != now.get(k)]


def arguments(
  sweep: Sweep, run: SweepRun, out: pathlib.Path, *, role: str, samplers: int
) -> list[str]:
  """The arguments of `offpolicy-rl` for a run."""
  settings = [(key, str(value)) for key, value in run.settings.items()]
  return [
    role,
    f"--config={sweep.card}",
    f"--run_dir={out / run.name}",
    *([f"--samplers={samplers}"] if role == "local" and samplers > 1 else []),
    *(f"--config.{key}={text}" for key, text in [*sweep.assignments, *settings]),
  ]


def command(line: list[str]) -> str:
  """A command line for a shell."""
  return shlex.join(["offpolicy-rl", *line])
