"""Binning and smoothing of curves, and round numbers for axes."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from offpolicy_rl.observe import metrics

POINTS = 300  # of a curve, at most
_FLATTENED = 3  # outliers beyond this multiple of the range of 96 % of the values are cut off
_SLACK = 1e-3  # of the distance of two ticks: less than a pixel
_SMOOTHED_FROM = 40  # points
_SAME, _NOTHING = 1e-9, 1e-99  # relative distance of equal numbers; size of what counts as 0


class Point(NamedTuple):
  """A value at a step, with its spread."""

  x: float
  value: float
  low: float
  high: float


class Series(NamedTuple):
  """Lists of equal length. A point stands for a bin of steps: their mean, lowest and highest."""

  x: list[float]
  values: list[float]
  lows: list[float]
  highs: list[float]
  smooth: list[float]  # [] if there are few points


def bin_width(last_step: float, most: int = POINTS) -> int:
  """Steps per bin, so that steps 0 to `last_step` make at most `most` bins."""
  return max(1, math.ceil((last_step + 1) / most))


def points(rows: Iterable[dict], name: str, low: str = "", high: str = "") -> list[Point]:
  """The points of rows with a finite value, sorted; `low`, `high`: metrics of its spread.

  Rows of versions before version 0 are left out.
  """
  return sorted(
    Point(row["step"], value, row.get(low, value), row.get(high, value))
    for row in rows
    if math.isfinite(value := row.get(name, math.nan)) and metrics.is_of_training(row)
  )


def binned(points: Sequence[Point], width: int) -> Series:
  """Puts points, sorted by x, into bins of `width` steps."""
  bins = [list(same) for _, same in itertools.groupby(points, key=lambda p: p.x // width)]
  middle = lambda x: x if width == 1 else x // width * width + (width - 1) / 2
  values = [sum(p.value for p in same) / len(same) for same in bins]
  return Series(
    x=[middle(same[0].x) for same in bins],
    values=values,
    lows=[min(p.low for p in same) for same in bins],
    highs=[max(p.high for p in same) for same in bins],
    smooth=smoothed(values) if len(values) >= _SMOOTHED_FROM else [],
  )


def smoothed(values: Sequence[float]) -> list[float]:
  """Moving means over a fifteenth of all values, with smaller windows at the ends."""
  half = max(1, len(values) // 30)
  sums = [0.0, *itertools.accumulate(values)]
  reaches = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
  return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reaches)]


def extent(curves: Sequence[Series]) -> tuple[float, float]:
  """(low, high) of an axis, without a few outliers if they would flatten the rest."""
  lows = sorted(v for s in curves for v in (*s.values, *s.lows))
  highs = sorted(v for s in curves for v in (*s.values, *s.highs))
  cut = len(lows) // 50
  most = _FLATTENED * (highs[-1 - cut] - lows[cut])
  if highs[-1] - lows[0] > most > 0:
    return lows[cut], highs[-1 - cut]
  return lows[0], highs[-1]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """About `count` different round numbers that enclose [low, high]."""
  size, span = max(abs(low), abs(high)), high - low
  if size < _NOTHING:
    span = 1.0
  elif span < _SAME * size:  # ticks that close would have the same label, or be the same float
    span = size
  raw = span / count
  exponent = math.floor(math.log10(raw))
  power = 10.0**exponent
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
  first, last = math.floor(low / step + _SLACK), math.ceil(high / step - _SLACK)
  return [round(i * step, 12 - exponent) for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """At most six powers of ten that enclose [low, high], both > 0."""
  first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
  last = max(last, first + 1)
  stride = math.ceil((last - first) / 5)
  return [10.0**i for i in range(first, last + stride, stride)]
