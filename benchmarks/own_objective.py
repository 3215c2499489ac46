"""How does an objective of your own bear lag? Beside presets, in the world of lag_lab.py.

  python -m benchmarks.own_objective my_objective:tempered
  python -m benchmarks.own_objective my_objective:tempered --preset=copg --lags=0,64 --steps=1024

The function takes the place of the preset's loss; its advantage, weight and the rest stay. Presets
to compare with are as published. For each objective and lag the learning rate is chosen from a few,
on two seeds that are not reported. Nothing else is tuned: the laboratory does more.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import lag_lab, lag_training
from benchmarks.lag_entries import Grid, Study
from benchmarks.lag_lab import Program, Run
from offpolicy_rl import losses

_TUNING_SEEDS = (1001, 1002)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
  """(mean, half of the 95 % interval of Student's t), over seeds."""
  found = np.asarray(values, float)
  if found.size < 2:
    return float(found.mean()), float("nan")
  error = found.std(ddof=1) / np.sqrt(found.size)
  return float(found.mean()), float(stats.t.ppf(0.975, found.size - 1) * error)


def measure(
  choices: losses.Choices, lags: Sequence[int], rates: Sequence[float], seeds: int, steps: int
) -> list[dict[str, Any]]:
  """Tunes the learning rate at each lag and trains the reported seeds: a row for each lag."""
  settings = tuple((lag, False) for lag in lags)
  study = Study(
    settings=settings,
    tuning_seeds=_TUNING_SEEDS,
    learning_rates=tuple(rates),
    extensions=0,
    steps=steps,
  )
  program = Program(choices, "")
  grid = Grid((None,), study.learning_rates)
  best = lag_lab.tune(program, grid, study).best()
  runs = [Run(s, *best[s], seed) for s in settings for seed in range(seeds)]
  history = lag_lab.run_lanes(program, runs, steps)
  final = lag_lab.final(history, "accuracy").reshape(len(lags), seeds)
  curves = np.nan_to_num(history["accuracy"]).reshape(len(lags), seeds, -1)
  return [
    {
      "lag": setting[0],
      "rate": best[setting][1],
      "final": np.round(final[i], 4).tolist(),
      "curves": np.round(curves[i], 4).tolist(),  # [seed][evaluation]
    }
    for i, setting in enumerate(settings)
  ]


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a line for each objective and lag; --json also keeps every seed's curve."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("fn", help="module:function, as for objective.fn")
  parser.add_argument("--preset", default="beta_shift", help="whose loss it replaces")
  parser.add_argument("--against", default="beta_shift,grpo", help="presets; '' = none")
  parser.add_argument("--lags", default="0,64")
  parser.add_argument("--rates", default="3e-3,1e-2,3e-2", help="learning rates to choose from")
  parser.add_argument("--seeds", type=int, default=8)
  parser.add_argument("--steps", type=int, default=512)
  parser.add_argument("--json", type=pathlib.Path)
  flags = parser.parse_args(argv)
  lags, rates = [int(x) for x in flags.lags.split(",")], [float(x) for x in flags.rates.split(",")]
  if max(lags) > lag_training.MAX_LAG or flags.steps % lag_training.EVERY:
    parser.error(
      f"--lags, --steps: got {flags.lags}, {flags.steps}, expected lags of at most "
      f"{lag_training.MAX_LAG} and a multiple of {lag_training.EVERY} steps"
    )
  objectives = {flags.fn: losses.choose(flags.preset, fn=flags.fn)}
  objectives |= {name: losses.choose(name) for name in flags.against.split(",") if name}
  found = {}
  for name, choices in objectives.items():
    found[name] = measure(choices, lags, rates, flags.seeds, flags.steps)
    for row in found[name]:
      mean, half = interval(row["final"])
      print(
        f"{name}, lag {row['lag']}: held-out pass@1 {mean:.3f} ± {half:.3f} "
        f"({flags.seeds} seeds, learning rate {row['rate']:g})",
        flush=True,
      )
  if flags.json:
    steps = list(range(0, flags.steps + 1, lag_training.EVERY))
    flags.json.write_text(json.dumps({"steps": steps, "objectives": found}) + "\n")


if __name__ == "__main__":
  main()
