"""A run's files as the report needs them."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.observe import metrics

_FILTERED = "filtered/by_length"
_NORMAL_95 = 1.96  # standard errors to either side of a mean


class Run(NamedTuple):
  """What a run has written so far."""

  name: str
  config: dict  # nested, as in config.json
  rows: dict[str, list[dict]]  # by kind
  samples: list[dict]  # of completions.jsonl
  tickets: dict[str, int]  # of ledger.json; {} until the run ends


def read(run_dir: pathlib.Path) -> Run:
  """Reads the files of a run, finished or not.

  Raises:
    ConfigError: it is no run's directory.
  """
  file = run_dir / "config.json"
  if not file.is_file():
    raise ConfigError(f"--run_dir: no file {file}, expected the directory of a run")
  rows = {kind: [] for kind in (metrics.TASK, metrics.TRAIN, metrics.HELDOUT, metrics.WARM_START)}
  for row in metrics.read(run_dir):
    rows.setdefault(row["kind"], []).append(row)
  lengths = sorted({int(n) for row in rows[metrics.TRAIN] for n in row.get(_FILTERED, ())})
  rows[metrics.TRAIN] = [row | _of_step(row, lengths) for row in rows[metrics.TRAIN]]
  rows[metrics.HELDOUT] = [row | _interval(row) for row in rows[metrics.HELDOUT]]
  tickets = run_dir / "ledger.json"
  return Run(
    name=run_dir.resolve().name,
    config=json.loads(file.read_text()),
    rows=rows,
    samples=metrics.read_lines(run_dir / "completions.jsonl"),
    tickets=json.loads(tickets.read_text()) if tickets.exists() else {},
  )


def _of_step(row: dict, lengths: Sequence[int]) -> dict[str, float]:
  """What follows from a training row; `lengths` of groups that the run left out."""
  names = ("seconds/waiting", "seconds/step", "seconds/publishing")
  found = {}
  if _FILTERED in row:
    found = {f"filtered/length/{n}": row[_FILTERED].get(str(n), 0) for n in lengths}
  if all(name in row for name in names):
    seconds = sum(row[name] for name in names)
    found["learner/utilisation"] = row["seconds/step"] / seconds if seconds else 0.0
    if "tokens" in row and seconds:
      found["learner/tokens_per_second"] = row["tokens"] / seconds
  return found


def _interval(row: dict) -> dict[str, float]:
  """About 95 % of what another set of problems would have given."""
  if "heldout/pass@1_stderr" not in row:
    return {}
  half = _NORMAL_95 * row["heldout/pass@1_stderr"]
  mean = row["heldout/pass@1"]
  return {"heldout/pass@1_low": max(mean - half, 0), "heldout/pass@1_high": min(mean + half, 1)}


def last_step(runs: Iterable[Run]) -> int:
  """The end of an axis that has room for all of them."""
  found = [
    r["step"] for run in runs for kind in (metrics.TRAIN, metrics.HELDOUT) for r in run.rows[kind]
  ]
  return max(found, default=0)


def keys(config: dict, prefix: str = "") -> dict:
  """{"section.key": value}."""
  found = {}
  for key, value in config.items():
    if isinstance(value, dict):
      found |= keys(value, f"{prefix}{key}.")
    else:
      found[prefix + key] = value
  return found


def title(config: dict) -> str:
  """A run in a line."""
  lag, learner = config["lag"], config["learner"]
  return (
    f"task {config['task']['name']}, objective {config['objective']['name']}, "
    f"lag {lag['mode']} {lag['max_lag']}, {learner['prompts_per_step']} prompts "
    f"x {learner['group_size']} completions per step, seed {config['seed']}"
  )


def names(directories: Sequence[pathlib.Path]) -> list[str]:
  """A name for each: its own, or its whole path where others share that."""
  short = [path.resolve().name for path in directories]
  return [
    name if short.count(name) == 1 else str(path)
    for name, path in zip(short, directories, strict=True)
  ]
