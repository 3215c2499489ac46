"""Scores of a sweep against one of its keys: a line per series, intervals over what is left."""

import pathlib

from matplotlib.figure import Figure

from offpolicy_rl.sweep import summary
from offpolicy_rl.sweep.runs import FINISHED, short

_COLORS = (
  "#3266ad",
  "#c4622d",
  "#3d8a52",
  "#8a5aa8",
  "#b2373f",
  "#6b6b6b",
  "#1a9c9c",
  "#b08a1e",
  "#d163a7",
)
_MARKERS = "osD^vP"
_MOST_PLACES = 12  # values of the horizontal axis that still get a place each, and lines between
_FEWEST = 3  # runs that an interval is drawn for; of two it would be wider than the axis
_LEAST_SPAN = 0.1  # of a panel of scores: less is noise, enlarged
_TITLES = {
  "final": "held-out pass@1, final",
  "mean": "held-out pass@1, mean over the run",
  "entropy": "entropy, nats per token, last 20 steps",
}


def draw(
  rows: summary.Rows, x: str, series: list[str], pooled: list[str], path: pathlib.Path
) -> None:
  """Writes the picture of `compose` to a file; its ending says which format."""
  compose(rows, x, series, pooled).savefig(path, dpi=110)


def compose(rows: summary.Rows, x: str, series: list[str], pooled: list[str]) -> Figure:
  """One panel per figure: finished runs as dots, their means and 95 % intervals per series."""
  rows = [row for row in rows if row["status"] == FINISHED]
  values = list(dict.fromkeys(row["settings"][x] for row in rows))
  numeric = summary.is_number(rows, x)
  values = sorted(values) if numeric else values
  placed = not numeric or len(values) <= _MOST_PLACES
  lines: dict[str, summary.Rows] = {}
  for row in rows:
    label = ", ".join(_label(key, row["settings"][key]) for key in series)
    lines.setdefault(label, []).append(row)
  figure = Figure(figsize=(13, 4.6), layout="constrained")
  panels = dict(zip(summary.FIGURES, figure.subplots(1, len(summary.FIGURES)), strict=True))
  for name, axis in panels.items():
    for i, (label, group) in enumerate(lines.items()):
      style = {"color": _COLORS[i % len(_COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}
      # Beside each other, so that intervals do not hide one another.
      shift = 0.3 * ((i + 0.5) / len(lines) - 0.5) if placed else 0.0
      places = {value: at + shift if placed else value for at, value in enumerate(values)}
      points = _points(group, x, name, places)
      _series(axis, points, style | {"label": label}, joined=placed)
    _dress(axis, name, values, placed)
    axis.set_xlabel(_axis_label(x))
  if len(lines) > 1:
    handles, labels = panels["final"].get_legend_handles_labels()
    figure.legend(
      handles, labels, loc="outside lower center", ncols=min(len(lines), 6), frameon=False
    )
  figure.suptitle(_subtitle(pooled, len(rows)), fontsize=10, color="#66707d")
  return figure


def _points(group: summary.Rows, x: str, name: str, places: dict) -> dict[float, list[float]]:
  """{place: the figures of its runs}, in the order of the places."""
  points: dict[float, list[float]] = {}
  for row in group:
    if row[name] is not None:
      points.setdefault(places[row["settings"][x]], []).append(row[name])
  return dict(sorted(points.items()))


def _series(axis, points: dict[float, list[float]], style: dict, *, joined: bool) -> None:
  """Dots of the runs, faint, and means with intervals."""
  several = {at: found for at, found in points.items() if len(found) > 1}
  for at, found in several.items():
    axis.plot([at] * len(found), found, "o", color=style["color"], ms=3.5, alpha=0.5, mew=0)
  means = [summary.mean_and_half_width(found) for found in points.values()]
  axis.plot(
    list(points), [mean for mean, _ in means], ls="-" if joined else "", lw=1.4, ms=5, **style
  )
  for (at, found), (mean, half) in zip(points.items(), means, strict=True):
    if len(found) >= _FEWEST:
      axis.errorbar(at, mean, half, color=style["color"], lw=1.2, capsize=3, alpha=0.8)


def _dress(axis, name: str, values: list, placed: bool) -> None:
  axis.set_title(_TITLES[name], fontsize=10)
  axis.spines[["top", "right"]].set_visible(False)
  axis.grid(alpha=0.2)
  if placed:
    axis.set_xticks(range(len(values)), [str(value) for value in values])
    axis.set_xlim(-0.5, len(values) - 0.5)
  elif min(values) > 0 and max(values) / min(values) >= 20:
    axis.set_xscale("log")
  low, high = axis.get_ylim()
  if name == "entropy":
    axis.set_ylim(bottom=max(low, 0))
  else:
    more = max(0.0, _LEAST_SPAN - (high - low)) / 2
    axis.set_ylim(max(low - more, -0.03), min(high + more, 1.03))


def _label(key: str, value) -> str:
  """A name speaks for itself, a number does not."""
  return str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]} {value}"


def _axis_label(key: str) -> str:
  return "lag, in updates" if key == "lag.max_lag" else short(key)


def _subtitle(pooled: list[str], count: int) -> str:
  if not pooled:
    return f"{count} finished runs"
  over = " and ".join(map(short, pooled))
  return (
    f"{count} finished runs; means over {over}, 95 % intervals where there are {_FEWEST} or more"
  )
