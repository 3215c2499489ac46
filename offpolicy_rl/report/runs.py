"""Reads the files of a run for reports."""

import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.observe import metrics

_FILTERED = "filtered/by_length"
_NORMAL_95 = 1.96  # standard errors to either side of a mean


class Run(NamedTuple):
  """The contents of a run's files."""

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
  rows[metrics.TRAIN] = [row | _derived(row, lengths) for row in rows[metrics.TRAIN]]
  rows[metrics.HELDOUT] = [row | _interval(row) for row in rows[metrics.HELDOUT]]
  tickets = run_dir / "ledger.json"
  return Run(
    name=run_dir.resolve().name,
    config=json.loads(file.read_text(encoding="utf-8")),
    rows=rows,
    samples=metrics.read_lines(run_dir / "completions.jsonl"),
    tickets=json.loads(tickets.read_text(encoding="utf-8")) if tickets.exists() else {},
  )


def _derived(row: dict, lengths: Sequence[int]) -> dict[str, float]:
  """Metrics derived from a training row; `lengths`: of groups that the run left out."""
  by_length = row.get(_FILTERED)
  counts = {} if by_length is None else {n: by_length.get(str(n), 0) for n in lengths}
  return metrics.derived(row) | {f"filtered/length/{n}": count for n, count in counts.items()}


def _interval(row: dict) -> dict[str, float]:
  if "heldout/pass@1_stderr" not in row:
    return {}
  half = _NORMAL_95 * row["heldout/pass@1_stderr"]
  mean = row["heldout/pass@1"]
  return {"heldout/pass@1_low": max(mean - half, 0), "heldout/pass@1_high": min(mean + half, 1)}


def last_step(runs: Iterable[Run]) -> int:
  """The newest step of all runs."""
  kinds = (metrics.TRAIN, metrics.HELDOUT)
  return max((r["step"] for run in runs for kind in kinds for r in run.rows[kind]), default=0)


def keys(config: dict, prefix: str = "") -> dict:
  """Flattens a nested configuration to {"section.key": value}."""
  flat = {}
  for key, value in config.items():
    flat |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def title(config: dict) -> str:
  """Describes task, objective, lag, batch and seed in a line."""
  lag, learner = config["lag"], config["learner"]
  return (
    f"task {config['task']['name']}, objective {config['objective']['name']}, "
    f"lag {lag['mode']} {lag['max_lag']}, {learner['prompts_per_step']} prompts "
    f"x {learner['group_size']} completions per step, seed {config['seed']}"
  )


def names(directories: Sequence[pathlib.Path]) -> list[str]:
  """The name of each directory, or its path if the name is not unique."""
  short = [path.resolve().name for path in directories]
  return [
    name if short.count(name) == 1 else str(path)
    for name, path in zip(short, directories, strict=True)
  ]
