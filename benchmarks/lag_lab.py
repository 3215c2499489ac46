"""How do the objectives bear lag? Same data budget, same model, same tuning budget for all.

  python -m benchmarks.lag_lab                the study: tuning, then seeds nobody tuned on
  python -m benchmarks.lag_lab --quick        four objectives, three lags, a small grid: 5 minutes
  python -m benchmarks.lag_lab --summary      only the tables and plots again, from the saved runs

The world is benchmarks/lag_world.py, the training loop benchmarks/lag_training.py. For each
objective and lag the learning rate and one number of the objective's own are chosen from a grid of
12 on a tuning seed (score: held-out pass@1, mean over the run, which asks for speed and stability
alike); what is reported comes from eight other seeds. A second report keeps one grid point for all
lags, the one that is best on average. Every objective is saved when done, so a stopped study goes
on where it was.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time

import numpy as np

from benchmarks import lag_plots
from benchmarks.demo_seeds import machine

RESULTS = pathlib.Path(__file__).parent / "results"
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
LAST = 4  # evaluations that make the final score
LANES = 18  # of a call of the compiled program, which serves them all
BETAS = (0.003, 0.01, 0.03, 0.1)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One objective of the study: a preset, fixed choices, and the choice that is tuned."""

  label: str
  preset: str
  fixed: dict
  tuned: str  # field of losses.Choices, or "target_kl"; "" = more learning rates instead
  values: tuple = ()


# No two have the same gradient at any of their values: with one update per batch, as here, `tis` is
# `cispo` with another cap.
ENTRIES = (
  Entry("grpo", "grpo", {}, "clip", (0.1, 0.2, 0.4, 0.8)),
  Entry("dapo", "dapo", {}, "clip_high", (0.2, 0.28, 0.5, 1.0)),
  Entry("decoupled_ppo", "decoupled_ppo", {}, "correction_high", (2.0, 5.0, 20.0, 100.0)),
  Entry("cispo", "cispo", {}, "weight_high", (1.28, 2.0, 5.0, 20.0)),
  Entry("topr", "topr", {}, ""),
  Entry("reinforce", "reinforce", {}, ""),
  Entry("asymre", "asymre", {}, "shift", (0.003, 0.01, 0.03, 0.1)),
  Entry("copg", "copg", {}, "beta", BETAS),
  Entry("oapl", "oapl", {"scale": "half_over_beta", "beta1": 1.0}, "beta", BETAS),
  Entry("oapl_coupled", "oapl", {"scale": "half_over_beta"}, "beta=beta1", BETAS),
  Entry(
    "oapl_coupled_loo",
    "oapl",
    {"scale": "half_over_beta", "advantage": "vhat_loo"},
    "beta=beta1",
    BETAS,
  ),
  Entry("mean", "beta_shift", {"kappa": 0.0}, "beta", BETAS),
  Entry("shift_-1", "beta_shift", {"kappa": -1.0}, "beta", BETAS),
  Entry("shift_0.5", "beta_shift", {"kappa": 0.5}, "beta", BETAS),
  Entry("shift_1", "beta_shift", {"kappa": 1.0}, "beta", BETAS),
  Entry("shift_2", "beta_shift", {"kappa": 2.0}, "beta", BETAS),
  Entry(
    "shift_1_auto",
    "beta_shift",
    {"kappa": 1.0, "beta": min(BETAS)},  # beta: the smallest allowed
    "target_kl",
    (0.1, 0.25, 0.69, 1.5),
  ),
)
# grid() and choices() know two names of `tuned` that set two fields at once
BOTH = {"clip": ("clip_low", "clip_high"), "beta=beta1": ("beta", "beta1")}


@dataclasses.dataclass(frozen=True)
class Study:
  """What is run. A setting is (lag, periodic)."""

  entries: tuple[str, ...] = tuple(entry.label for entry in ENTRIES)
  settings: tuple = ((0, False), *((lag, p) for p in (False, True) for lag in (4, 16, 64, 256)))
  tuning_seeds: tuple[int, ...] = (1001,)
  seeds: tuple[int, ...] = tuple(range(8))
  learning_rates: tuple[float, ...] = LEARNING_RATES
  values: int = 4  # how many of an entry's values
  steps: int = 1024


QUICK = Study(
  entries=("grpo", "reinforce", "mean", "shift_1"),
  settings=((0, False), (16, False), (256, False)),
  seeds=tuple(range(5)),
  learning_rates=(1e-3, 3e-3),
  values=2,
  steps=512,
)


def choices(entry: Entry, value: float | None):
  """losses.Choices of an entry at one value of what is tuned."""
  from offpolicy_rl import losses

  if value is None:
    return losses.choose(entry.preset, **entry.fixed)
  fields = () if entry.tuned == "target_kl" else BOTH.get(entry.tuned, (entry.tuned,))
  given = {name: min(value, 1.0) if name == "clip_low" else value for name in fields}
  return losses.choose(entry.preset, **entry.fixed, **given)


def grid(entry: Entry, study: Study) -> list[tuple[float | None, float]]:
  """(value, learning rate) pairs: 12 in the full study, whatever the entry."""
  rates = study.learning_rates
  if entry.tuned:
    middle = (len(entry.values) - study.values) // 2
    return [(v, r) for v in entry.values[middle : middle + study.values] for r in rates]
  finer = [factor for factor in np.geomspace(1, rates[1] / rates[0], study.values + 1)[:-1]]
  return [(None, float(r * f)) for r in rates for f in finer]


def run_lanes(entry: Entry, value, lanes: list[tuple], steps: int):
  """Trains lanes (seed, (lag, periodic), learning rate) -> dict of arrays [lanes, evaluations]."""
  import jax.numpy as jnp

  from benchmarks import lag_training

  padded = lanes + lanes[-1:] * (-len(lanes) % LANES)
  parts = []
  for first in range(0, len(padded), LANES):
    seeds, settings, rates = zip(*padded[first : first + LANES], strict=True)
    lags, periodic = zip(*settings, strict=True)
    lane = lag_training.Lane(
      jnp.array(seeds), jnp.array(lags), jnp.array(periodic), jnp.array(rates, jnp.float32)
    )
    target_kl = value if entry.tuned == "target_kl" else 0.0
    parts.append(lag_training.train(choices(entry, value), steps, target_kl, lane))
  fields = parts[0]._fields
  return {
    f: np.concatenate([np.asarray(getattr(p, f)) for p in parts])[: len(lanes)] for f in fields
  }


def final(history: dict, field: str) -> np.ndarray:
  """[lanes]: mean of the last evaluations; a run that ended in NaN counts as 0."""
  return np.nan_to_num(history[field][:, -LAST:].mean(axis=1))


def score(history: dict) -> np.ndarray:
  """[lanes]: held-out pass@1, mean over the run; NaN counts as 0."""
  return np.nan_to_num(history["accuracy"]).mean(axis=1)


def tune(entry: Entry, study: Study) -> list[dict]:
  """Every grid point at every setting: {"value", "rate", "setting", "score"}."""
  rows = []
  points = grid(entry, study)
  for value in dict.fromkeys(v for v, _ in points):
    lanes = [
      (seed, setting, rate)
      for v, rate in points
      if v == value
      for setting in study.settings
      for seed in study.tuning_seeds
    ]
    scores = score(run_lanes(entry, value, lanes, study.steps))
    scores = scores.reshape(-1, len(study.tuning_seeds)).mean(axis=1)
    for (_, setting, rate), found in zip(lanes[:: len(study.tuning_seeds)], scores, strict=True):
      rows.append({"value": value, "rate": rate, "setting": setting, "score": float(found)})
  return rows


def best_points(rows: list[dict], study: Study) -> tuple[dict, tuple]:
  """({setting: best (value, rate)}, the one (value, rate) that is best on average)."""
  each, total = {}, {}
  for row in rows:
    point = (row["value"], row["rate"])
    total[point] = total.get(point, 0.0) + row["score"]
    if row["score"] > each.get(row["setting"], (-1.0,))[0]:
      each[row["setting"]] = (row["score"], point)
  return {s: each[s][1] for s in study.settings}, max(total, key=lambda point: total[point])


def measure(entry: Entry, study: Study, points: dict) -> list[dict]:
  """The reported seeds at each setting's (value, rate)."""
  rows = []
  for value in dict.fromkeys(v for v, _ in points.values()):
    settings = [s for s in study.settings if points[s][0] == value]
    lanes = [(seed, s, points[s][1]) for s in settings for seed in study.seeds]
    history = run_lanes(entry, value, lanes, study.steps)
    for i, setting in enumerate(settings):
      mine = slice(i * len(study.seeds), (i + 1) * len(study.seeds))
      rows.append(_row(setting, points[setting], {k: v[mine] for k, v in history.items()}))
  return sorted(rows, key=lambda row: study.settings.index(tuple(row["setting"])))


def _row(setting, point, history: dict) -> dict:
  """What is kept of one setting: final values per seed, curves as means over the seeds."""
  best = np.nan_to_num(history["accuracy"]).max(axis=1)
  scores = final(history, "accuracy")
  kept = ("pass_at_16", "entropy", "entropy_correct", "lambda_hat", "log_ratio", "ess")
  return {
    "setting": setting,
    "value": point[0],
    "rate": point[1],
    "accuracy": scores.round(4).tolist(),
    "mean_accuracy": score(history).round(4).tolist(),
    "collapsed": (scores < 0.8 * best).tolist(),
    **{name: final(history, name).round(4).tolist() for name in kept},
    "curves": {
      name: np.nan_to_num(history[name]).mean(axis=0).round(4).tolist()
      for name in ("accuracy", "entropy")
    },
  }


def run_entry(label: str, study: Study, folder: pathlib.Path) -> str:
  """Tuning and both reports of one objective, saved in folder; nothing if it is there already."""
  import jax

  path = folder / f"{label}.json"
  if path.exists():
    return f"{label}: done before"
  jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
  start = time.monotonic()
  entry = next(e for e in ENTRIES if e.label == label)
  tuning = tune(entry, study)
  each, one = best_points(tuning, study)
  report = {
    "label": label,
    "tuned": entry.tuned,
    "tuning": tuning,
    "tuned_per_lag": measure(entry, study, each),
    "one_setting": measure(entry, study, dict.fromkeys(study.settings, one)),
    "seconds": round(time.monotonic() - start, 1),
  }
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(report))
  temporary.rename(path)
  return f"{label}: {report['seconds']} s"


def main() -> None:
  """Runs what is missing, then writes tables and plots."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--quick", action="store_true")
  parser.add_argument("--summary", action="store_true", help="do not run anything")
  parser.add_argument("--only", nargs="*", help="run only these objectives")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--folder", type=pathlib.Path, help="saved runs (default: runs/lag_lab...)")
  arguments = parser.parse_args()
  study = QUICK if arguments.quick else Study()
  name = "lag_lab_quick" if arguments.quick else "lag_lab"
  folder = arguments.folder or pathlib.Path("runs") / name
  folder.mkdir(parents=True, exist_ok=True)
  if not arguments.summary:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(arguments.workers, spawn) as pool:
      jobs = [
        pool.submit(run_entry, label, study, folder)
        for label in study.entries
        if not arguments.only or label in arguments.only
      ]
      for job in concurrent.futures.as_completed(jobs):
        print(job.result(), flush=True)
  reports = [
    json.loads((folder / f"{label}.json").read_text())
    for label in study.entries
    if (folder / f"{label}.json").exists()
  ]
  about = {
    "command": f"python -m benchmarks.lag_lab{' --quick' if arguments.quick else ''}",
    "machine": machine(),
    "seconds": round(sum(r["seconds"] for r in reports), 1),
    "study": dataclasses.asdict(study),
  }
  lag_plots.write(reports, about, folder if arguments.quick else RESULTS, name)


if __name__ == "__main__":
  main()
