"""PNG files: the only code that uses matplotlib, which is imported when something is drawn."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLORS = (
  *("#3266ad", "#c4622d", "#3d8a52", "#8a5aa8", "#b2373f"),
  *("#6b6b6b", "#1a9c9c", "#b08a1e", "#d163a7"),
)
_MARKERS = "osD^vP"
MIN_RUNS = 3  # for an interval; that of two runs would be wider than the axis


class MissingMatplotlibError(RuntimeError):
  """matplotlib is not installed."""


def panels(
  rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple["Figure", np.ndarray]:
  """Makes (figure, axes [rows, columns]) without frames; `options` are of `Figure.subplots`.

  Raises:
    MissingMatplotlibError: matplotlib is not installed.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    raise MissingMatplotlibError(
      "pictures need matplotlib: pip install 'offpolicy-rl[bench]'"
    ) from None
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False, **options)
  for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
  return figure, axes


def save(figure: "Figure", path: pathlib.Path) -> None:
  """Writes a figure in the format of the path's suffix."""
  figure.savefig(path, dpi=110)


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
  """Mean, and half of its 95 % interval (Student's t; NaN for a single value)."""
  from scipy import special

  count = len(values)
  if count < 2:
    return float(values[0]), math.nan
  quantile = special.stdtrit(count - 1, 0.975)
  return statistics.fmean(values), float(quantile * statistics.stdev(values) / math.sqrt(count))


def means(
  axis: "Axes",
  points: Mapping[float, Sequence[float]],
  number: int,
  label: str,
  *,
  joined: bool = True,
) -> None:
  """Draws series `number`, {x: values}: means with 95 % intervals, the values as faint dots."""
  color, marker = COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]
  known = {x: mean_and_half_width(values) for x, values in sorted(points.items())}
  line = "-" if joined else ""
  heights = [mean for mean, _ in known.values()]
  axis.plot(list(known), heights, ls=line, lw=1.4, ms=5, color=color, marker=marker, label=label)
  for x, (mean, half) in known.items():
    if len(points[x]) > 1:
      axis.plot([x] * len(points[x]), points[x], "o", color=color, ms=3.5, alpha=0.5, mew=0)
    if len(points[x]) >= MIN_RUNS:
      axis.errorbar(x, mean, half, color=color, lw=1.2, capsize=3, alpha=0.8)
