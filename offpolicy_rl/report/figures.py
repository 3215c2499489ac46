"""Charts of a run, or of several, as HTML with the values that charts.js reads out."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.observe import metrics
from offpolicy_rl.report import charts, runs, series
from offpolicy_rl.report.catalogue import STACKED, Chart, Line

_HEAT_COLUMNS, _HEAT_ROWS = 60, 16
_FEW = 60


class Figure(NamedTuple):
  """A drawn chart."""

  html: str
  data: dict  # what charts.js needs, see there


class _Source(NamedTuple):
  """Where a curve comes from."""

  label: str
  rows: Sequence[dict]
  line: Line
  css: str


def of_run(chart: Chart, run: runs.Run, last_step: int) -> Figure | None:
  """One chart of one run; None where the run has no values for it."""
  rows = {line.kind: run.rows[line.kind] for line in chart.lines}
  if chart.form == STACKED:  # every area needs all steps
    names = [line.name for line in chart.lines]
    rows = {kind: [row for row in of if _is_whole(row, names)] for kind, of in rows.items()}
  sources = [_Source(line.label, rows[line.kind], line, "") for line in chart.lines]
  return _figure(chart, sources, last_step, series.POINTS)


def _is_whole(row: dict, names: Sequence[str]) -> bool:
  return all(math.isfinite(row.get(name, math.nan)) for name in names)


def of_runs(chart: Chart, named: Sequence[tuple[str, runs.Run]], last_step: int) -> Figure | None:
  """One metric, a line per run; runs keep their colours from chart to chart."""
  line = chart.lines[0]
  sources = [
    _Source(name, run.rows[line.kind], line, f"r{n}") for n, (name, run) in enumerate(named)
  ]
  # A page of many runs must not grow with their number.
  return _figure(chart, sources, last_step, max(60, series.POINTS * 2 // (1 + len(named))))


def _figure(chart: Chart, sources: Sequence[_Source], last_step: int, most: int) -> Figure | None:
  """Draws what has values, in `most` points a line."""
  own_steps = all(s.line.kind == metrics.WARM_START for s in sources)
  if own_steps:
    last_step = max((row["step"] for s in sources for row in s.rows), default=0)
  curves = _curves(chart, sources, series.bin_width(last_step, most))
  if not curves:
    return None
  x_range = (0.0, float(last_step))
  if chart.form == STACKED:
    total = [sum(values) for values in zip(*(c.series.values for c in curves), strict=True)]
    whole = curves[0].series._replace(values=[0.0, *total], smooth=[], lows=[0.0], highs=total)
    drawn = charts.stacked(curves, charts.frame([whole], x_range), chart.unit)
  else:
    at = charts.frame([c.series for c in curves], x_range, log=chart.log)
    drawn = charts.lines(curves, at, chart.unit)
  lines = [{"x": _steps(c.series.x), "y": _short(c.series.values)} for c in curves]
  keys = "".join(
    f'<span class="key {c.css}"><i class="c{c.color}"></i>{html.escape(c.label)} '
    f"<b>{charts.number(c.series.values[-1])}</b></span>"
    for c in curves
  )
  data = {"high": max(last_step, 1), "linked": not own_steps, "lines": lines}
  return Figure(_framed(chart.title, chart.meaning, keys, drawn), data)


def _curves(chart: Chart, sources: Sequence[_Source], width: int) -> list[charts.Curve]:
  found = []
  for n, source in enumerate(sources):
    line = source.line
    points = series.points(source.rows, line.name, line.low, line.high)[chart.skip :]
    if chart.log:
      points = [p for p in points if p.value > 0]
    if points:
      # Few points, such as evaluations, stay at the step they belong to.
      bins = series.of(points, 1 if len(points) <= _FEW else width)
      found.append(charts.Curve(source.label, bins, n % len(charts.COLORS), source.css))
  return found


def heat_of_run(
  name: str, title: str, meaning: str, run: runs.Run, last_step: int
) -> Figure | None:
  """Shares of tokens by lag over steps, from the histograms `name`; None where there are none."""
  rows = [row for row in run.rows[metrics.TRAIN] if row.get(name)]
  if not rows:
    return None
  cells = heat_cells([(row["step"], row[name]) for row in rows], last_step)
  keys = (
    '<span class="key">share of tokens: 0 % <i class="ramp"></i> 100 %</span>'
    '<span class="key shares"><b></b></span>'
  )
  drawn = charts.heat(cells, (0.0, float(last_step)), "versions")
  middle = [(a + b) / 2 for a, b in itertools.pairwise(cells.edges)]
  data = {
    "high": max(last_step, 1),
    "linked": True,
    "x": _steps(middle),
    "labels": cells.labels,
    "columns": [_short(column) for column in cells.columns],
  }
  return Figure(_framed(title, meaning, keys, drawn), data)


def heat_cells(histograms: Sequence[tuple[int, dict[str, int]]], last_step: int) -> charts.Heat:
  """[(step, {lag: tokens})], by step -> shares per column of steps and row of lags."""
  per_row = math.ceil((1 + max(int(lag) for _, h in histograms for lag in h)) / _HEAT_ROWS)
  rows = 1 + max(int(lag) // per_row for _, h in histograms for lag in h)
  width = series.bin_width(last_step, _HEAT_COLUMNS)
  first, last = histograms[0][0] // width, histograms[-1][0] // width
  counts = [[0] * rows for _ in range(first, last + 1)]
  for step, histogram in histograms:
    for lag, tokens in histogram.items():
      counts[step // width - first][int(lag) // per_row] += tokens
  edge = lambda column: min(max(column * width - 0.5, 0.0), max(last_step, 1))
  low = lambda row: row * per_row
  return charts.Heat(
    edges=[edge(first + c) for c in range(len(counts) + 1)],
    labels=[str(low(r)) if per_row == 1 else f"{low(r)}-{low(r + 1) - 1}" for r in range(rows)],
    columns=[[n / max(sum(column), 1) for n in column] for column in counts],
  )


def _framed(title: str, meaning: str, keys: str, drawn: str) -> str:
  name = html.escape(title)
  return (
    f'<figure><figcaption><b>{name}</b><span class="at"></span>'
    f"<small>{html.escape(meaning)}</small></figcaption>"
    f'<div class="keys">{keys}</div>'
    f'<div class="plot" tabindex="0" role="slider" aria-label="{name}" aria-valuenow="0" '
    f'aria-valuemin="0" aria-valuetext="arrow keys read values">{drawn}</div></figure>'
  )


def _steps(middles: Sequence[float]) -> list[float]:
  return [round(x, 2) if x % 1 else int(x) for x in middles]


def _short(values: Sequence[float]) -> list[float]:
  """Four digits are enough to read."""
  return [float(f"{value:.4g}") if value % 1 else int(value) for value in values]
