"""The page and the pictures of benchmarks/lag_language.py, made from its rows: nothing is run here.

The decision is that of results/lag_language_plan.md, by the numbers alone.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import lag_language, paired
from benchmarks.lag_language import OFF_RATE, PRIMARY_LAG, Row, Study
from benchmarks.lag_language_entries import SHOWN
from offpolicy_rl.observe import plots
from offpolicy_rl.observe.plots import mean_and_half_width

CLAIMED = "shift"  # the entry whose primary differences decide the claim
FACTORS = (1, OFF_RATE)
SETTINGS = ((0, 1), (16, 1), (PRIMARY_LAG, 1), (PRIMARY_LAG, OFF_RATE), (256, 1))
_LAGS = [lag for lag, factor in SETTINGS if factor == 1]
FINAL, RUN_MEAN = "final pass@1", "mean pass@1 over the run"
PRIMARY: dict[str, Callable[[Row], float]] = {
  FINAL: lambda row: row["final"]["pass@1"],
  RUN_MEAN: lag_language.score,
}
SECONDARY: dict[str, Callable[[Row], float]] = {
  "pass@8": lambda row: row["final"]["pass@8"],
  "pass@64": lambda row: row["final"]["pass@64"],
  "entropy of a completion at the end, nats": lambda row: row["final"]["entropy"],
  "entropy among right answers at the end, nats": lambda row: row["final"]["entropy_right"],
  "variance of the groups' gradients / squared norm of their mean, median of four versions": (
    lambda row: float(np.median([x for x in row["noise"] if math.isfinite(x)] or [math.nan]))
  ),
  "effective sample size of the training batches, share, mean over the run": (
    lambda row: float(np.mean(row["curve"]["ess"]))
  ),
}
ENTROPY = "entropy of a completion at the end, nats"
AGAINST_LAG = {**PRIMARY, ENTROPY: SECONDARY[ENTROPY]}  # panels of a picture
Setting = tuple[int, int]  # (lag, factor of the tuned learning rate)


class Report(NamedTuple):
  """What tuning chose for an entry at a setting, and the runs of the seeds that were reported."""

  value: float | None
  rate: float
  rows: dict[int, Row]  # by seed


Reports = dict[str, dict[Setting, Report]]  # by label


def reports(rows: Sequence[Row], study: Study) -> Reports:
  """Every report that has a run."""
  known = {lag_language.job_of(row): row for row in rows}
  found: Reports = {}
  for entry in lag_language.ENTRIES:
    for setting, point in lag_language.report_settings(rows, entry, study).items():
      jobs = {seed: lag_language.Job(entry.label, *point, setting[0], seed) for seed in study.seeds}
      of_seed = {seed: known[job] for seed, job in jobs.items() if job in known}
      if of_seed:
        found.setdefault(entry.label, {})[setting] = Report(*point, of_seed)
  return found


def best_ratio(rows: Sequence[Row], study: Study) -> str | None:
  """The objective with ratios of the highest tuning score for the primary lag; None without."""
  best = {
    entry.label: max(scores.values())
    for entry in lag_language.ENTRIES
    if entry.has_ratio
    for scores in [lag_language.tuning_scores(rows, entry, PRIMARY_LAG, study)]
    if scores
  }
  return max(best, key=lambda label: best[label]) if best else None


# ---------------------------------------------------------------- the decision


def primary(found: Reports, base: str, factor: int) -> dict[tuple[str, str], paired.Difference]:
  """{(label, outcome): objective without ratios minus `base`} at the primary lag: one family."""
  gaps = {}
  for entry in lag_language.ENTRIES:
    pairs = [] if entry.has_ratio else from_one_start(found, base, entry.label, factor)
    for outcome, value in PRIMARY.items():
      if len(pairs) > 1:
        gaps[entry.label, outcome] = [value(mine) - value(other) for other, mine in pairs]
  return paired.family(gaps)


def from_one_start(found: Reports, base: str, label: str, factor: int) -> list[tuple[Row, ...]]:
  """(row of `base`, row of `label`) of the seeds whose two runs began with the same parameters.

  Early rows don't say with which ones.
  """
  reported = [found.get(name, {}).get((PRIMARY_LAG, factor)) for name in (base, label)]
  return [pair for pair in _shared(reported) if pair[0].get("start") == pair[1].get("start")]


def decision(of_factor: dict[int, dict[tuple[str, str], paired.Difference]]) -> str:
  """A sentence about the claimed entry, by the rule of the plan."""
  cases = {
    (factor, outcome): of_factor.get(factor, {}).get((CLAIMED, outcome))
    for factor in FACTORS
    for outcome in PRIMARY
  }
  signs = {key: _sign(case) for key, case in cases.items() if case}
  if len(signs) < len(cases):
    return "Not decided: runs of the primary outcome are missing."
  named = lambda sign: " and ".join(f"{o} at {f} x" for (f, o), s in signs.items() if s == sign)
  below = f" Below it: in {named(-1)} the tuned rate." if named(-1) else ""
  if not named(1):
    return f"Refuted: above the best ratio objective in no primary outcome.{below}"
  held = "Held" if all(signs[1, outcome] > 0 for outcome in PRIMARY) else "Held in part"
  return f"{held}: above the best ratio objective in {named(1)} the tuned rate.{below}"


def _sign(case: paired.Difference) -> int:
  return int(math.copysign(1, case.mean)) if case.is_clear else 0


# ---------------------------------------------------------------- the page


def page(rows: Sequence[Row], study: Study, name: str) -> str:
  """Markdown: the decisions, primary and secondary outcomes, what tuning chose."""
  studies = comparisons(rows, study)
  found = reports(rows, studies[-1][1])
  hours = sum(row["seconds"] for row in rows) / 3600
  machines = ", ".join(sorted({row["machine"] for row in rows})) or "none"
  parts = [
    "# Objectives under lag on a language model",
    f"Made by `python -m benchmarks.lag_language --summary` from {len(rows)} runs of {study.steps} "
    f"updates, {hours:.1f} hours of single cores ({machines}). Decided as the "
    f"[plan]({name}_plan.md) said before the runs. Mean over seeds ± half of the 95 % interval.",
    *(f"![{kind}]({name}_{kind}.png)" for kind in _pictures(found)),
  ]
  for title, of_title in studies:
    parts += [f"## Does `{CLAIMED}` beat the best ratio objective at lag {PRIMARY_LAG}? {title}"]
    parts += verdict(rows, of_title)
  for title, value in {**PRIMARY, **SECONDARY}.items():
    parts += [f"## {title[0].upper()}{title[1:]}", table(found, value)]
  parts += ["## Change from lag 0, at the tuned rate, paired by seed: no tests", by_lag(found)]
  if base := best_ratio(rows, study):
    parts += [f"## Minus `{base}` at the same lag, the same way", against_base(found, base)]
  parts += ["## What tuning chose", chosen(found), "## Tuning scores", tuning(rows, study)]
  return "\n\n".join(parts) + "\n"


def comparisons(rows: Sequence[Row], study: Study) -> list[tuple[str, Study]]:
  """(title, study) of the plan's first comparison and, once it is complete, of its second."""
  planned = ("As planned", dataclasses.replace(study, widest=math.inf))
  return [planned, ("With beta in finer steps", study)] if is_complete(rows, study) else [planned]


def is_complete(rows: Sequence[Row], study: Study) -> bool:
  """Whether every run of the primary outcome is there."""
  found, wanted = reports(rows, study), {(PRIMARY_LAG, factor) for factor in FACTORS}
  return len(found) == len(lag_language.ENTRIES) and all(
    setting in of_label and of_label[setting].rows.keys() >= set(study.seeds)
    for of_label in found.values()
    for setting in wanted
  )


def verdict(rows: Sequence[Row], study: Study) -> list[str]:
  """Paragraphs: the decision, and the differences behind it."""
  found, base = reports(rows, study), best_ratio(rows, study)
  of_factor = {f: primary(found, base, f) for f in FACTORS} if base else {}
  parts = [decision(of_factor)]
  for factor, family in of_factor.items():
    if base and family:
      seeds = _seeds(found, base, factor)
      parts += [f"Minus `{base}`, at {factor} x the tuned learning rate, paired over {seeds}:"]
      parts += [differences(family)]
  return parts


def _seeds(found: Reports, base: str, factor: int) -> str:
  free = [e.label for e in lag_language.ENTRIES if not e.has_ratio and e.label in found]
  pairs = [from_one_start(found, base, label, factor) for label in free]
  low, high = min(map(len, pairs)), max(map(len, pairs))
  if all(row.get("start") for of_label in pairs for pair in of_label for row in pair):
    begun = ", of one warm start each"
  else:
    begun = ", whose warm starts may differ"
  return f"{high if low == high else f'{low} to {high}'} seeds{begun}"


def differences(family: dict[tuple[str, str], paired.Difference]) -> str:
  """Markdown: bold where clear after Holm's adjustment."""
  lines = ["| objective | outcome | difference | p, Holm |", "| --- | --- | --- | --- |"]
  for (label, outcome), case in family.items():
    text = f"{case.mean:+.3f} ± {case.half:.3f}"
    text = f"**{text}**" if case.is_clear else text
    lines.append(f"| `{label}` | {outcome} | {text} | {case.p:.3g} |")
  return "\n".join(lines)


def name_of(setting: Setting) -> str:
  """(64, 3) -> "lag 64, 3 x rate"."""
  lag, factor = setting
  return f"lag {lag}" + (f", {factor} x rate" if factor != 1 else "")


def table(found: Reports, value: Callable[[Row], float]) -> str:
  """Markdown: objectives down, settings across; runs whose value is not finite are left out."""

  def cell(report: Report) -> str:
    values = finite(report, value)
    if not values:
      return ""
    mean, half = mean_and_half_width(values)
    return f"{mean:.3f} ± {half:.3f}" if len(values) > 1 else f"{mean:.3f}"

  return _grid(found, cell)


def by_lag(found: Reports) -> str:
  """Markdown: every objective under lag minus itself at lag 0, over the seeds that have both."""
  bases = {
    label: dict.fromkeys(SETTINGS, of_label[0, 1])
    for label, of_label in found.items()
    if (0, 1) in of_label
  }
  return _gaps(found, bases, [lag for lag in _LAGS if lag])


def against_base(found: Reports, base: str) -> str:
  """Markdown: every other objective minus `base` at the same lag."""
  others = {label: of_label for label, of_label in found.items() if label != base}
  return _gaps(others, dict.fromkeys(others, found.get(base, {})), _LAGS)


def _gaps(found: Reports, bases: Reports, lags: Sequence[int]) -> str:
  """Mean and half of the interval, paired by seed, at the tuned rate."""
  heads = [f"{title}, lag {lag}" for title in AGAINST_LAG for lag in lags]
  lines = [f"| objective | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
  for label, of_label in found.items():
    cells = []
    for value, lag in itertools.product(AGAINST_LAG.values(), lags):
      pairs = _shared([bases.get(label, {}).get((lag, 1)), of_label.get((lag, 1))])
      gaps = [value(mine) - value(other) for other, mine in pairs]
      cells.append("{:+.3f} ± {:.3f}".format(*mean_and_half_width(gaps)) if gaps[1:] else "")
    lines.append(f"| `{label}` | {' | '.join(cells)} |")
  return "\n".join(lines)


def _shared(reported: Sequence[Report | None]) -> list[tuple[Row, ...]]:
  """The rows of each seed that all of the reports have."""
  runs = [report.rows if report else {} for report in reported]
  seeds = sorted(set.intersection(*map(set, runs)))
  return [tuple(of_report[seed] for of_report in runs) for seed in seeds]


def chosen(found: Reports) -> str:
  """Markdown: the own value and the learning rate of every report."""

  def cell(report: Report) -> str:
    own = "" if report.value is None else f"{report.value:g}, "
    return f"{own}{report.rate:g}"

  return _grid(found, cell)


def _grid(found: Reports, cell: Callable[[Report], str]) -> str:
  lines = [
    f"| objective | {' | '.join(map(name_of, SETTINGS))} |",
    "| --- |" + " --- |" * len(SETTINGS),
  ]
  for label, of_label in found.items():
    cells = [cell(of_label[s]) if s in of_label else "" for s in SETTINGS]
    lines.append(f"| `{label}` | {' | '.join(cells)} |")
  return "\n".join(lines)


def tuning(rows: Sequence[Row], study: Study) -> str:
  """Markdown: mean score of each point at each lag of the tuning, over the tuning seeds."""
  known: dict[tuple, list[float]] = {}
  lags = sorted(set().union(*lag_language.TUNED_AT.values()))
  for row in rows:
    if row["seed"] in study.tuning_seeds and row["lag"] in lags:
      job = lag_language.job_of(row)
      known.setdefault(job[:-1], []).append(lag_language.score(row))
  lines = [
    f"| objective | value | rate | {' | '.join(f'lag {lag}' for lag in lags)} |",
    "| --- | --- | --- |" + " --- |" * len(lags),
  ]
  for entry in lag_language.ENTRIES:
    tried = {(value, rate) for label, value, rate, _ in known if label == entry.label}
    for value, rate in sorted(tried, key=lambda point: (point[0] or 0, point[1])):
      scores = [known.get((entry.label, value, rate, lag)) for lag in lags]
      own = "" if value is None else f"{value:g}"
      cells = [f"{np.mean(s):.3f}" if s else "" for s in scores]
      lines.append(f"| `{entry.label}` | {own} | {rate:g} | {' | '.join(cells)} |")
  return "\n".join(lines)


# ---------------------------------------------------------------- the pictures


def _pictures(found: Reports) -> tuple[str, ...]:
  """Names of those that there are runs for."""
  lags = {lag for of_label in found.values() for lag, factor in of_label if factor == 1}
  return (*(("curves",) if PRIMARY_LAG in lags else ()), *(("lags",) if len(lags) > 1 else ()))


def curves(found: Reports, path: pathlib.Path) -> None:
  """Held-out pass@1 over the run at the primary lag: means over seeds and their intervals.

  Rows: objectives with and without ratios; columns: factors of the tuned rate.
  """
  figure, axes = plots.panels(2, len(FACTORS), (9.0, 6.5), sharex=True, sharey=True)
  for number, entry in enumerate(e for e in lag_language.ENTRIES if e.label in found):
    row = axes[0 if entry.has_ratio else 1]
    for axis, factor in zip(row, FACTORS, strict=True):
      report = found[entry.label].get((PRIMARY_LAG, factor))
      if not report:
        continue
      lines = [of_seed["curve"] for of_seed in report.rows.values()]
      points = [mean_and_half_width(x) for x in zip(*(c["pass@1"] for c in lines), strict=True)]
      (mean, half), steps = np.array(points).T, lines[0]["step"]
      color = plots.COLORS[number % len(plots.COLORS)]
      axis.plot(steps, mean, color=color, lw=1.5, label=entry.label)
      axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.12, lw=0)
  for axis, factor in zip(axes[0], FACTORS, strict=True):
    rate = "the tuned rate" if factor == 1 else f"{factor} x the tuned rate"
    axis.set_title(f"lag {PRIMARY_LAG}, {rate}", fontsize=10)
  for row, title in zip(axes, ("with ratios", "without ratios"), strict=True):
    row[0].set_ylabel(f"held-out pass@1, {title}", fontsize=9)
    row[0].legend(fontsize=8, frameon=False, loc="lower left")
  for axis in axes[-1]:
    axis.set_xlabel("update")
  plots.save(figure, path)


def against_lag(found: Reports, path: pathlib.Path) -> None:
  """One panel per outcome: means and intervals at the tuned rate, lags at equal distances.

  Of the seeds that an objective has at every lag: what differs along a line is the lag.
  """
  figure, axes = plots.panels(1, len(AGAINST_LAG), (4.3 * len(AGAINST_LAG), 4.3))
  for axis, (title, value) in zip(axes[0], AGAINST_LAG.items(), strict=True):
    for number, label in enumerate(label for label in SHOWN if label in found):
      aside = 0.07 * (number - len(SHOWN) / 2)  # so that intervals do not cover each other
      known = [i for i, lag in enumerate(_LAGS) if (lag, 1) in found[label]]
      seeds = _shared([found[label][_LAGS[i], 1] for i in known])
      by_place = zip(known, zip(*seeds, strict=True), strict=True) if seeds else ()
      points = {i + aside: list(map(value, rows)) for i, rows in by_place}
      plots.means(axis, points, number, label)
    axis.set_xticks(range(len(_LAGS)), [str(lag) for lag in _LAGS])
    axis.set_xlabel("lag (updates)")
    axis.set_ylabel(title, fontsize=8)
  axes[0, 0].legend(fontsize=7, frameon=False)
  plots.save(figure, path)


def finite(report: Report | None, value: Callable[[Row], float]) -> list[float]:
  """The values of a report's runs, without those that are not finite."""
  rows = report.rows.values() if report else ()
  return [x for x in map(value, rows) if math.isfinite(x)]


def write(rows: Sequence[Row], study: Study, stem: pathlib.Path) -> None:
  """STEM.md, and the pictures STEM_kind.png that there are runs for."""
  found, name = reports(rows, comparisons(rows, study)[-1][1]), stem.name
  stem.with_suffix(".md").write_text(page(rows, study, name), encoding="utf-8")
  for kind in _pictures(found):
    path = stem.with_name(f"{name}_{kind}.png")
    curves(found, path) if kind == "curves" else against_lag(found, path)
  print(f"results: {stem}.md")
