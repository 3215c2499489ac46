"""How long does the first run take, and how long the second, whose programs are compiled already?

Command:  python -m benchmarks.first_minute --rounds=3 --demo_rounds=1
Writes results/first_minute.json. Every round has a new cache directory: a run without kept programs
(`--no_cache`), a first one that keeps them, a second one that finds them, one after the other.
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


def main() -> None:
  """Runs the rounds and prints medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--demo_rounds", type=int, default=1)
  arguments = parser.parse_args()
  rounds = {"tiny": arguments.rounds, "demo": arguments.demo_rounds}
  found = {job: {kind: [] for kind in KINDS} for job, count in rounds.items() if count}
  for job in found:
    for _ in range(rounds[job]):
      with tempfile.TemporaryDirectory() as folder:
        for kind, flags in KINDS.items():
          measured = run([*JOBS[job], *flags], pathlib.Path(folder), kind)
          found[job][kind].append(measured)
          print(f"{job:5} {kind:9} {measured[0]:6.1f} s, {measured[1]:6.1f} CPU s", flush=True)
        kept = [path.stat().st_size for path in pathlib.Path(folder, "cache").rglob("*-cache")]
        print(f"{job:5} kept {len(kept)} programs, {sum(kept) / 1e6:.1f} MB")
  result = {
    "machine": machine(),
    "command": " ".join(["python -m benchmarks.first_minute", *sys.argv[1:]]),
  }
  for job, kinds in found.items():
    seconds = {k: statistics.median(s for s, _ in runs) for k, runs in kinds.items()}
    ratio = round(seconds["second"] / seconds["first"], 2)
    result[job] = {
      "seconds, CPU seconds": kinds,
      "median seconds": seconds,
      "second / first": ratio,
    }
    print(f"{job:5} medians {seconds}, second / first {ratio}")
  RESULTS.mkdir(exist_ok=True)
  (RESULTS / "first_minute.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
