"""What the runs of a sweep came to: summary.json, summary.md, and a picture (picture.py)."""

import json
import math
import pathlib
import statistics

from scipy import special

from offpolicy_rl.observe import metrics
from offpolicy_rl.sweep import running
from offpolicy_rl.sweep import runs as runs_lib

FIGURES = ("final", "mean", "entropy")
_MEANING = (
  "Of a run: `final`, held-out pass@1 after the last step; `mean`, over its evaluations from "
  "version 0 on, which shows how fast it got there; `entropy`, nats per token, mean of the last 20 "
  "steps. `steps/h` leaves the first step out, which compiles; what resumed runs compile again "
  "is in it."
)
_LAST = 20  # steps that the entropy is the mean of
_MOST_SERIES = 8  # values of a key that is still drawn as one series each
_NEEDS = "it needs matplotlib, pip install 'offpolicy-rl[bench]'"
Rows = list[dict]


def mean_and_half_width(values: list[float]) -> tuple[float, float]:
  """Mean, and half of its 95 % interval (Student's t; NaN for a single value)."""
  count = len(values)
  if count < 2:
    return float(values[0]), math.nan
  quantile = special.stdtrit(count - 1, 0.975)
  return statistics.fmean(values), float(quantile * statistics.stdev(values) / math.sqrt(count))


def figures(run_dir: pathlib.Path) -> dict[str, float | None]:
  """The figures of a run, as far as it is; None where it has none yet."""
  rows = metrics.read(run_dir)
  train = [row for row in rows if row["kind"] == metrics.TRAIN]
  heldout = [r for r in rows if r["kind"] == metrics.HELDOUT and r["version"] >= 0]
  final = [row["heldout/pass@1"] for row in heldout if row["phase"] == "after"]
  times = ("seconds/waiting", "seconds/step", "seconds/publishing")
  seconds = sum(row[name] for row in train[1:] for name in times)
  mean = lambda values: statistics.fmean(values) if values else None
  return {
    "steps": len(train),
    "final": final[-1] if final else None,
    "mean": mean([row["heldout/pass@1"] for row in heldout]),
    "entropy": mean([row["entropy"] for row in train[-_LAST:]]),
    "steps_per_hour": 3600 * len(train[1:]) / seconds if seconds else None,
  }


def collect(sweep: runs_lib.Sweep, out: pathlib.Path) -> Rows:
  """One row per run: name, status, the keys that differ between runs, and its figures."""
  keys = runs_lib.varying(sweep.runs)
  return [
    {
      "name": run.name,
      "status": running.status(run, out),
      "settings": {key: run.values[key] for key in keys},
      **figures(out / run.name),
    }
    for run in sweep.runs
  ]


def over_seeds(rows: Rows) -> Rows:
  """Finished runs that differ in nothing but the seed, together: how many, mean and half width."""
  groups: dict[str, Rows] = {}
  for row in rows:
    if row["status"] == runs_lib.FINISHED:
      own = {key: value for key, value in row["settings"].items() if key != "seed"}
      groups.setdefault(json.dumps(own), []).append(row)
  return [
    {
      "settings": json.loads(own),
      "runs": len(group),
      **{name: _estimate([row[name] for row in group]) for name in FIGURES},
    }
    for own, group in groups.items()
  ]


def _estimate(values: list[float | None]) -> tuple[float | None, float | None]:
  """(mean, half width) as JSON has them; a run of no steps has no entropy."""
  if None in values:
    return None, None
  mean, half = mean_and_half_width(values)
  return mean, None if math.isnan(half) else half


def table(rows: Rows) -> str:
  """Markdown: one line per run."""
  keys = list(rows[0]["settings"])
  head = ["run", *map(runs_lib.short, keys), *FIGURES, "steps/h", "status"]
  body = [
    [
      row["name"].partition("-")[0],
      *(_text(v) for v in row["settings"].values()),
      *(_number(row[name]) for name in FIGURES),
      _number(row["steps_per_hour"], 0),
      row["status"] + ("" if row["status"] == runs_lib.FINISHED else f", {row['steps']} steps"),
    ]
    for row in rows
  ]
  return _markdown(head, body)


def seeds_table(groups: Rows) -> str:
  """Markdown: one line per setting, mean ± half of the 95 % interval."""
  head = [*map(runs_lib.short, groups[0]["settings"]), "runs", *FIGURES]
  return _markdown(
    head,
    [
      [
        *(_text(v) for v in group["settings"].values()),
        str(group["runs"]),
        *(
          " ± ".join(map(_number, group[name])) if group["runs"] > 1 else _number(group[name][0])
          for name in FIGURES
        ),
      ]
      for group in groups
    ],
  )


def _markdown(head: list[str], body: list[list[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
  lines = [head, ["-" * max(width, 3) for width in widths], *body]
  padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
  return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _text(value) -> str:
  return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: int = 3) -> str:
  return "" if value is None else f"{value:.{digits}f}"


def chosen_axes(rows: Rows, x: str | None, series: str | None) -> tuple[str, list[str], list[str]]:
  """(key of the horizontal axis, keys that tell series apart, keys that points are means over).

  Without `x`: lag.max_lag, or else the number with most values. Without `series`: every other key
  with few values, but those that follow from the ones before.
  """
  keys = list(rows[0]["settings"])
  count = lambda names: len({repr([row["settings"][k] for k in names]) for row in rows})
  others = [key for key in keys if key != "seed"] or keys
  if x is None:
    numbers = [key for key in others if is_number(rows, key)]
    ranked = sorted(numbers or others, key=lambda key: -count([key]))
    x = "lag.max_lag" if "lag.max_lag" in numbers else next(iter(ranked), "seed")
  apart = [series] if series else []
  candidates = sorted(others, key=lambda key: key != "objective.name")  # others follow from it
  for key in [] if series else candidates:
    follows = count([x]) <= _MOST_SERIES and count([x, key]) == count([x])
    few = count([key]) <= _MOST_SERIES
    if key != x and few and not follows and count([*apart, key]) > max(count(apart), 1):
      apart.append(key)
  pooled = [key for key in keys if count([x, *apart, key]) > count([x, *apart])]
  return x, apart, pooled


def is_number(rows: Rows, key: str) -> bool:
  """Whether all values of a key are numbers."""
  return all(type(row["settings"][key]) in (int, float) for row in rows)


def write(
  sweep: runs_lib.Sweep, out: pathlib.Path, *, x: str | None = None, series: str | None = None
) -> str:
  """Writes summary.json, summary.md and scores.png; returns what a terminal should show.

  `x`, `series`: keys that differ between runs, for the picture; None = as `chosen_axes` says.
  """
  rows = collect(sweep, out)
  groups = over_seeds(rows)
  found = {"card": sweep.card, "runs": rows, "over_seeds": groups}
  (out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
  picture, said = None, [f"summary: {out / 'summary.md'}, summary.json"]
  if groups and rows[0]["settings"]:
    picture = _draw(rows, chosen_axes(rows, x, series), out)
    said.append(f"picture: {picture}" if picture else f"no picture: {_NEEDS}")
  tables = []
  if any(group["runs"] > 1 for group in groups):
    tables += [
      "## Over seeds",
      "Mean ± half of the 95 % interval (Student's t).",
      seeds_table(groups),
    ]
  tables += ["## Runs", table(rows), *_failures(rows, out)]
  shown = [f"![scores]({picture.name})"] if picture else []
  head = [f"# {out.name}", f"Card `{sweep.card}`, {len(rows)} runs.", _MEANING]
  (out / "summary.md").write_text("\n\n".join([*head, *shown, *tables]) + "\n")
  return "\n\n".join([*tables, "\n".join(said)])


def _draw(rows: Rows, axes: tuple, out: pathlib.Path) -> pathlib.Path | None:
  """The picture's path; None where matplotlib is not installed."""
  try:
    from offpolicy_rl.sweep import picture
  except ImportError:
    return None
  picture.draw(rows, *axes, out / "scores.png")
  return out / "scores.png"


def _failures(rows: Rows, out: pathlib.Path) -> list[str]:
  parts = []
  for row in rows:
    if row["status"] == runs_lib.FAILED:
      reason, lines = running.why_failed(out / row["name"])
      parts.append(f"`{row['name']}`: {reason}\n\n" + "\n".join(f"    {line}" for line in lines))
  return ["## Failed, tried again with --retry_failed", *parts] if parts else []
