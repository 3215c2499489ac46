"""The runs that decide benchmarks/lag_language.py once more, each pair from one warm start.

  python -m benchmarks.lag_language_pairs --minutes=60   goes on for so long, then the page

The study was made on several machines, and a warm start is the same to the bit on one kind of
processor only. Here all runs of a seed that enter a primary difference begin with the same
parameters, whose digest is in their rows; they take the place of the earlier rows. A seed that was
not finished on another machine is made again as a whole. Why, and by which rule: "Pairs from one
start" in results/lag_language_plan.md.
"""

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Sequence

from benchmarks import lag_language, lag_language_run, lag_language_summary
from benchmarks.lag_language import OFF_RATE, PRIMARY_LAG, Job, Row, Study
from benchmarks.lag_language_entries import BY_LABEL, ENTRIES


def jobs(rows: Sequence[Row], study: Study) -> list[Job]:
  """What the primary differences of both comparisons need, seed by seed."""
  points = []
  for _, compared in lag_language_summary.comparisons(rows, study):
    free = [entry.label for entry in ENTRIES if not entry.has_ratio]
    for label in (lag_language_summary.best_ratio(rows, compared), *free):
      chosen = lag_language.report_settings(rows, BY_LABEL[label], compared) if label else {}
      points += [
        (label, *chosen[PRIMARY_LAG, factor])
        for factor in (1, OFF_RATE)
        if (PRIMARY_LAG, factor) in chosen
      ]
  wanted = list(dict.fromkeys(points))
  return [Job(*point, PRIMARY_LAG, seed) for seed in study.seeds for point in wanted]


def left(
  wanted: Sequence[Job], rows: Sequence[Row], digest_of: Callable[[int], str | None]
) -> list[Job]:
  """The jobs to be made; `digest_of`: a seed's warm start on this machine, None = not made yet.

  None of a seed whose runs share their start, wherever they were made; else those whose start is
  not this machine's.
  """
  start = {lag_language.job_of(row): row.get("start") for row in rows}
  found = []
  for seed in dict.fromkeys(job.seed for job in wanted):
    of_seed = [job for job in wanted if job.seed == seed]
    shared = {start.get(job) for job in of_seed}
    if len(shared) == 1 and None not in shared:
      continue
    here = digest_of(seed)
    found += [job for job in of_seed if here is None or start.get(job) != here]
  return found


def main() -> None:
  """Runs what is missing, then writes the study's page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/lag_language"))
  parser.add_argument("--rows", type=pathlib.Path, default=lag_language.ROWS)
  arguments = parser.parse_args()
  study, folder = Study(), arguments.folder
  folder.mkdir(parents=True, exist_ok=True)
  rows = lag_language.read_rows(arguments.rows, study)
  digest_of = lambda seed: lag_language_run.digest(lag_language_run.warm_path(folder, seed, study))
  wanted = jobs(rows, study)
  todo = left(wanted, rows, digest_of)
  print(f"{len(wanted) - len(todo)} of {len(wanted)} runs are there", flush=True)
  until = time.monotonic() + 60 * arguments.minutes
  workers = lag_language.Workers(arguments.workers, study, folder, until=until)
  lag_language.run(
    todo, workers, lambda row: lag_language.add_row(arguments.rows, row, folder / "rows.lock")
  )
  workers.close()
  rows = lag_language.read_rows(arguments.rows, study)
  lag_language_summary.write(rows, study, arguments.rows.with_suffix(""))


if __name__ == "__main__":
  main()
