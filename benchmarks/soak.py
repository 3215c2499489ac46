"""Does anything grow in a long run? Memory of learner and samplers, disk of the run, over time.

  python -m benchmarks.soak --minutes=30

A learner and two samplers of the smallest configuration, as processes, take thousands of steps.
Prints resident memory and disk every minute; the verdict compares the last fifth of the time with
the second fifth (the first one still compiles and fills caches).
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import time

from benchmarks import chaos

RESULTS = pathlib.Path(__file__).parent / "results"
SAMPLE_SECONDS = 10.0
CHECKPOINT_EVERY = 50  # steps; tensorstore loses 25 to 35 kB with every checkpoint
ALLOWED_GROWTH = 0.05  # of resident memory, last fifth against second


def resident_mb(pid: int) -> float:
  """Resident memory of a process."""
  pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def disk_mb(folder: pathlib.Path) -> float:
  """What the files of a folder really take; they come and go meanwhile."""
  blocks = 0
  for path in folder.rglob("*"):
    with contextlib.suppress(FileNotFoundError):
      blocks += path.stat().st_blocks
  return blocks * 512 / 2**20


def watch(run: chaos.Run, minutes: float) -> list[dict]:
  """One row per sample: seconds, steps, memory per process, disk."""
  rows, started = [], time.monotonic()
  while time.monotonic() - started < 60 * minutes:
    if run.tend():
      raise RuntimeError("the run ended before its time; give it more steps")
    time.sleep(SAMPLE_SECONDS)
    processes = {"learner": run.learner, **{f"sampler-{i}": p for i, p in enumerate(run.samplers)}}
    rows.append(
      {"seconds": round(time.monotonic() - started), "steps": run.progress()}
      | {n: round(resident_mb(p.pid), 1) for n, p in processes.items() if p and p.poll() is None}
      | {"checkpoints_and_groups": round(sum(map(disk_mb, parts(run))), 1)}
    )
    if len(rows) % 6 == 0:
      print(rows[-1], flush=True)
  return rows


def parts(run: chaos.Run) -> list[pathlib.Path]:
  """What of a run's files must not grow; its metrics do, by a line per step."""
  return [run.run_dir / "checkpoints", run.run_dir / "groups"]


def verdict(rows: list[dict]) -> dict[str, dict]:
  """Median of the second and the last fifth, per process and for the disk."""
  fifth = len(rows) // 5
  found = {}
  for name in ("learner", "sampler-0", "sampler-1", "checkpoints_and_groups"):
    early = statistics.median(row[name] for row in rows[fifth : 2 * fifth])
    late = statistics.median(row[name] for row in rows[-fifth:])
    found[name] = {"early_mb": early, "late_mb": late, "growth": round(late / early - 1, 4)}
  return found


def main() -> int:
  """Command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--minutes", type=float, default=30.0)
  minutes = parser.parse_args().minutes
  with tempfile.TemporaryDirectory(prefix="soak-") as folder:
    run = chaos.Run(
      pathlib.Path(folder), mode="async", steps=10**6, samplers=2, draw=random.Random(0)
    )
    run.arguments.append(f"--config.checkpoint.every={CHECKPOINT_EVERY}")
    try:
      rows = watch(run, minutes)
    finally:
      chaos.signal_to(run.learner, signal.SIGTERM)
      run.learner.wait(timeout=60)
      run.end()
      run.disk.close()
  found = verdict(rows)
  grown = [name for name, row in found.items() if row["growth"] > ALLOWED_GROWTH]
  report = {
    "command": f"python -m benchmarks.soak --minutes={minutes:g}",
    "steps": rows[-1]["steps"],
    "verdict": found,
    "rows": rows[:: max(1, len(rows) // 30)],
  }
  (RESULTS / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
  for name, row in found.items():
    print(f"{name:24s} {row['early_mb']:8.1f} -> {row['late_mb']:8.1f} MB  {row['growth']:+.1%}")
  print("grew: " + ", ".join(grown) if grown else f"flat over {rows[-1]['steps']} steps")
  return 1 if grown else 0


if __name__ == "__main__":
  sys.exit(main())
