"""Plots of benchmarks/lag_lab.py."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import lag_claims, lag_entries
from benchmarks.lag_claims import REPORTS, Result, name_of
from offpolicy_rl.observe import plots

if TYPE_CHECKING:
  from matplotlib.axes import Axes

TITLES = {
  "scores": "final pass@1 against lag",
  "speed": "pass@1, mean over the run, against lag",
  "entropy": "entropy against lag",
  "rates": "sensitivity to the learning rate",
  "curves": "pass@1 and entropy against step",
}
AGAINST_LAG = {"scores": "accuracy", "speed": "mean_accuracy", "entropy": "entropy"}
SHOWN = ("tuned", "triple", "published")  # reports that are drawn
CURVES = ("grpo", "cispo", "reinforce", "asymre", "copg", "oapl", "mean", "shift_1")


def write(results: Sequence[Result], folder: pathlib.Path, name: str) -> None:
  """All plots, NAME_kind.png."""
  for kind, field in AGAINST_LAG.items():
    against_lag(results, field, TITLES[kind], folder / f"{name}_{kind}.png")
  against_rate(results, folder / f"{name}_rates.png")
  curves(results, folder / f"{name}_curves.png")


def by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
  """The kinds that have results, by their titles."""
  found = {
    title: [r for r in results if lag_claims.kind_of(r) == kind]
    for kind, title in lag_entries.KINDS.items()
  }
  return {title: of_kind for title, of_kind in found.items() if of_kind}


def against_lag(results: Sequence[Result], field: str, title: str, path: pathlib.Path) -> None:
  """Mean and interval at fixed lags: one row per report, one column per kind of objective."""
  kinds = by_kind(results)
  size = (3.5 * len(kinds), 8.0)
  figure, axes = plots.panels(len(SHOWN), len(kinds), size, sharex=True, sharey=True)
  for row, which in enumerate(SHOWN):
    for axis, (kind, of_kind) in zip(axes[row], kinds.items(), strict=True):
      for number, result in enumerate(of_kind):
        rows = result["reports"].get(which, [])
        _line(axis, [r for r in rows if not r["setting"][1]], field, number, result["label"])
      if row == 0:
        axis.set_title(kind, fontsize=9)
        axis.legend(fontsize=8, frameon=False, loc="lower left")
    axes[row, 0].set_ylabel(f"{title.removesuffix(' against lag')}\n{REPORTS[which]}", fontsize=7)
  for axis in axes[-1]:
    axis.set_xlabel("lag (updates)")
  plots.save(figure, path)


def _line(axis: "Axes", rows: list[dict[str, Any]], field: str, number: int, label: str) -> None:
  """One objective's values against lag, at equal distances."""
  if not rows:
    return
  values = np.array([plots.mean_and_half_width(row[field]) for row in rows])
  places, color = np.arange(len(rows)), plots.COLORS[number % len(plots.COLORS)]
  axis.plot(places, values[:, 0], "o-", color=color, label=label, ms=3.5, lw=1.4)
  lower, upper = values[:, 0] - values[:, 1], values[:, 0] + values[:, 1]
  axis.fill_between(places, lower, upper, color=color, alpha=0.12)
  axis.set_xticks(places, [str(row["setting"][0]) for row in rows])


def against_rate(results: Sequence[Result], path: pathlib.Path) -> None:
  """Final pass@1 at 1/3, 1 and 3 x the tuned learning rate: rows are kinds, columns settings."""
  kinds = by_kind(results)
  factors = {"tuned": 1.0, **lag_entries.OFF_RATES}
  settings = [row["setting"] for row in results[0]["reports"]["tuned"]]
  size = (3.2 * len(settings), 2.4 * len(kinds) + 0.6)
  figure, axes = plots.panels(len(kinds), len(settings), size, sharex=True, sharey=True)
  for row, (kind, of_kind) in enumerate(kinds.items()):
    for column, setting in enumerate(settings):
      axis = axes[row, column]
      for number, result in enumerate(of_kind):
        points = {
          factor: result["reports"][which][column]["accuracy"] for which, factor in factors.items()
        }
        plots.means(axis, points, number, result["label"])
      axis.set_xscale("log")
      axis.set_xticks(list(factors.values()), ["1", "1/3", "3"])
      axis.minorticks_off()
      axis.set_title(name_of(setting) if row == 0 else "", fontsize=9)
    axes[row, 0].set_ylabel(f"final pass@1\n{kind}", fontsize=7)
    axes[row, 0].legend(fontsize=7, frameon=False, loc="lower left")
  for axis in axes[-1]:
    axis.set_xlabel("learning rate / tuned one")
  plots.save(figure, path)


def curves(results: Sequence[Result], path: pathlib.Path) -> None:
  """Held-out pass@1 and entropy against step, one column per setting, tuned for each lag."""
  from benchmarks.lag_training import EVERY

  known = {r["label"]: r["reports"]["tuned"] for r in results if r["label"] in CURVES}
  settings = [row["setting"] for row in results[0]["reports"]["tuned"]]
  size = (3 * len(settings) + 1, 5.5)
  figure, axes = plots.panels(2, len(settings), size, sharex=True, sharey="row")
  for column, setting in enumerate(settings):
    for number, (label, rows) in enumerate(known.items()):
      for axis, field in zip(axes[:, column], ("accuracy", "entropy"), strict=True):
        line = rows[column]["curves"][field]
        steps = EVERY * np.arange(len(line))
        axis.plot(steps, line, color=plots.COLORS[number], label=label, lw=1.3)
    axes[0, column].set_title(name_of(setting), fontsize=10)
    axes[1, column].set_xlabel("step")
  axes[0, 0].set_ylabel("held-out pass@1")
  axes[1, 0].set_ylabel("entropy, nats")
  if known:
    axes[0, 0].legend(fontsize=7, frameon=False)
  plots.save(figure, path)
