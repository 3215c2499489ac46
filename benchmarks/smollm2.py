"""Does a real pretrained model learn through the whole system, and which objective gets further?

Command:  python -m benchmarks.smollm2            (about two hours per objective on 2 cores)
Every objective trains SmolLM2-135M-Instruct with configs/smollm2_chain_sum.py, all else equal, one
after the other, in RUNS/smollm2-NAME; a run that is there already goes on where it stopped. Then
the weights before and after answer the same 256 held-out problems, greedily and 8 times each.
Writes results/smollm2.json and results/smollm2.svg (training reward against step).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.demo_seeds import picture
from benchmarks.machine import machine
from offpolicy_rl.observe import metrics

RESULTS = pathlib.Path(__file__).parent / "results"
CARD = "--config=configs/smollm2_chain_sum.py"
CHECKPOINT = "checkpoints/smollm2"
OBJECTIVES = {  # the card's own, and one without its shift of the advantages
  "beta_shift": [],
  "grpo": ["--config.objective.name=grpo", "--config.objective.kappa=0"],
}
WINDOW = 20  # steps that the figures of a run's beginning and end are means of


def command(*arguments: str) -> None:
  """Runs `offpolicy-rl`; its output stays visible."""
  subprocess.run([sys.executable, "-m", "offpolicy_rl.cli.main", *arguments], check=True)


def train(name: str, run_dir: pathlib.Path, extra: list[str]) -> list[dict]:
  """Starts the run, or goes on with it unless it is done -> its rows of training metrics."""
  rows = metrics.read(run_dir)
  if not rows:
    command("local", CARD, f"--run_dir={run_dir}", *OBJECTIVES[name], *extra)
  elif rows[-1].get("phase") != "after":
    command("local", "--resume", f"--run_dir={run_dir}")
  return [row for row in metrics.read(run_dir) if row["kind"] == metrics.TRAIN]


def evaluate(*of: str, problems: int) -> dict:
  """Estimates with their intervals, by name."""
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "eval"
    command("eval", *of, "--k=1,8", f"--problems={problems}", f"--out={out}")
    found = json.loads((out / "eval.json").read_text())
  numbers = ("value", "low", "high")
  return {
    "problems": found["problems"],
    **{e["name"]: [round(e[n], 4) for n in numbers] for e in found["estimates"]},
  }


def course(rows: list[dict]) -> dict:
  """What training looked like at its beginning and at its end, and how long it took."""
  spans = {"first": rows[:WINDOW], "last": rows[-WINDOW:]}
  mean = lambda span, key: round(statistics.fmean(row[key] for row in span), 4)
  keys = {
    "reward": "reward",
    "entropy": "entropy",
    "lag": "lag/mean",
    "log_ratio": "log_ratio/mean",
  }
  return {
    "steps": len(rows),
    "hours": round(sum(row["seconds/step"] + row["seconds/waiting"] for row in rows) / 3600, 2),
    "mismatch_max": max(row.get("mismatch/max", 0.0) for row in rows),
    **{when: {n: mean(span, key) for n, key in keys.items()} for when, span in spans.items()},
  }


def smoothed(rows: list[dict]) -> list[list[float]]:
  """Reward against step, each point the mean of the last `WINDOW` steps."""
  rewards = [row["reward"] for row in rows]
  spans = (rewards[max(0, step + 1 - WINDOW) : step + 1] for step in range(len(rows)))
  return [[step, round(statistics.fmean(span), 4)] for step, span in enumerate(spans)]


def show(found: dict) -> None:
  """A table for people."""
  print(
    f"\n{'weights':14} {'greedy':>20} {'pass@1':>20} {'pass@8':>20}   entropy, reward at the end"
  )
  rows = [("before", found["before"], "")]
  for run in found["runs"]:
    last = run["course"]["last"]
    rows.append((run["objective"], run["after"], f"{last['entropy']:.3f}  {last['reward']:.3f}"))
  for name, scores, end in rows:
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*scores[n]) for n in ("greedy", "pass@1", "pass@8")]
    print(f"{name:14} {cells[0]:>20} {cells[1]:>20} {cells[2]:>20}   {end}")


def main() -> None:
  """Trains what is not trained yet, evaluates, reports."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
  parser.add_argument("--problems", type=int, default=256)
  parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"))
  arguments, extra = parser.parse_known_args()
  runs: list[dict[str, Any]] = []
  for name in arguments.objectives:
    run_dir = arguments.runs / f"smollm2-{name}"
    rows = train(name, run_dir, extra)
    after = evaluate(f"--run_dir={run_dir}", problems=arguments.problems)
    runs.append(
      {"objective": name, "course": course(rows), "after": after, "curve": smoothed(rows)}
    )
  before = evaluate(CARD, f"--checkpoint={CHECKPOINT}", problems=arguments.problems)
  asked = " ".join(["python -m benchmarks.smollm2", *sys.argv[1:]])
  found = {"machine": machine(), "command": asked, "before": before, "runs": runs}
  (RESULTS / "smollm2.json").write_text(json.dumps(found, indent=1) + "\n")
  (RESULTS / "smollm2.svg").write_text(picture([(run["objective"], run["curve"]) for run in runs]))
  show(found)


if __name__ == "__main__":
  main()
