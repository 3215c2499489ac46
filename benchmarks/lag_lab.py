"""How do the objectives bear lag? Same data budget, same model, same tuning budget for all.

  python -m benchmarks.lag_lab                the study: tuning, then seeds nobody tuned on
  python -m benchmarks.lag_lab --minutes=30   starts no further objective after that time
  python -m benchmarks.lag_lab --quick        four objectives, three lags, a small grid
  python -m benchmarks.lag_lab --summary      only the page and plots again, from the saved runs

The world is benchmarks/lag_world.py, the training loop benchmarks/lag_training.py, the objectives,
seeds and grids are in benchmarks/lag_entries.py. For each objective and lag the learning rate and
one number of the objective's own are chosen from a grid of 20 points that grows where the best one
lies at its edge (score: held-out pass@1, mean over the run and the tuning seeds, which asks for
speed and stability alike). What is reported comes from other seeds:

  tuned       the best point of each lag
  third       the same at 1/3 of the tuned learning rate, nothing tuned again
  triple      the same at 3 x the tuned learning rate, nothing tuned again
  published   the preset's own defaults, only the learning rate tuned for each lag
  one         one point for all lags, the best on average

Every objective is saved in results/lag_lab/ when done, with the settings it was run under: a
stopped study goes on where it was, on any machine, and what was run under others is run again.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import lag_entries, lag_page
from benchmarks.lag_entries import OFF_RATES, Entry, Grid, Growth, Setting, Study, Value
from benchmarks.machine import machine
from offpolicy_rl import losses

RESULTS = pathlib.Path(__file__).parent / "results"
LAST = 4  # evaluations that make the final score
LANES = 16  # of a call of the compiled program, which serves them all


class Program(NamedTuple):
  """Choices, and what the lanes' values set in them: what is compiled once."""

  choices: losses.Choices
  tuned: str


class Run(NamedTuple):
  """One lane."""

  setting: Setting
  value: Value
  rate: float
  seed: int
  kappa: float = 0.0  # added


def run_lanes(program: Program, runs: list[Run], steps: int) -> dict[str, np.ndarray]:
  """Trains the runs -> arrays [runs, evaluations] by the names of lag_training.History."""
  import jax.numpy as jnp

  from benchmarks import lag_training

  padded = runs + runs[-1:] * (-len(runs) % LANES)
  parts = []
  for first in range(0, len(padded), LANES):
    settings, values, rates, seeds, kappas = zip(*padded[first : first + LANES], strict=True)
    lags, periodic = zip(*settings, strict=True)
    numbers = [jnp.array([x or 0.0 for x in xs], jnp.float32) for xs in (rates, values, kappas)]
    lane = lag_training.Lane(jnp.array(seeds), jnp.array(lags), jnp.array(periodic), *numbers)
    parts.append(lag_training.train(program.choices, steps, program.tuned, lane))
  fields = parts[0]._fields
  return {
    f: np.concatenate([np.asarray(getattr(p, f)) for p in parts])[: len(runs)] for f in fields
  }


def final(history: dict, field: str) -> np.ndarray:
  """[runs]: mean of the last evaluations; a run that ended in NaN counts as 0."""
  return np.nan_to_num(history[field][:, -LAST:].mean(axis=1))


def score(history: dict) -> np.ndarray:
  """[runs]: held-out pass@1, mean over the run; NaN counts as 0."""
  return np.nan_to_num(history["accuracy"]).mean(axis=1)


class Tuning(NamedTuple):
  """Every point that was tried, and where the grids were widened."""

  rows: list[dict[str, Any]]  # {"setting", "value", "rate", "scores": [per tuning seed]}
  extensions: tuple[tuple[str, float], ...]

  def score(self, setting: Setting, point: tuple[Value, float]) -> float:
    """Mean over the tuning seeds."""
    found = [r for r in self.rows if (r["setting"], r["value"], r["rate"]) == (setting, *point)]
    return statistics.fmean(found[0]["scores"])

  def best(self) -> dict[Setting, tuple[Value, float]]:
    """The best point of each setting; of equal ones the first that was tried."""
    found: dict = {}
    for row in self.rows:
      reached = statistics.fmean(row["scores"])
      if reached > found.get(row["setting"], (-1.0,))[0]:
        found[row["setting"]] = (reached, (row["value"], row["rate"]))
    return {setting: point for setting, (_, point) in found.items()}

  def best_on_average(self) -> tuple[Value, float]:
    """The one point, of those tried at every setting, with the best mean over settings."""
    scores: dict = {}
    for row in self.rows:
      scores.setdefault((row["value"], row["rate"]), []).append(statistics.fmean(row["scores"]))
    most = max(map(len, scores.values()))
    return max((p for p in scores if len(scores[p]) == most), key=lambda p: sum(scores[p]))


def tune(program: Program, start: Grid, study: Study) -> Tuning:
  """Tries the grid at every setting, and wherever the best lies at an edge what lies beyond."""
  growth = Growth(dict.fromkeys(study.settings, start))
  rows: list[dict] = []
  while True:
    known = {(row["setting"], row["value"], row["rate"]) for row in rows}
    wanted = [(s, *p) for s, of_s in growth.grids.items() for p in of_s.points()]
    wanted = [point for point in wanted if point not in known]
    if not wanted:
      return Tuning(rows, growth.extensions)
    runs = [Run(*point, seed) for point in wanted for seed in study.tuning_seeds]
    scores = score(run_lanes(program, runs, study.steps)).reshape(len(wanted), -1)
    for (setting, value, rate), found in zip(wanted, scores, strict=True):
      scored = {"setting": setting, "value": value, "rate": rate}
      rows.append(scored | {"scores": [round(float(x), 5) for x in found]})
    growth = lag_entries.grown(growth, Tuning(rows, ()).best(), study.extensions)


def measure(
  program: Program, study: Study, points: list[tuple[Setting, Value, float]], kappa: float = 0.0
) -> dict[tuple, dict]:
  """The reported seeds at each point, {point: row}; equal points are run once."""
  points = list(dict.fromkeys(points))
  runs = [Run(*point, seed, kappa) for point in points for seed in study.seeds]
  history = run_lanes(program, runs, study.steps)
  count = len(study.seeds)
  rows = {}
  for i, point in enumerate(points):
    mine = {name: x[i * count : (i + 1) * count] for name, x in history.items()}
    rows[point] = _row(point, mine)
  return rows


def _row(point: tuple[Setting, Value, float], history: dict) -> dict:
  """What is kept of one point: final values per seed, curves as means over the seeds."""
  best = np.nan_to_num(history["accuracy"]).max(axis=1)
  scores = final(history, "accuracy")
  kept = ("pass_at_16", "entropy", "entropy_correct", "lambda_hat", "log_ratio", "ess")
  return {
    "setting": point[0],
    "value": point[1],
    "rate": point[2],
    "accuracy": _short(scores),
    "mean_accuracy": _short(score(history)),
    "collapsed": (scores < 0.8 * best).tolist(),
    **{name: _short(final(history, name)) for name in kept},
    "curves": {
      name: _short(np.nan_to_num(history[name]).mean(axis=0)) for name in ("accuracy", "entropy")
    },
  }


def _short(x: np.ndarray) -> list[float]:
  """Floats of four digits; float32 values would print long."""
  return [round(float(value), 4) for value in x]


def own_reports(program: Program, tuning: Tuning, study: Study) -> dict[str, list[dict]]:
  """The reports that need no further tuning: {report: [row of each setting]}."""
  best, one = tuning.best(), tuning.best_on_average()
  points = {"tuned": [(s, *best[s]) for s in study.settings]}
  for name, factor in OFF_RATES.items():
    points[name] = [(s, v, float(f"{factor * rate:.3g}")) for s, v, rate in points["tuned"]]
  points["one"] = [(s, *one) for s in study.settings]
  rows = measure(program, study, [point for of_report in points.values() for point in of_report])
  reports = {name: [dict(rows[point]) for point in those] for name, those in points.items()}
  for name in ("tuned", "one"):
    for row in reports[name]:
      row["tuning_score"] = tuning.score(row["setting"], (row["value"], row["rate"]))
  for name in (*OFF_RATES, "one"):
    for row in reports[name]:
      del row["curves"]
  return reports


def as_published(entry: Entry, study: Study, own: dict) -> tuple[list[dict], list[dict]]:
  """(report, tuning rows) of the preset's defaults, or of the entry's own report where equal."""
  if not entry.tuned and not entry.fixed:
    return own["tuned"], []
  program = Program(losses.choose(entry.preset), "")
  tuning = tune(program, Grid((None,), study.learning_rates), study)
  best = tuning.best()
  rows = list(measure(program, study, [(s, *best[s]) for s in study.settings]).values())
  for row in rows:
    row["tuning_score"] = tuning.score(row["setting"], (None, row["rate"]))
    del row["curves"]
  return rows, tuning.rows


def study_entry(entry: Entry, study: Study) -> dict:
  """Tuning and all reports of one objective."""
  program = Program(entry.choices(), entry.tuned)
  tuning = tune(program, lag_entries.grid(entry, study), study)
  reports = own_reports(program, tuning, study)
  found = {"tuning": tuning.rows, "extensions": tuning.extensions, "reports": reports}
  points = [(r["setting"], r["value"], r["rate"]) for r in reports["tuned"]]
  if entry.kappas:
    rows = {kappa: measure(program, study, points, kappa) for kappa in entry.kappas}
    found["kappas"] = {str(kappa): list(of_kappa.values()) for kappa, of_kappa in rows.items()}
  if lag_entries.is_first_of_preset(entry):
    reports["published"], found["published_tuning"] = as_published(entry, study, reports)
  return found


def settings_of(entry: Entry, study: Study) -> dict:
  """What an entry's result depends on, as it is read back from JSON."""
  run = dataclasses.asdict(study) | {"entries": None}
  return json.loads(json.dumps({"entry": dataclasses.asdict(entry), "study": run}))


def saved(label: str, study: Study, folder: pathlib.Path) -> dict | None:
  """The finished result of an entry, if it was run under these settings."""
  path = folder / f"{label}.json"
  found = json.loads(path.read_text()) if path.exists() else None
  expected = settings_of(lag_entries.entry_of(label), study)
  return found if found and found["settings"] == expected else None


def run_entry(label: str, study: Study, folder: pathlib.Path, until: float) -> str:
  """One objective, saved in the folder; nothing if it is there already or the time is up.

  until: time.time() after which nothing is begun.
  """
  if saved(label, study, folder):
    return f"{label}: done before"
  if time.time() > until:
    return f"{label}: not begun, time is up"
  start, entry = time.monotonic(), lag_entries.entry_of(label)
  found = study_entry(entry, study)
  seconds = round(time.monotonic() - start, 1)
  result = {
    "label": label,
    "settings": settings_of(entry, study),
    "machine": machine(),
    "seconds": seconds,
    **found,
  }
  temporary = folder / f"{label}.tmp"
  temporary.write_text(json.dumps(result).replace('{"setting"', '\n{"setting"') + "\n")
  temporary.rename(folder / f"{label}.json")
  return f"{label}: {seconds} s"


def run_study(arguments: argparse.Namespace, study: Study, folder: pathlib.Path) -> None:
  """Runs what is missing, each objective in a process of its own."""
  until = time.time() + 60 * arguments.minutes
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(arguments.workers, spawn) as pool:
    wanted = [e for e in study.entries if not arguments.only or e in arguments.only]
    jobs = [pool.submit(run_entry, label, study, folder, until) for label in wanted]
    for job in concurrent.futures.as_completed(jobs):
      print(job.result(), flush=True)


def main() -> None:
  """Runs what is missing, then writes page and plots."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--summary", action="store_true", help="do not run anything")
  parser.add_argument("--only", nargs="*", help="run only these objectives")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--minutes", type=float, default=float("inf"), help="then begin no more")
  parser.add_argument("--folder", type=pathlib.Path, help="of saved objectives")
  arguments = parser.parse_args()
  study = lag_entries.QUICK if arguments.quick else Study()
  quick = pathlib.Path("runs") / "lag_lab_quick"
  folder = arguments.folder or (quick if arguments.quick else RESULTS / "lag_lab")
  folder.mkdir(parents=True, exist_ok=True)
  if not arguments.summary:
    run_study(arguments, study, folder)
  results = [found for label in study.entries if (found := saved(label, study, folder))]
  command = f"python -m benchmarks.lag_lab{' --quick' if arguments.quick else ''}"
  if results:
    lag_page.write(results, command, study, folder.parent, folder.name)


if __name__ == "__main__":
  main()
