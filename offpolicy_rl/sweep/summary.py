"""The summary of a sweep: summary.json, summary.md with its tables, and a picture."""

import json
import pathlib

from offpolicy_rl.observe import catalogue, plots
from offpolicy_rl.sweep import picture, results, running
from offpolicy_rl.sweep import runs as runs_lib
from offpolicy_rl.sweep.results import SCORES, Rows

_MEANING = "Of a run: " + "; ".join(
  f"`{m.name}`, {m.meaning} ({m.unit})" for m in catalogue.METRICS[catalogue.SWEEP].values()
)


def table(rows: Rows) -> str:
  """Markdown with a line per run."""
  keys = list(rows[0]["settings"])
  head = ["run", *map(runs_lib.short, keys), *SCORES, "steps/h", "status"]
  body = [
    [
      row["name"].partition("-")[0],
      *(_text(v) for v in row["settings"].values()),
      *(_number(row[name]) for name in SCORES),
      _number(row["steps_per_hour"], 0),
      row["status"] + ("" if row["status"] == runs_lib.FINISHED else f", {row['steps']} steps"),
    ]
    for row in rows
  ]
  return _markdown(head, body)


def seeds_table(groups: Rows) -> str:
  """Markdown with a line per setting: mean ± half of the 95 % interval."""
  head = [*map(runs_lib.short, groups[0]["settings"]), "runs", *SCORES]
  return _markdown(
    head,
    [
      [
        *(_text(v) for v in group["settings"].values()),
        str(group["runs"]),
        *(
          " ± ".join(map(_number, group[name])) if group["runs"] > 1 else _number(group[name][0])
          for name in SCORES
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


def write(
  sweep: runs_lib.Sweep, out: pathlib.Path, *, x: str | None = None, series: str | None = None
) -> str:
  """Writes summary.json, summary.md and scores.png; returns text for the terminal.

  `x`, `series`: keys for the picture; None: see `results.chosen_axes`.
  """
  rows = results.collect(sweep, out)
  groups = results.over_seeds(rows)
  content = {"card": sweep.card, "runs": rows, "over_seeds": groups}
  (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  drawn, notes = [], [f"summary: {out / 'summary.md'}, summary.json"]
  if groups and rows[0]["settings"]:
    try:
      figure = picture.draw(rows, *results.chosen_axes(rows, x, series))
      plots.save(figure, out / "scores.png")
      drawn = ["![scores](scores.png)"]
      notes.append(f"picture: {out / 'scores.png'}")
    except plots.MissingMatplotlibError as error:
      notes.append(f"no picture: {error}")
  tables = []
  if any(group["runs"] > 1 for group in groups):
    about = "Mean ± half of the 95 % interval (Student's t)."
    tables += ["## Over seeds", about, seeds_table(groups)]
  tables += ["## Runs", table(rows), *_failures(rows, out)]
  head = [f"# {out.name}", f"Card `{sweep.card}`, {len(rows)} runs.", f"{_MEANING}."]
  (out / "summary.md").write_text("\n\n".join([*head, *drawn, *tables]) + "\n", encoding="utf-8")
  return "\n\n".join([*tables, "\n".join(notes)])


def _failures(rows: Rows, out: pathlib.Path) -> list[str]:
  parts = []
  for row in rows:
    if row["status"] == runs_lib.FAILED:
      reason, lines = running.why_failed(out / row["name"])
      parts.append(f"`{row['name']}`: {reason}\n\n" + "\n".join(f"    {line}" for line in lines))
  return ["## Failed; --retry_failed runs them again", *parts] if parts else []
