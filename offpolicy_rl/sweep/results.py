"""The scores of a sweep's runs, their means over seeds, and the axes of the picture."""

import json
import math
import pathlib
import statistics

from offpolicy_rl.observe import metrics
from offpolicy_rl.observe.plots import mean_and_half_width
from offpolicy_rl.sweep import running
from offpolicy_rl.sweep import runs as runs_lib

SCORES = ("final", "mean", "entropy")  # of a run, defined in `catalogue.METRICS["sweep"]`
_LAST = 20  # steps for the mean entropy
_MAX_SERIES = 8  # values of a key that are drawn as series
Rows = list[dict]


def scores(run_dir: pathlib.Path) -> dict[str, float | None]:
  """Steps, scores and speed of a run so far; None = not known yet."""
  rows = metrics.read(run_dir)
  train = [row for row in rows if row["kind"] == metrics.TRAIN]
  heldout = [r for r in rows if r["kind"] == metrics.HELDOUT and metrics.is_of_training(r)]
  final = [row["heldout/pass@1"] for row in heldout if row["phase"] == "after"]
  seconds = sum(metrics.derived(row)["learner/seconds"] for row in train[1:])
  mean = lambda values: statistics.fmean(values) if values else None
  return {
    "steps": len(train),
    "final": final[-1] if final else None,
    "mean": mean([row["heldout/pass@1"] for row in heldout]),
    "entropy": mean([row["entropy"] for row in train[-_LAST:]]),
    "steps_per_hour": 3600 * len(train[1:]) / seconds if seconds else None,
  }


def collect(sweep: runs_lib.Sweep, out: pathlib.Path) -> Rows:
  """A row per run: name, status, the keys that differ between runs, and its scores."""
  keys = runs_lib.varying(sweep.runs)
  return [
    {
      "name": run.name,
      "status": running.status(run, out),
      "settings": {key: run.values[key] for key in keys},
      **scores(out / run.name),
    }
    for run in sweep.runs
  ]


def over_seeds(rows: Rows) -> Rows:
  """Groups finished runs that differ only in the seed: their number, means and half widths."""
  groups: dict[str, Rows] = {}
  for row in rows:
    if row["status"] == runs_lib.FINISHED:
      others = {key: value for key, value in row["settings"].items() if key != "seed"}
      groups.setdefault(json.dumps(others), []).append(row)
  return [
    {
      "settings": json.loads(others),
      "runs": len(group),
      **{name: _estimate([row[name] for row in group]) for name in SCORES},
    }
    for others, group in groups.items()
  ]


def _estimate(values: list[float | None]) -> tuple[float | None, float | None]:
  """(mean, half width of its interval); None = unknown."""
  known = [value for value in values if value is not None]
  if len(known) < len(values):
    return None, None
  mean, half = mean_and_half_width(known)
  return mean, None if math.isnan(half) else half


def chosen_axes(rows: Rows, x: str | None, series: str | None) -> tuple[str, list[str], list[str]]:
  """(key of the horizontal axis, keys that distinguish series, keys that points are means over).

  `x` defaults to lag.max_lag, or else the number with most values; `series` to all other keys with
  few values that do not follow from earlier ones. Several are separated by commas.
  """
  keys = list(rows[0]["settings"])
  count = lambda names: len({repr([row["settings"][k] for k in names]) for row in rows})
  others = [key for key in keys if key != "seed"] or keys
  if x is None:
    numbers = [key for key in others if is_number(rows, key)]
    ranked = sorted(numbers or others, key=lambda key: -count([key]))
    x = "lag.max_lag" if "lag.max_lag" in numbers else next(iter(ranked), "seed")
  apart = series.split(",") if series else []
  candidates = sorted(
    others, key=lambda key: key != "objective.name"
  )  # others often follow from it
  for key in [] if series else candidates:
    follows = count([x]) <= _MAX_SERIES and count([x, key]) == count([x])
    few = count([key]) <= _MAX_SERIES
    if key != x and few and not follows and count([*apart, key]) > max(count(apart), 1):
      apart.append(key)
  pooled = [key for key in keys if count([x, *apart, key]) > count([x, *apart])]
  return x, apart, pooled


def is_number(rows: Rows, key: str) -> bool:
  """Whether all values of a key are numbers."""
  return all(type(row["settings"][key]) in (int, float) for row in rows)
