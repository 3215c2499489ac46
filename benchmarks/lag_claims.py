"""What the results of benchmarks/lag_lab.py say: paired differences, and verdicts made from them.

A case is one objective at one lag. The cases of a table are one family of tests: two-sided paired
t-tests over the seeds, adjusted by Holm's method to a family-wise error of paired.LEVEL. What a
claim counts of them is adjusted with the whole table. Results are those of lag_lab.run_entry, read
from JSON.
"""

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import lag_entries, paired
from offpolicy_rl.observe.plots import mean_and_half_width

REPORTS = {
  "tuned": "tuned for each lag",
  "triple": "at 3 x the tuned learning rate",
  "third": "at 1/3 of the tuned learning rate",
  "published": "as published, learning rate tuned for each lag",
  "one": "one setting for all lags",
}
MAIN = ("tuned", "triple", "published", "one")  # the reports that claims are judged by
OUTCOMES = {"accuracy": "final pass@1", "mean_accuracy": "pass@1, mean over the run"}
FREE = ("target", "other", "rule")  # kinds without importance ratios

Result = Mapping[str, Any]


class Case(NamedTuple):
  """A paired difference: objective minus base."""

  label: str
  base: str
  setting: tuple
  mean: float
  half: float  # of the 95 % interval, not adjusted
  p: float  # adjusted within the family

  @property
  def is_clear(self) -> bool:
    """Whether the difference is there after Holm's adjustment."""
    return self.p < paired.LEVEL


def name_of(setting: Sequence) -> str:
  """(16, True) -> "periodic 16"; (16, False) -> "lag 16"."""
  lag, periodic = setting
  return f"periodic {lag}" if periodic else f"lag {lag}"


def family(pairs: Iterable[tuple[str, str, Sequence, Sequence, Sequence]]) -> list[Case]:
  """Cases of (label, base, setting, values, the base's values), adjusted together."""
  gaps = {
    (label, base, tuple(setting)): (np.array(mine) - np.array(other)).tolist()
    for label, base, setting, mine, other in pairs
  }
  return [Case(*key, *found) for key, found in paired.family(gaps).items()]


def kind_of(result: Result) -> str:
  """The kind of the result's entry, of lag_entries.KINDS."""
  return lag_entries.entry_of(result["label"]).kind


def of_kinds(results: Sequence[Result], kinds: Sequence[str], which: str) -> list[Result]:
  """The results of these kinds that have this report."""
  return [r for r in results if kind_of(r) in kinds and which in r["reports"]]


def best_ratio(results: Sequence[Result], which: str, i: int) -> Result | None:
  """The objective with ratios that tuning, not the reported seeds, found best at setting number i.

  What is measured off the tuned learning rate has the base of the tuned report, what keeps one
  setting has the one that is best on average.
  """
  scored = which if which in ("published", "one") else "tuned"

  def reached(result: Result) -> float:
    """Tuning score at the setting, or its mean over all."""
    scores = [row["tuning_score"] for row in result["reports"][scored]]
    return statistics.fmean(scores) if which == "one" else scores[i]

  return max(of_kinds(results, ("ratio",), which), key=reached, default=None)


def highest_ratio(results: Sequence[Result], which: str, i: int, field: str) -> Result | None:
  """The objective with ratios that is best on the reported seeds: in its favour, if by chance."""
  reached = lambda result: statistics.fmean(result["reports"][which][i][field])
  return max(of_kinds(results, ("ratio",), which), key=reached, default=None)


def against_ratios(
  results: Sequence[Result],
  which: str,
  field: str,
  base_of: Callable[[Sequence[Result], str, int], Result | None] = best_ratio,
) -> list[Case]:
  """Every objective without ratios minus a base with them, at every lag."""
  pairs = []
  for result in of_kinds(results, FREE, which):
    for i, row in enumerate(result["reports"][which]):
      base = base_of(results, which, i)
      if base:
        other = base["reports"][which][i][field]
        pairs.append((result["label"], base["label"], row["setting"], row[field], other))
  return family(pairs)


def since_lag_0(
  results: Sequence[Result], kinds: Sequence[str], which: str, field: str
) -> list[Case]:
  """Every objective of these kinds under lag minus itself at lag 0."""
  pairs = []
  for result in of_kinds(results, kinds, which):
    first, *others = result["reports"][which]
    if first["setting"][0] == 0:
      pairs += [(result["label"], "lag 0", r["setting"], r[field], first[field]) for r in others]
  return family(pairs)


def rules_against_tuned(results: Sequence[Result]) -> list[Case]:
  """Rules under one setting for all lags minus the mean baseline tuned for each lag."""
  tuned = [r["reports"]["tuned"] for r in results if r["label"] == "mean"]
  return family(
    (result["label"], "mean", row["setting"], row["mean_accuracy"], other["mean_accuracy"])
    for result in of_kinds(results, ("rule",), "one")
    for base in tuned
    for row, other in zip(result["reports"]["one"], base, strict=True)
  )


def by_kappa(result: Result) -> dict[float, list[dict]]:
  """Rows of each kappa at equal beta and learning rate, those of the tuned report included."""
  own = lag_entries.entry_of(result["label"]).choices().kappa
  added = {own + float(kappa): rows for kappa, rows in result["kappas"].items()}
  return dict(sorted((added | {own: result["reports"]["tuned"]}).items()))


def trend(result: Result, i: int, field: str) -> tuple[str, float, float]:
  """(in words whether it is monotone in kappa, last minus first kappa, half of its interval)."""
  values = [np.array(rows[i][field]) for rows in by_kappa(result).values()]
  steps = np.diff([x.mean() for x in values])
  words = "rises at every step" if np.all(steps > 0) else "not monotone"
  words = "falls at every step" if np.all(steps < 0) else words
  return (words, *mean_and_half_width((values[-1] - values[0]).tolist()))


def verdicts(results: Sequence[Result]) -> str:
  """Markdown: claim by claim what the numbers say."""
  ratio, target, other = (f"{k[0].upper()}{k[1:]}" for k in list(lag_entries.KINDS.values())[:3])
  parts = [
    *_losing(results, ("ratio",), "accuracy", f"{ratio}: accuracy falls with lag"),
    *_losing(results, ("ratio",), "entropy", f"{ratio}: entropy falls with lag"),
    *_losing(results, ("target",), "accuracy", f"{target}: accuracy falls with lag"),
    *_losing(results, ("target",), "entropy", f"{target}: entropy falls with lag"),
    *_losing(results, ("other",), "accuracy", f"{other}: accuracy falls with lag"),
  ]
  is_target = lambda label: lag_entries.entry_of(label).kind == "target"
  for field, outcome in OUTCOMES.items():
    for base, base_of in (
      ("the best ratio", best_ratio),
      ("the highest ratio", functools.partial(highest_ratio, field=field)),
    ):
      cases = {which: against_ratios(results, which, field, base_of) for which in MAIN}
      claim = f"better under lag than {base}, {outcome}"
      parts += _better(cases, is_target, f"{target}: {claim}")
      parts += _better(cases, lambda x: x == "shift_1", f"The beta-shifted mean, kappa 1: {claim}")
  parts += _rules(results)
  for result in results:
    parts += _kappas(result) if "kappas" in result else []
  return "\n".join(parts)


def _answered(claim: str, hits: int, cases: int, lines: list[str]) -> list[str]:
  """A claim, in how many cases it holds, and the lines that say where; nothing without cases."""
  answer = {0: "No", cases: "Yes"}.get(hits, "In part")
  return [f"- **{claim}.** {answer}: in {hits} of {cases} cases.", *lines] if cases else []


def _listed(cases: Sequence[Case], most: int = 4) -> str:
  """The largest differences with their intervals."""
  largest = sorted(cases, key=lambda case: -abs(case.mean))[:most]
  named = [
    f"`{c.label}` at {name_of(c.setting)} {c.mean:+.3f} ± {c.half:.3f}"
    + ("" if c.base == "lag 0" else f" to `{c.base}`")
    for c in largest
  ]
  rest = [f"{len(cases) - most} more"] if len(cases) > most else []
  return f" ({', '.join([*named, *rest])})" if named else ""


def _losing(results: Sequence[Result], kinds: Sequence[str], field: str, claim: str) -> list[str]:
  lines, hits, count = [], 0, 0
  for which in MAIN:
    cases = since_lag_0(results, kinds, which, field)
    lower = [case for case in cases if case.is_clear and case.mean < 0]
    higher = [case for case in cases if case.is_clear and case.mean > 0]
    hits, count = hits + len(lower), count + len(cases)
    lines.append(
      f"  - {REPORTS[which]}: lower in {len(lower)} of {len(cases)} cases{_listed(lower)}, "
      f"higher in {len(higher)}"
    )
  return _answered(claim, hits, count, lines)


def _better(
  families: Mapping[str, list[Case]], is_meant: Callable[[str], bool], claim: str
) -> list[str]:
  lines, hits, count = [], 0, 0
  for which, family in families.items():
    cases = [case for case in family if case.setting[0] and is_meant(case.label)]
    above = [case for case in cases if case.is_clear and case.mean > 0]
    below = [case for case in cases if case.is_clear and case.mean < 0]
    hits, count = hits + len(above), count + len(cases)
    lines.append(
      f"  - {REPORTS[which]}: above in {len(above)} of {len(cases)} cases{_listed(above)}, "
      f"below in {len(below)}{_listed(below)}"
    )
  return _answered(claim, hits, count, lines)


def _rules(results: Sequence[Result]) -> list[str]:
  lines, cases = [], rules_against_tuned(results)
  for label in dict.fromkeys(case.label for case in cases):
    mine = [case for case in cases if case.label == label]
    below = [case for case in mine if case.is_clear and case.mean < 0]
    lowest = min(mine, key=lambda case: case.mean - case.half)
    lines.append(
      f"  - `{label}`: clearly below in {len(below)} of {len(mine)} cases{_listed(below)}; lowest "
      f"end of an interval {lowest.mean - lowest.half:+.3f} at {name_of(lowest.setting)}"
    )
  level = sum(not (case.is_clear and case.mean < 0) for case in cases)
  claim = (
    "A rule with one setting for all lags is not clearly below the mean baseline tuned for each"
  )
  return _answered(f"{claim}, {OUTCOMES['mean_accuracy']}", level, len(cases), lines)


def _kappas(result: Result) -> list[str]:
  rows, lines, hits = result["reports"]["tuned"], [], 0
  for i, row in enumerate(rows):
    entropy, speed = (trend(result, i, field) for field in ("entropy", "mean_accuracy"))
    hits += entropy[0].startswith("rises") and speed[0].startswith("falls")
    named = [
      f"{name} {words} ({gap:+.3f} ± {half:.3f} from first to last)"
      for name, (words, gap, half) in (("entropy", entropy), ("speed", speed))
    ]
    lines.append(f"  - {name_of(row['setting'])}: {', '.join(named)}")
  kappas = ", ".join(f"{kappa:g}" for kappa in by_kappa(result))
  claim = (
    f"With every step of kappa ({kappas}) at equal beta and learning rate the mean entropy rises "
    f"and speed falls ({OUTCOMES['mean_accuracy']})"
  )
  return _answered(claim, hits, len(rows), lines)
