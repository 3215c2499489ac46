"""How long does the first run take, and how long the second, whose programs are compiled already?

Command:  python -m benchmarks.first_minute --rounds=3 --demo_rounds=1
Writes results/first_minute.json, a job at a time. Every round has a new cache directory: a run
without kept programs (`--no_cache`, not of the demo), a first that keeps them, a second that
finds them, one after the other. Beside other work compare CPU seconds.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import machine

RESULTS = pathlib.Path(__file__).parent / "results"
JOBS = {
  "tiny": ["--config=configs/test.py", "--config.learner.steps=3"],
  "demo": ["--config=configs/demo.py"],
}
KINDS = {"no_cache": ["--no_cache"], "first": [], "second": []}
OF_JOB = {"tiny": ("no_cache", "first", "second"), "demo": ("first", "second")}


def run(arguments: list[str], folder: pathlib.Path, name: str) -> tuple[float, float]:
  """Runs `offpolicy-rl local` to its end: (seconds, CPU seconds of all processes)."""
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
  env = {
    k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSIST"))
  }
  command = [sys.executable, "-m", "offpolicy_rl.cli.main", "local", *arguments]
  subprocess.run(
    [*command, f"--run_dir={folder / name}"],
    check=True,
    env=env | {"XDG_CACHE_HOME": str(folder / "cache")},
    stdout=subprocess.DEVNULL,
  )
  seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return round(seconds, 1), round(cpu, 1)


def measured(job: str) -> dict[str, tuple[float, float]]:
  """One round of a job: each kind of run after the other, in a cache directory of its own."""
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    for kind in OF_JOB[job]:
      found[kind] = run([*JOBS[job], *KINDS[kind]], pathlib.Path(folder), kind)
      print(f"{job:5} {kind:9} {found[kind][0]:6.1f} s, {found[kind][1]:6.1f} CPU s", flush=True)
    kept = [path.stat().st_size for path in pathlib.Path(folder, "cache").rglob("*-cache")]
    print(f"{job:5} kept {len(kept)} programs, {sum(kept) / 1e6:.1f} MB", flush=True)
  return found


def summary(rounds: list[dict]) -> dict:
  """Medians over the rounds, and the ratio of the second run to the first."""
  middle = lambda kind, i: round(statistics.median(found[kind][i] for found in rounds), 1)
  medians = {kind: {"seconds": middle(kind, 0), "cpu": middle(kind, 1)} for kind in rounds[0]}
  ratios = {n: round(medians["second"][n] / medians["first"][n], 2) for n in ("seconds", "cpu")}
  return {"medians": medians, "second / first": ratios, "rounds": rounds}


def main() -> None:
  """Runs the rounds and prints medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--demo_rounds", type=int, default=1)
  arguments = parser.parse_args()
  command = " ".join(["python -m benchmarks.first_minute", *sys.argv[1:]])
  file = RESULTS / "first_minute.json"
  for job, rounds in (("tiny", arguments.rounds), ("demo", arguments.demo_rounds)):
    if not rounds:
      continue
    load = [round(os.getloadavg()[1], 1)]
    found = summary([measured(job) for _ in range(rounds)])
    load.append(round(os.getloadavg()[1], 1))
    print(f"{job:5} {found['medians']}, second / first {found['second / first']}")
    before = json.loads(file.read_text()) if file.exists() else {}
    about = {"machine": machine(), "load before and after": load, "command": command}
    file.write_text(json.dumps(before | {job: about | found}, indent=1) + "\n")


if __name__ == "__main__":
  main()
