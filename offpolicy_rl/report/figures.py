"""Charts of one or several runs as HTML, with their values for charts.js."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.observe import catalogue, metrics
from offpolicy_rl.observe.charts import Chart
from offpolicy_rl.report import runs, series, svg

_HEAT_COLUMNS, _HEAT_ROWS = 60, 16
_FEW = 60  # points that are not binned


class Figure(NamedTuple):
  """A drawn chart."""

  html: str
  data: dict  # for charts.js


class _Source(NamedTuple):
  """The data of a curve; it is shaded between the metrics `low` and `high`."""

  label: str
  rows: Sequence[dict]
  name: str
  css: str = ""
  low: str = ""
  high: str = ""


def draw_run(chart: Chart, run: runs.Run, last_step: int) -> Figure | None:
  """Draws a chart of a run; None if the run has no values for it."""
  rows = run.rows[chart.kind]
  if chart.stacked:  # every area needs all steps
    finite = lambda row, name: math.isfinite(row.get(name, math.nan))
    rows = [row for row in rows if all(finite(row, name) for name in chart.lines.values())]
  spreads = itertools.chain([chart.spread], itertools.repeat(("", "")))
  sources = [
    _Source(label.replace("_", " "), rows, name, "", *spread)
    for (label, name), spread in zip(chart.lines.items(), spreads, strict=False)
  ]
  return _figure(chart, sources, last_step, series.POINTS)


def draw_runs(chart: Chart, named: Sequence[tuple[str, runs.Run]], last_step: int) -> Figure | None:
  """Draws a chart's first line for several runs, each in the same colour in all charts."""
  name = chart.metric.name
  sources = [
    _Source(label, run.rows[chart.kind], name, f"r{n}", *chart.spread)
    for n, (label, run) in enumerate(named)
  ]
  # Fewer points per run, so that a page with many runs stays small.
  return _figure(chart, sources, last_step, max(60, series.POINTS * 2 // (1 + len(named))))


def _figure(chart: Chart, sources: Sequence[_Source], last_step: int, most: int) -> Figure | None:
  own_steps = chart.kind == metrics.WARM_START
  if own_steps:
    last_step = max((row["step"] for s in sources for row in s.rows), default=0)
  curves = _curves(chart, sources, series.bin_width(last_step, most))
  if not curves:
    return None
  x_range = (0.0, float(last_step))
  if chart.stacked:
    total = [sum(values) for values in zip(*(c.series.values for c in curves), strict=True)]
    top = curves[0].series._replace(values=[0.0, *total], smooth=[], lows=[0.0], highs=total)
    drawn = svg.stacked(curves, svg.fit_axes([top], x_range), chart.metric.unit)
  else:
    at = svg.fit_axes([c.series for c in curves], x_range, log=chart.log)
    drawn = svg.lines(curves, at, chart.metric.unit)
  lines = [{"x": _steps(c.series.x), "y": _short(c.series.values)} for c in curves]
  keys = "".join(
    f'<span class="key {c.css}"><i class="c{c.color}"></i>{html.escape(c.label)} '
    f"<b>{svg.number(c.series.values[-1])}</b></span>"
    for c in curves
  )
  data = {"high": max(last_step, 1), "linked": not own_steps, "lines": lines}
  return Figure(_framed(chart.title, chart.about, chart.metric.better, keys, drawn), data)


def _curves(chart: Chart, sources: Sequence[_Source], width: int) -> list[svg.Curve]:
  curves = []
  for n, source in enumerate(sources):
    points = series.points(source.rows, source.name, source.low, source.high)[chart.skip :]
    if chart.log:
      points = [p for p in points if p.value > 0]
    if points:
      # Few points, such as evaluations, stay at their steps.
      bins = series.binned(points, 1 if len(points) <= _FEW else width)
      curves.append(svg.Curve(source.label, bins, n % len(svg.COLORS), source.css))
  return curves


def draw_histogram(title: str, name: str, run: runs.Run, last_step: int) -> Figure | None:
  """Draws shares of tokens by lag over steps, from the histograms `name`; None without any."""
  rows = [row for row in run.rows[metrics.TRAIN] if row.get(name)]
  if not rows:
    return None
  cells = heat_cells([(row["step"], row[name]) for row in rows], last_step)
  keys = (
    '<span class="key">share of tokens: 0 % <i class="ramp"></i> 100 %</span>'
    '<span class="key shares"><b></b></span>'
  )
  drawn = svg.heat(cells, (0.0, float(last_step)), "versions")
  middle = [(a + b) / 2 for a, b in itertools.pairwise(cells.edges)]
  data = {
    "high": max(last_step, 1),
    "linked": True,
    "x": _steps(middle),
    "labels": cells.labels,
    "columns": [_short(column) for column in cells.columns],
  }
  return Figure(
    _framed(title, catalogue.METRICS[metrics.TRAIN][name].meaning, "", keys, drawn), data
  )


def heat_cells(histograms: Sequence[tuple[int, dict[str, int]]], last_step: int) -> svg.Heat:
  """Bins [(step, {lag: tokens})], sorted, into shares per column of steps and row of lags."""
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
  return svg.Heat(
    edges=[edge(first + c) for c in range(len(counts) + 1)],
    labels=[str(low(r)) if per_row == 1 else f"{low(r)}-{low(r + 1) - 1}" for r in range(rows)],
    columns=[[n / max(sum(column), 1) for n in column] for column in counts],
  )


def _framed(title: str, meaning: str, better: str, keys: str, drawn: str) -> str:
  name, text = html.escape(title), html.escape("; ".join(filter(None, (meaning, better))))
  return (
    f'<figure><figcaption><b>{name}</b><span class="at"></span>'
    f"<small>{text}</small></figcaption>"
    f'<div class="keys">{keys}</div>'
    f'<div class="plot" tabindex="0" role="slider" aria-label="{name}" aria-valuenow="0" '
    f'aria-valuemin="0" aria-valuetext="arrow keys read values">{drawn}</div></figure>'
  )


def _steps(middles: Sequence[float]) -> list[float]:
  return [round(x, 2) if x % 1 else int(x) for x in middles]


def _short(values: Sequence[float]) -> list[float]:
  return [float(f"{value:.4g}") if value % 1 else int(value) for value in values]
