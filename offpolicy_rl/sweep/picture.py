"""Plots scores of a sweep against one of its keys: a line per series, means over other keys."""

from typing import TYPE_CHECKING

from offpolicy_rl.observe import catalogue, plots
from offpolicy_rl.sweep import results
from offpolicy_rl.sweep.runs import FINISHED, short

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_MAX_PLACES = 12  # values of a horizontal axis with equal distances and lines between points
_LEGEND_CHARACTERS = 150  # in a line of it
_MIN_SPAN = 0.1  # of an axis of scores; less would enlarge noise


def draw(rows: results.Rows, x: str, series: list[str], pooled: list[str]) -> "Figure":
  """Makes a figure with a panel per score: finished runs, their means and 95 % intervals.

  Raises:
    plots.MissingMatplotlibError: matplotlib is not installed.
  """
  rows = [row for row in rows if row["status"] == FINISHED]
  values = list(dict.fromkeys(row["settings"][x] for row in rows))
  numeric = results.is_number(rows, x)
  values = sorted(values) if numeric else values
  placed = not numeric or len(values) <= _MAX_PLACES
  lines: dict[str, results.Rows] = {}
  for row in rows:
    told = {key: row["settings"][key] for key in series}
    label = ", ".join(_label(key, value) for key, value in told.items() if value is not None)
    lines.setdefault(label, []).append(row)
  figure, [axes] = plots.panels(1, len(results.SCORES), (13, 4.6))
  for name, axis in zip(results.SCORES, axes, strict=True):
    for i, (label, group) in enumerate(lines.items()):
      # Shifted, so that intervals do not overlap.
      shift = 0.3 * ((i + 0.5) / len(lines) - 0.5) if placed else 0.0
      points: dict[float, list[float]] = {}
      for row in (row for row in group if row[name] is not None):
        value = row["settings"][x]
        points.setdefault(values.index(value) + shift if placed else value, []).append(row[name])
      plots.means(axis, points, i, label, joined=placed)
    _dress(axis, name, values, placed)
    axis.set_xlabel("lag, in updates" if x == "lag.max_lag" else short(x))
  if len(lines) > 1:
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, min(len(lines), 6, _LEGEND_CHARACTERS // (max(map(len, lines)) + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
  over = f"; means over {' and '.join(map(short, pooled))}, 95 % intervals" if pooled else ""
  enough = f" where there are {plots.MIN_RUNS} or more" if pooled else ""
  figure.suptitle(f"{len(rows)} finished runs{over}{enough}", fontsize=10, color="#66707d")
  return figure


def _dress(axis, name: str, values: list, placed: bool) -> None:
  metric = catalogue.METRICS[catalogue.SWEEP][name]
  axis.set_title(f"{name}, {metric.unit}\n{metric.meaning}", fontsize=10)
  if placed:
    axis.set_xticks(range(len(values)), [str(value) for value in values])
    axis.set_xlim(-0.5, len(values) - 0.5)
  elif min(values) > 0 and max(values) / min(values) >= 20:
    axis.set_xscale("log")
  low, high = axis.get_ylim()
  if metric.unit == "share":
    more = max(0.0, _MIN_SPAN - (high - low)) / 2
    axis.set_ylim(max(low - more, -0.03), min(high + more, 1.03))
  else:
    axis.set_ylim(bottom=max(low, 0))


def _label(key: str, value) -> str:
  return str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"
