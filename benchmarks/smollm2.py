"""Does a real pretrained model bear lag, and does the objective matter?

Command:  python -m benchmarks.smollm2 [LABEL ...]     (half an hour per run on 2 cores)
SmolLM2-135M-Instruct learns with configs/smollm2_chain_sum.py and what RUNS changes, one run after
the other, in FOLDER/smollm2-LABEL; one that is there already goes on where it stopped. Then the
weights answer the same 256 held-out problems, greedily and 8 times each. A run that is done is in
results/smollm2_lag.json and not made again; smollm2_lag.svg shows training reward against step.
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
COMMON = {
  "lag.mode": "fixed",
  "lag.kept_versions": 4,  # of 0.54 GB each
}
# What the language study's tuning chose for lag 64 (results/lag_language.md), but its learning
# rates, which are those of another model.
SHIFT = {"objective.name": "beta_shift", "objective.beta": 0.1, "objective.kappa": 1.0}
WIDE = {"objective.name": "grpo", "objective.clip_low": 0.8, "objective.clip_high": 0.8}
RUNS: dict[str, dict[str, Any]] = {
  "beta_shift-lag64": {**SHIFT, "lag.max_lag": 64},
  "grpo_wide-lag64": {**WIDE, "lag.max_lag": 64},
  "beta_shift-lag4": {**SHIFT, "lag.max_lag": 4},
}
WINDOW = 20  # steps that the figures of a run's beginning and end are means of


def command(*arguments: str) -> None:
  """Runs `offpolicy-rl`; its output stays visible."""
  subprocess.run([sys.executable, "-m", "offpolicy_rl.cli.main", *arguments], check=True)


def train(label: str, run_dir: pathlib.Path, extra: list[str]) -> list[dict]:
  """Starts the run, or goes on with it unless it is done -> its rows of training metrics."""
  rows = metrics.read(run_dir)
  if not rows:
    flags = [f"--config.{key}={value}" for key, value in (COMMON | RUNS[label]).items()]
    command("local", CARD, f"--run_dir={run_dir}", *flags, *extra)
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
  columns = ("greedy", "pass@1", "pass@8")
  print(
    f"\n{'weights':18}"
    + "".join(f"{name:>21}" for name in columns)
    + "  entropy, reward at the end"
  )
  rows = [("before", found["before"], "")]
  for label, run in found["runs"].items():
    last = run["course"]["last"]
    rows.append((label, run["after"], f"{last['entropy']:.3f}  {last['reward']:.3f}"))
  for label, scores, end in rows:
    cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*scores[name]) for name in columns]
    print(f"{label:18}" + "".join(f"{cell:>21}" for cell in cells) + f"  {end}")


def main() -> None:
  """Trains what is not trained yet, evaluates, reports."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("labels", nargs="*", metavar="LABEL", help=f"of {', '.join(RUNS)}")
  parser.add_argument("--problems", type=int, default=256)
  parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs"))
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  arguments, extra = parser.parse_known_args()
  labels = arguments.labels or list(RUNS)
  if unknown := [label for label in labels if label not in RUNS]:
    parser.error(f"LABEL: got {', '.join(unknown)}, expected some of {', '.join(RUNS)}")
  path = arguments.out / "smollm2_lag.json"
  found = json.loads(path.read_text()) if path.exists() else {"runs": {}}
  for label in labels:
    if label in found["runs"]:
      continue
    run_dir = arguments.folder / f"smollm2-{label}"
    rows = train(label, run_dir, extra)
    after = evaluate(f"--run_dir={run_dir}", problems=arguments.problems)
    run = {"settings": COMMON | RUNS[label], "flags": extra, "machine": machine()}
    found["runs"][label] = run | {"course": course(rows), "after": after, "curve": smoothed(rows)}
    if "before" not in found:
      found["before"] = evaluate(CARD, f"--checkpoint={CHECKPOINT}", problems=arguments.problems)
    path.write_text(json.dumps(found, indent=1) + "\n")
  curves = [(label, run["curve"]) for label, run in found["runs"].items()]
  (arguments.out / "smollm2_lag.svg").write_text(picture(curves, "training reward"))
  show(found)


if __name__ == "__main__":
  main()
