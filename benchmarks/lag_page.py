"""The page of benchmarks/lag_lab.py as Markdown: verdicts, tables, plots. Nothing is run here."""

import pathlib
from collections.abc import Sequence

from benchmarks import lag_claims, lag_plots, paired
from benchmarks.lag_claims import MAIN, OUTCOMES, REPORTS, Case, Result, name_of
from benchmarks.lag_entries import Study
from offpolicy_rl.observe.plots import mean_and_half_width

FIELDS = {  # of every report: (title, digits)
  "accuracy": ("final pass@1", 3),
  "mean_accuracy": ("pass@1, mean over the run (what was tuned for)", 3),
  "entropy": ("entropy of a completion (nats; 33.3 at the start)", 2),
}
TUNED_FIELDS = {  # of the tuned report alone
  "pass_at_16": ("final pass@16", 3),
  "entropy_correct": ("entropy among right completions (nats)", 2),
  "collapsed": ("share of seeds that end more than 20 % below their own best pass@1", 2),
  "lambda_hat": ("lambda(t) of regressions, at the end", 4),
}


def grid_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results: Sequence[Result], which: str, field: str, digits: int = 3) -> str:
  """Objectives down, settings across, mean ± half of the 95 % interval."""
  shown = [r for r in results if which in r["reports"]]
  if not shown:
    return ""
  rows = []
  for result in shown:
    cells = [mean_and_half_width(row[field]) for row in result["reports"][which]]
    rows.append([f"`{result['label']}`", *(f"{m:.{digits}f} ± {h:.{digits}f}" for m, h in cells)])
  settings = [name_of(row["setting"]) for row in shown[0]["reports"][which]]
  return grid_of(["objective", *settings], rows)


def case_table(cases: Sequence[Case], head: str) -> str:
  """Objectives down, settings across; bold where the difference is clear after Holm."""
  if not cases:
    return ""
  settings = list(dict.fromkeys(case.setting for case in cases))
  bases = {case.setting: case.base for case in cases}
  rows = []
  for label in dict.fromkeys(case.label for case in cases):
    mine = {case.setting: case for case in cases if case.label == label}
    texts = {s: f"{c.mean:+.3f} ± {c.half:.3f}" for s, c in mine.items()}
    cells = [f"**{texts[s]}**" if mine[s].is_clear else texts[s] for s in settings]
    rows.append([f"`{label}`", *cells])
  return grid_of([head, *(f"{name_of(s)}, `{bases[s]}`" for s in settings)], rows)


def kappa_table(result: Result) -> str:
  """Entropy, speed and final score against kappa, at the beta and learning rate tuned at 0."""
  rows = []
  for kappa, of_kappa in lag_claims.by_kappa(result).items():
    for row in of_kappa:
      cells = [
        f"{m:.{digits}f} ± {h:.{digits}f}"
        for field, (_, digits) in FIELDS.items()
        for m, h in [mean_and_half_width(row[field])]
      ]
      point = [f"{kappa:g}", name_of(row["setting"]), f"{row['value']:g}", f"{row['rate']:g}"]
      rows.append((row["setting"], [*point, *cells]))
  rows = [cells for _, cells in sorted(rows, key=lambda row: row[0])]
  return grid_of(["kappa", "setting", "beta", "learning rate", *FIELDS], rows)


def point_of(row: dict) -> str:
  """Value and learning rate."""
  rate = f"{row['rate']:g}"
  return rate if row["value"] is None else f"{row['value']:g}, {rate}"


def chosen_table(results: Sequence[Result]) -> str:
  """What tuning chose, and where its grids grew."""
  rows = []
  for result in results:
    tuned, one = result["reports"]["tuned"], result["reports"]["one"][0]
    grown = ", ".join(f"{axis} {new:g}" for axis, new in result["extensions"])
    name = result["settings"]["entry"]["tuned"] or "learning rate"
    points = [point_of(row) for row in tuned]
    rows.append([f"`{result['label']}`", name, *points, point_of(one), grown or "nowhere"])
  settings = [name_of(row["setting"]) for row in results[0]["reports"]["tuned"]]
  return grid_of(["objective", "tuned", *settings, "one for all", "grid grew to"], rows)


def page(results: Sequence[Result], command: str, study: Study, name: str) -> str:
  """The results as Markdown."""
  seconds = sum(result["seconds"] for result in results)
  machines = ", ".join(dict.fromkeys(result["machine"] for result in results))
  missing = [label for label in study.entries if label not in {r["label"] for r in results}]
  still = f" Not run yet: {', '.join(missing)}." if missing else ""
  parts = [
    f"# Lag laboratory\n\nCommand: `{command}`. Machine: {machines}. Seconds of work, summed over "
    f"objectives: {seconds:.0f}. {len(results)} of {len(study.entries)} objectives.{still} Mean "
    f"over {len(study.seeds)} seeds ± half of the 95 % interval; tuned on other seeds, "
    f"{len(study.tuning_seeds)} of them. Final value = mean of the last four evaluations.",
    "## Claims\n\nWritten by the program from the numbers below. A case is one objective at one "
    "lag. A difference counts where a paired t-test over the seeds, adjusted by Holm's method "
    f"within all cases of a table, gives p < {paired.LEVEL:g}. The best ratio is the objective "
    "with importance ratios that has the best tuning score, which is the mean over the run; the "
    "highest ratio is the one with the best mean over the reported seeds, lucky ones included.",
    lag_claims.verdicts(results),
    "\n\n".join(f"![{title}]({name}_{kind}.png)" for kind, title in lag_plots.TITLES.items()),
  ]
  for which in MAIN:
    for field, outcome in OUTCOMES.items():
      cases = lag_claims.against_ratios(results, which, field)
      parts += _titled(
        f"{outcome} against the best ratio objective, {REPORTS[which]}",
        case_table(cases, "minus the best ratio at"),
      )
  for result in results:
    if "kappas" in result:
      parts += _titled("kappa at equal beta and learning rate", kappa_table(result))
  for which, title in REPORTS.items():
    fields = FIELDS | (TUNED_FIELDS if which == "tuned" else {})
    for field, (what, digits) in fields.items():
      parts += _titled(f"{what}, {title}", table(results, which, field, digits))
  parts += _titled("what the tuning chose (value, learning rate)", chosen_table(results))
  return "\n\n".join(parts) + "\n"


def _titled(title: str, text: str) -> list[str]:
  return [f"## {title[0].upper()}{title[1:]}", text] if text else []


def write(
  results: Sequence[Result], command: str, study: Study, folder: pathlib.Path, name: str
) -> None:
  """NAME.md and the plots."""
  (folder / f"{name}.md").write_text(page(results, command, study, name))
  lag_plots.write(results, folder, name)
  print(lag_claims.verdicts(results))
  print(f"results: {folder / name}.md, _{', _'.join(lag_plots.TITLES)}.png")
