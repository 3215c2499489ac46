"""How do objectives bear lag on a language model? Tuned alike, on seeds that nobody tuned on.

  python -m benchmarks.lag_language --pilot       does default GRPO lose by lag on this task?
  python -m benchmarks.lag_language --minutes=60  goes on with the study for so long
  python -m benchmarks.lag_language --summary     only the page and the pictures, from the rows

The task and the model are benchmarks/language_task.py, a run is benchmarks/lag_language_run.py:
exact fixed lag in one process on one core. What is decided, and by which numbers, was written down
before: results/lag_language_plan.md. A run that is done is a row of results/lag_language.jsonl, so
a study that was stopped goes on where it was, on another machine, too. Warm starts are made again
there: they are the same to the bit on the same kind of processor only.
"""

import argparse
import concurrent.futures
import dataclasses
import fcntl
import json
import math
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.lag_language_entries import BY_LABEL, ENTRIES, Entry, Value
from offpolicy_rl import files
from offpolicy_rl.system import memory

RESULTS = pathlib.Path(__file__).parent / "results"
ROWS = RESULTS / "lag_language.jsonl"
Row = dict[str, Any]
# Lag of a report -> the lags whose tuning scores, averaged, choose its settings.
TUNED_AT = {0: (16,), 16: (16,), 64: (16, 256), 256: (256,)}
PRIMARY_LAG = 64
OFF_RATE = 3  # factor of the tuned learning rate at the primary lag


@dataclasses.dataclass(frozen=True)
class Study:
  """What is run, besides ENTRIES."""

  steps: int = 1000
  warm_steps: int = 1500
  learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
  tuning_seeds: tuple[int, ...] = (1001,)
  seeds: tuple[int, ...] = tuple(range(8))  # nobody tunes on these
  secondary_seeds: tuple[int, ...] = tuple(range(4))  # those at other lags than the primary one
  widest: float = 5.0  # factor between the best point and its neighbours, at most; see the plan
  pilot_seeds: tuple[int, ...] = (1001, 1002)
  pilot_rate: float = 3e-4
  points: int = 20  # of a curve, besides the beginning
  problems: int = 128  # held out, of every evaluation
  completions: int = 2  # of each at a point of the curve
  final_completions: int = 64  # of each at the end

  @property
  def every(self) -> int:
    """Steps between points of the curve."""
    return max(1, self.steps // self.points)

  @property
  def noise_versions(self) -> tuple[int, ...]:
    """Versions at which the groups' gradients are compared."""
    return tuple(self.steps * part // 5 for part in (1, 2, 3, 4))


class Job(NamedTuple):
  """One run."""

  entry: str
  value: Value  # of what is tuned besides the learning rate
  rate: float
  lag: int
  seed: int


class WarmStart(NamedTuple):
  """What all runs of a seed wait for."""

  seed: int


def settings(job: Job) -> dict[str, Any]:
  """The keys of a configuration that a job sets."""
  entry = BY_LABEL[job.entry]
  own = dict(entry.fixed)
  if entry.tuned == "clip" and job.value is not None:
    own |= {"clip_low": min(job.value, 1.0), "clip_high": job.value}
  elif entry.tuned:
    own[entry.tuned] = job.value
  return {
    "objective.name": entry.preset,
    **{f"objective.{key}": value for key, value in own.items()},
    "learner.learning_rate": job.rate,
    "lag.max_lag": job.lag,
    "sampler.top_logprobs": entry.candidates,
    "seed": job.seed,
  }


def available() -> tuple[Entry, ...]:
  """The entries whose preset there is."""
  from offpolicy_rl.losses import presets

  return tuple(entry for entry in ENTRIES if entry.preset in presets.PRESETS)


# ---------------------------------------------------------------- which runs


Point = tuple[Value, float]  # what is tuned besides the learning rate, and that rate


def points(rows: Sequence[Row], entry: Entry, lag: int, study: Study) -> list[Point]:
  """Every point that tuning tries to choose for a report at `lag`.

  A grid first; then the neighbours of the best point so far, until it has all of them.
  """
  tried = [(value, rate) for value in entry.values for rate in study.learning_rates]
  while scores := _scores(rows, entry, TUNED_AT[lag], tried, study):
    more = _neighbours(max(scores, key=lambda point: scores[point]), tried, study.widest)
    if not (new := [point for point in more if point not in tried]):
      break
    tried += new
  return tried


def _neighbours(best: Point, tried: Sequence[Point], widest: float) -> list[Point]:
  """The points beside one; where none was tried or it is too far, the next of 1, 3, 10, 30 ..."""
  value, rate = best
  rates = _beside(rate, {other for _, other in tried}, widest)
  values = {other for other, _ in tried if other is not None}
  own = _beside(value, values, widest) if value is not None else ()
  return [(value, other) for other in rates] + [(other, rate) for other in own]


def _beside(x: float, known: set[float], widest: float) -> tuple[float, float]:
  grid = lambda step: float(f"{10 ** ((round(2 * math.log10(x)) + step) / 2):.1g}")
  lower = max((y for y in known if x / widest <= y < x), default=grid(-1))
  return lower, min((y for y in known if x < y <= x * widest), default=grid(1))


def tuning_jobs(rows: Sequence[Row], entries: Sequence[Entry], study: Study) -> list[Job]:
  """Every point of every entry at the lags that choose between them, seed by seed."""
  jobs = [
    Job(entry.label, value, rate, at, seed)
    for seed in study.tuning_seeds
    for entry in entries
    for lag, chosen_at in TUNED_AT.items()
    for value, rate in points(rows, entry, lag, study)
    for at in chosen_at
  ]
  return sorted(dict.fromkeys(jobs), key=lambda job: (job.seed, job.lag))


def score(row: Row) -> float:
  """Held-out pass@1, mean over the run without its beginning."""
  return statistics.fmean(row["curve"]["pass@1"][1:])


def tuning_scores(rows: Sequence[Row], entry: Entry, lag: int, study: Study) -> dict[Point, float]:
  """{point: mean score at the lags that choose for `lag`}; {} until all are there."""
  return _scores(rows, entry, TUNED_AT[lag], points(rows, entry, lag, study), study)


def _scores(
  rows: Sequence[Row], entry: Entry, lags: Sequence[int], tried: Sequence[Point], study: Study
) -> dict[Point, float]:
  known = {job_of(row): score(row) for row in rows}
  jobs = {
    point: [Job(entry.label, *point, at, seed) for at in lags for seed in study.tuning_seeds]
    for point in tried
  }
  if not known.keys() >= {job for of_point in jobs.values() for job in of_point}:
    return {}
  return {
    point: statistics.fmean(known[job] for job in of_point) for point, of_point in jobs.items()
  }


def chosen(rows: Sequence[Row], entry: Entry, lag: int, study: Study) -> Point | None:
  """The (value, learning rate) that tuning found best for a lag; None until it is complete."""
  scores = tuning_scores(rows, entry, lag, study)
  return max(scores, key=lambda point: scores[point]) if scores else None


def report_settings(
  rows: Sequence[Row], entry: Entry, study: Study
) -> dict[tuple[int, int], tuple[Value, float]]:
  """{(lag, factor): (value, learning rate)} of the reports; those of the primary outcome first."""
  settings = {}
  for lag, factor in ((PRIMARY_LAG, 1), (PRIMARY_LAG, OFF_RATE), (0, 1), (16, 1), (256, 1)):
    if point := chosen(rows, entry, lag, study):
      settings[lag, factor] = (point[0], float(f"{factor * point[1]:.4g}"))
  return settings


def report_jobs(rows: Sequence[Row], entries: Sequence[Entry], study: Study) -> list[Job]:
  """Runs of the reported seeds, those of the primary lag first, of entries that are tuned."""
  settings = {entry.label: report_settings(rows, entry, study) for entry in entries}
  keys = list(dict.fromkeys(key for found in settings.values() for key in found))
  jobs = [
    Job(label, *found[key], key[0], seed)
    for primary, seeds in ((True, study.seeds), (False, study.secondary_seeds))
    for seed in seeds
    for key in keys
    if (key[0] == PRIMARY_LAG) == primary
    for label, found in settings.items()
    if key in found
  ]
  return list(dict.fromkeys(jobs))


def pilot_jobs(study: Study) -> list[Job]:
  """Default GRPO at one learning rate without and with lag."""
  rate, lags = study.pilot_rate, (0, PRIMARY_LAG)
  return [Job("grpo", None, rate, lag, seed) for seed in study.pilot_seeds for lag in lags]


# ---------------------------------------------------------------- rows


def job_of(row: Row) -> Job:
  """The job that a row answers."""
  return Job(*(row[field] for field in Job._fields))


def read_rows(path: pathlib.Path, study: Study) -> list[Row]:
  """Rows of runs as long as the study's; [] without a file."""
  if not path.exists():
    return []
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  sizes = (study.steps, study.warm_steps)
  return [row for row in rows if (row["steps"], row["warm_steps"]) == sizes]


def add_row(path: pathlib.Path, row: Row, lock: pathlib.Path) -> None:
  """Adds a row in its place; `lock`: a file that keeps other processes out meanwhile."""
  with lock.open("w") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {_key(other): line for line in lines for other in [json.loads(line)]}
    known[_key(row)] = json.dumps(row)
    order = sorted(known, key=lambda key: tuple((x is not None, x) for x in key))
    files.write_durably(path, "\n".join(known[key] for key in order) + "\n")


def _key(row: Row) -> tuple:
  return (row["steps"], row["warm_steps"], *job_of(row))


# ---------------------------------------------------------------- workers


def _begin(cores: Any, compiled: str) -> None:
  """Prepares a worker before it loads JAX: memory, one core, one thread, programs kept on disk."""
  memory.keep_freed_memory()
  os.sched_setaffinity(0, {cores.get()})
  flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled


def _do(task: Job | WarmStart, study: Study, folder: pathlib.Path) -> Row | float:
  from benchmarks import lag_language_run

  if isinstance(task, WarmStart):
    return lag_language_run.warm_start(task.seed, study, folder)
  return lag_language_run.train(task, study, folder)


def tasks_of(jobs: Sequence[Job], warm: set[int]) -> list[Job | WarmStart]:
  """The jobs, each seed's warm start before its first unless it is there already."""
  tasks: list[Job | WarmStart] = []
  for job in jobs:
    if job.seed not in warm and WarmStart(job.seed) not in tasks:
      tasks.append(WarmStart(job.seed))
    tasks.append(job)
  return tasks


def next_task(tasks: Sequence[Job | WarmStart], warm: set[int]) -> Job | WarmStart | None:
  """The first task that does not wait for a warm start."""
  ready = (task for task in tasks if isinstance(task, WarmStart) or task.seed in warm)
  return next(ready, None)


class Workers:
  """Processes that do tasks, each on a core of its own."""

  def __init__(self, number: int, study: Study, folder: pathlib.Path, *, until: float):
    """`until`: time.monotonic() after which no task is begun."""
    spawn = multiprocessing.get_context("spawn")
    cores, own = spawn.Queue(), sorted(os.sched_getaffinity(0))
    for worker in range(number):
      cores.put(own[worker % len(own)])
    self._number, self._study, self._folder, self._until = number, study, folder, until
    self._pool = concurrent.futures.ProcessPoolExecutor(
      number, spawn, initializer=_begin, initargs=(cores, str(folder / "compiled"))
    )

  def warm_seeds(self, jobs: Sequence[Job]) -> set[int]:
    """Seeds of the jobs whose warm start is in the folder."""
    made = lambda seed: (self._folder / f"warm-{seed}-{self._study.warm_steps}.npz").exists()
    return {job.seed for job in jobs if made(job.seed)}

  def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job | WarmStart, Row | float]]:
    """(task, its result) as they come, until the time is over or all are done."""
    warm = self.warm_seeds(jobs)
    tasks, running = tasks_of(jobs, warm), {}
    while True:
      while len(running) < self._number and time.monotonic() < self._until:
        if not (task := next_task(tasks, warm)):
          break
        tasks.remove(task)
        running[self._pool.submit(_do, task, self._study, self._folder)] = task
      if not running:
        return
      done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        task = running.pop(future)
        if isinstance(task, WarmStart):
          warm.add(task.seed)
        yield task, future.result()

  def close(self) -> None:
    """Ends the processes."""
    self._pool.shutdown()


def missing(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
  """The jobs that have no row yet."""
  done = {job_of(row) for row in rows}
  return [job for job in jobs if job not in done]


def run_missing(
  jobs: Sequence[Job], workers: Workers, rows: Callable[[], list[Row]], add: Callable[[Row], None]
) -> None:
  """Makes the runs that have no row yet; says what each took."""
  left = missing(jobs, rows())
  print(f"{len(jobs) - len(left)} of {len(jobs)} runs are there", flush=True)
  run(left, workers, add)


def run(jobs: Sequence[Job], workers: Workers, add: Callable[[Row], None]) -> None:
  """Makes runs; says what each took."""
  for task, result in workers.results(jobs):
    if not isinstance(result, dict):  # seconds of a warm start
      print(f"{task}: {result:.0f} s", flush=True)
      continue
    add(result)
    final, seconds = result["final"]["pass@1"], result["seconds"]
    print(f"{task}: pass@1 {final:.3f}, run {score(result):.3f}, {seconds:.0f} s", flush=True)


def say_pilot(rows: Sequence[Row], study: Study) -> None:
  """Prints what default GRPO loses by lag, and whether the task is kept."""
  known = {job_of(row): row for row in rows}
  lost = []
  for without, under in zip(pilot_jobs(study)[::2], pilot_jobs(study)[1::2], strict=True):
    if known.keys() >= {without, under}:
      pair = [known[job]["final"]["pass@1"] for job in (without, under)]
      lost.append(pair[0] - pair[1])
      print(f"seed {without.seed}: lag 0 {pair[0]:.3f}, lag {PRIMARY_LAG} {pair[1]:.3f}")
  if lost:
    mean = statistics.fmean(lost)
    print(f"lost by lag: {mean:.3f}; the task is {'kept' if mean >= 0.05 else 'NOT kept'}")


def main() -> None:
  """Runs what is missing, then writes the summary."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--pilot", action="store_true", help="only default GRPO, without and with lag"
  )
  parser.add_argument("--summary", action="store_true", help="run nothing")
  parser.add_argument("--only", nargs="*", choices=BY_LABEL, help="run only these objectives")
  parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later")
  parser.add_argument("--workers", type=int, default=os.cpu_count())
  parser.add_argument("--steps", type=int, default=Study.steps, help="updates of a run")
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/lag_language"))
  parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="where rows are kept")
  arguments = parser.parse_args()
  study, folder = Study(steps=arguments.steps), arguments.folder
  folder.mkdir(parents=True, exist_ok=True)
  rows = lambda: read_rows(arguments.rows, study)
  if not arguments.summary:
    until = time.monotonic() + 60 * arguments.minutes
    workers = Workers(arguments.workers, study, folder, until=until)
    add = lambda row: add_row(arguments.rows, row, folder / "rows.lock")
    entries = [e for e in available() if not arguments.only or e.label in arguments.only]
    if arguments.pilot:
      run_missing(pilot_jobs(study), workers, rows, add)
    else:
      while time.monotonic() < until and missing(tuning_jobs(rows(), entries, study), rows()):
        run_missing(tuning_jobs(rows(), entries, study), workers, rows, add)
      run_missing(report_jobs(rows(), entries, study), workers, rows, add)
    workers.close()
  if arguments.pilot:
    say_pilot(rows(), study)
    return
  from benchmarks import lag_language_summary

  lag_language_summary.write(rows(), study, arguments.rows.with_suffix(""))


if __name__ == "__main__":
  main()
