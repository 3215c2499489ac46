"""Curves, stacked areas and heat maps as inline SVG; colours are classes of style.css."""

import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from offpolicy_rl.report import series as series_lib
from offpolicy_rl.report.series import Series

WIDTH, HEIGHT = 330, 210
LEFT, RIGHT, TOP, BOTTOM = 42, 14, 24, 36
# For SVG outside a page; style.css has the same colours, and others for dark screens.
COLORS = ("#2f6db5", "#c8602a", "#2e8b57", "#8557b0", "#b8344a", "#1b8a94", "#8a6d3b", "#6b7480")
_DOT_DISTANCE = 5  # pixels between points; with more, each point has a dot


class Curve(NamedTuple):
  """A line of a chart."""

  label: str
  series: Series
  color: int  # of COLORS
  css: str = ""  # further classes


class Axes(NamedTuple):
  """Axes, which map data to pixels."""

  x_low: float
  x_high: float
  ticks: list[float]  # of the vertical axis, from end to end
  log: bool = False

  def x(self, at: float) -> float:
    """Pixels from the left."""
    return LEFT + (at - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

  def y(self, value: float) -> float:
    """Pixels from the top; values outside the axis are put on its ends."""
    scale = (lambda v: math.log10(max(v, self.ticks[0]))) if self.log else float
    low, high = scale(self.ticks[0]), scale(self.ticks[-1])
    share = min(max((scale(value) - low) / (high - low), 0.0), 1.0)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def number(value: float) -> str:
  """Formats with three or four digits."""
  size = abs(value)
  for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
    if size >= 0.9995 * limit:  # what would be rounded to it
      return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
  if size >= 999.5:
    return f"{value:,.0f}"
  text = f"{value:.3g}"
  return text.replace("e-0", "e-").replace("e+0", "e")


def fit_axes(curves: Sequence[Series], x_range: tuple[float, float], *, log: bool = False) -> Axes:
  """Makes axes for curves."""
  low, high = series_lib.extent(curves)
  if log:
    ticks = series_lib.log_ticks(low, high)
  else:  # from 0 if that costs little space
    ticks = series_lib.ticks(0.0 if 0 < low < 0.4 * high or low == high > 0 else low, high)
  return Axes(x_range[0], max(x_range[1], x_range[0] + 1), ticks, log)


def lines(curves: Sequence[Curve], at: Axes, unit: str = "") -> str:
  """Draws curves over their shaded spread, smooth ones over raw ones."""
  parts = [_axes(at, unit), _outside(curves, at)]
  for curve in curves:
    s, color = curve.series, f'class="c{curve.color} {curve.css}'
    ink = COLORS[curve.color]
    spread = any(low < high for low, high in zip(s.lows, s.highs, strict=True))
    if spread and len(s.x) > 1:
      area = _path(at, s.x, s.highs) + " " + _path(at, s.x[::-1], s.lows[::-1])
      parts.append(f'<polygon {color} band" fill="{ink}" fill-opacity=".16" points="{area}"/>')
    raw = "raw faint" if s.smooth else "raw"
    stroke = f'fill="none" stroke="{ink}" stroke-linejoin="round"'
    parts.append(
      f'<polyline {color} {raw}" {stroke} stroke-width="1.6" points="{_path(at, s.x, s.values)}"/>'
    )
    if s.smooth:
      smooth = _path(at, s.x, s.smooth)
      parts.append(f'<polyline {color} smooth" {stroke} stroke-width="2" points="{smooth}"/>')
    if at.x(s.x[-1]) - at.x(s.x[0]) >= _DOT_DISTANCE * (len(s.x) - 1):
      for x, y in zip(s.x, s.values, strict=True):
        at_point = f'cx="{at.x(x):.1f}" cy="{at.y(y):.1f}"'
        parts.append(f'<circle {color} dot" r="2.4" fill="{ink}" {at_point}/>')
  return _svg(parts)


def stacked(curves: Sequence[Curve], at: Axes, unit: str = "") -> str:
  """Draws stacked areas, the first at the bottom; all have the same x."""
  parts = [_axes(at, unit)]
  below = [0.0] * len(curves[0].series.x)
  for curve in curves:
    s = curve.series
    above = [b + v for b, v in zip(below, s.values, strict=True)]
    area = _path(at, s.x, above) + " " + _path(at, s.x[::-1], below[::-1])
    parts.append(
      f'<polygon class="c{curve.color} area" fill="{COLORS[curve.color]}" fill-opacity=".75" '
      f'points="{area}"/>'
    )
    below = above
  return _svg(parts)


class Heat(NamedTuple):
  """Shares by class, over steps."""

  edges: list[float]  # of the columns' steps, one more than columns
  labels: list[str]  # of the rows, from the bottom
  columns: list[list[float]]  # [column][row], shares


def heat(cells: Heat, x_range: tuple[float, float], unit: str) -> str:
  """Draws a heat map; larger shares are darker."""
  at = Axes(x_range[0], max(x_range[1], x_range[0] + 1), [0.0, float(len(cells.labels))])
  parts = [_x_axis(at), f'<text x="2" y="12">{html.escape(unit)}</text>']
  every = math.ceil(len(cells.labels) / 9)
  for row, label in enumerate(cells.labels):
    if row % every == 0:
      y = at.y(row + 0.5) + 4
      text = html.escape(label)
      parts.append(f'<text x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{text}</text>')
  for (start, end), column in zip(itertools.pairwise(cells.edges), cells.columns, strict=True):
    x, width = at.x(start), at.x(end) - at.x(start)
    for row, share in enumerate(column):
      if share:
        top, bottom = at.y(row + 1), at.y(row)
        size = f'width="{width:.1f}" height="{bottom - top:.1f}"'
        place = f'x="{x:.1f}" y="{top:.1f}" {size}'
        parts.append(f'<rect class="cell" {place} fill-opacity="{0.06 + 0.94 * share:.2f}"/>')
  return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
  return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'


def _path(at: Axes, xs: Sequence[float], ys: Sequence[float]) -> str:
  return " ".join(f"{at.x(x):.1f},{at.y(y):.1f}" for x, y in zip(xs, ys, strict=True))


def _axes(at: Axes, unit: str) -> str:
  parts = [_x_axis(at), f'<text x="2" y="12">{html.escape(unit)}</text>']
  for tick in at.ticks:
    y = f"{at.y(tick):.1f}"
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{number(tick)}</text>')
  return "".join(parts)


def _x_axis(at: Axes, name: str = "step") -> str:
  low, high = HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4
  parts = [f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{name}</text>']
  for tick in series_lib.ticks(at.x_low, at.x_high, 5):
    if at.x_low <= tick <= at.x_high and tick == int(tick):
      x = f"{at.x(tick):.1f}"
      parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
      parts.append(f'<text x="{x}" y="{low + 16}" text-anchor="middle">{number(tick)}</text>')
  return "".join(parts)


def _outside(curves: Sequence[Curve], at: Axes) -> str:
  values = [v for curve in curves for v in curve.series.values]
  slack = 1e-3 * (at.ticks[-1] - at.ticks[0])
  words = []
  if max(values) > at.ticks[-1] + slack:
    words.append(f"up to {number(max(values))}")
  if min(values) < at.ticks[0] - slack and not at.log:
    words.append(f"down to {number(min(values))}")
  text = ", ".join(words)
  return f'<text x="{WIDTH - RIGHT}" y="12" text-anchor="end">{text}</text>' if text else ""
