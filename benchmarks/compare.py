"""Is anything slower than it was? Measures at a small size and compares with what is stored.

Command:  python -m benchmarks.compare                     (all; about five minutes on 2 cores)
          python -m benchmarks.compare stream --runs=1     (one of them)
          python -m benchmarks.compare --store             (measures anew and stores, as a new norm)

Every figure is a ratio of two things measured in turn, so that other work on the machine changes it
less than seconds. Another machine does change it: store there first. results/small.json has the
values of several runs; a figure is within the noise as long as it lies between the smallest and the
largest of these, widened by 15 %. Exit code 1 where one is not, in either direction: what is better
than stored should be stored.
"""

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

STORED = pathlib.Path(__file__).parent / "results" / "small.json"
NAMES = ("learner_step", "sampler", "stream", "weights", "losses_cost")  # each has a small()
SLACK = 0.15  # of both ends of the band


class Comparison(NamedTuple):
  """A figure against its stored values; ratios are to their median."""

  name: str
  measured: float
  ratio: float
  low: float
  high: float

  @property
  def within(self) -> bool:
    """Whether it differs by no more than noise."""
    return self.low <= self.ratio <= self.high


def compare(stored: Sequence[float], name: str, measured: float) -> Comparison:
  """One figure; `stored`: its values in several runs."""
  middle = statistics.median(stored)
  low, high = min(stored) / middle * (1 - SLACK), max(stored) / middle * (1 + SLACK)
  return Comparison(name, measured, measured / middle, low, high)


def compare_all(
  stored: Mapping[str, Sequence[float]], runs: Sequence[Mapping[str, float]]
) -> tuple[list[Comparison], list[str]]:
  """(figures by their median over `runs`, names that only one side has)."""
  values = {name: [run[name] for run in runs if name in run] for run in runs for name in run}
  rows = [
    compare(stored[name], name, statistics.median(found))
    for name, found in values.items()
    if name in stored
  ]
  return rows, sorted(values.keys() ^ stored.keys())


def measure(name: str) -> dict[str, float]:
  """The figures of one benchmark, in a process of its own."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    figures = pool.submit(_small, name).result()
  return {f"{name}: {figure}": value for figure, value in figures.items()}


def _small(name: str) -> dict[str, float]:
  return importlib.import_module(f"benchmarks.{name}").small()


def main() -> int:
  """Measures, prints a line per figure; 0 when all are within the noise."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=[], metavar="NAME")
  parser.add_argument("--runs", type=int, help="of each; their median counts (3, to store 5)")
  parser.add_argument("--store", action="store_true")
  arguments = parser.parse_args()
  names = arguments.names or NAMES
  number = arguments.runs or (5 if arguments.store else 3)
  from benchmarks.machine import machine

  stored = json.loads(STORED.read_text()) if STORED.exists() else {"figures": {}}
  known = stored["figures"]
  mine = {figure: v for figure, v in known.items() if figure.partition(":")[0] in names}
  runs = [{k: v for name in names for k, v in measure(name).items()} for _ in range(number)]
  if arguments.store:
    new = {figure: [float(f"{run[figure]:.4g}") for run in runs] for figure in runs[0]}
    figures = {k: v for k, v in known.items() if k not in mine} | new
    text = json.dumps({"machine": machine(), "figures": figures}, indent=1)
    STORED.write_text(text + "\n")
    return 0
  rows, unmatched = compare_all(mine, runs)
  print(f"stored on {stored.get('machine')}, measured on {machine()}")
  print(f"{'figure':44} {'measured':>9} {'/ stored':>9}   noise band")
  for row in rows:
    words = "" if row.within else "  OUTSIDE"
    print(
      f"{row.name:44} {row.measured:9.3g} {row.ratio:9.2f}   {row.low:.2f} to {row.high:.2f}{words}"
    )
  for name in unmatched:
    print(f"{name}: only measured or only stored; --store makes them one")
  return 0 if all(row.within for row in rows) and not unmatched else 1


if __name__ == "__main__":
  sys.exit(main())
