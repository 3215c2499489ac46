"""How much faster is a run whose learner and sampler do not wait for one another?

Command:  python -m benchmarks.async_overlap      (--quick: one short pair)
The same card twice per round, in turn: synchronous (`lag.mode=fixed`, lag 0: nothing is sampled
while a step runs, no step runs while something is sampled) and asynchronous (lag at most 4, new
weights in flight). One learner and one sampler, each a process held to a core of its own; the same
number of prompts and completions per step, of sizes that take both about as long (an overlap can't
hide more than the shorter of the two), with a model large enough that products are most of either's
work. The policy stays nearly as random as it was made, so completions are as long in both.
Time is counted from step 15 on, without compilation. What two cores of this machine do at once,
next to what one does alone, bounds any overlap: that is measured, too. Writes
results/async_overlap.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.demo_seeds import machine
from offpolicy_rl.observe import metrics

RESULTS = pathlib.Path(__file__).parent / "results"
WARM_UP = 15  # steps
MODES = {
  "synchronous": {"lag.mode": "fixed", "lag.max_lag": 0},
  "asynchronous": {"lag.mode": "async", "lag.max_lag": 4, "sampler.weight_update": "in_flight"},
}
CARD = {
  "task.name": "chain_sum",
  "task.max_prompt_tokens": 7,
  "task.max_completion_tokens": 32,
  "warm_start.steps": 0,
  "evaluation.every": 0,
  "evaluation.problems": 1,
  "evaluation.samples": 1,
  "model.num_layers": 2,
  "model.width": 512,
  "model.mlp_width": 2048,
  "model.num_heads": 4,
  "model.num_kv_heads": 4,
  "learner.prompts_per_step": 14,
  "learner.group_size": 7,
  "learner.audit_every": 0,
  "learner.learning_rate": 1e-6,
  "sampler.slots": 7,
  "checkpoint.every": 10_000,
}


def start(core: int, *arguments: str) -> subprocess.Popen:
  """A role on one core."""
  command = ["taskset", "-c", str(core), sys.executable, "-m", "offpolicy_rl.cli.main", *arguments]
  return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"XLA_FLAGS": ""})


_PRODUCTS = """
import time, numpy as np
x = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
end, done = time.time() + 5, 0
while time.time() < end:
  x @ x
  done += 1
print(done)
"""


def both_cores() -> float:
  """Products that two processes on a core each get done, over those of one alone; 2 at best."""
  one_thread = os.environ | {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}

  def together(cores) -> float:
    command = lambda core: ["taskset", "-c", str(core), sys.executable, "-c", _PRODUCTS]
    processes = [
      subprocess.Popen(command(core), stdout=subprocess.PIPE, env=one_thread) for core in cores
    ]
    return sum(int(process.communicate()[0]) for process in processes)

  return round(statistics.median(together((0, 1)) / together((0,)) for _ in range(3)), 3)


def run(name: str, steps: int) -> dict:
  """Seconds per step of one run, and what the learner did with them."""
  settings = CARD | {"learner.steps": steps} | MODES[name]
  with tempfile.TemporaryDirectory() as folder:
    run_dir = pathlib.Path(folder) / "run"
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    learner = start(0, "learner", "--config=configs/base.py", f"--run_dir={run_dir}", *flags)
    while not (run_dir / "address").exists():
      time.sleep(0.2)
      if learner.poll() is not None:
        raise SystemExit("the learner ended before it had an address")
    sampler = start(1, "sampler", f"--learner={(run_dir / 'address').read_text()}")
    if learner.wait() or sampler.wait():
      raise SystemExit("a process failed")
    rows = [row for row in metrics.read(run_dir) if row["kind"] == metrics.TRAIN][WARM_UP:]
  mean = lambda key: statistics.fmean(row[f"seconds/{key}"] for row in rows)
  parts = {key: round(mean(key), 4) for key in ("waiting", "step", "publishing")}
  tokens = statistics.fmean(row["completion_tokens"] for row in rows)
  return {"seconds_per_step": round(sum(parts.values()), 4), **parts, "tokens": round(tokens, 2)}


def main() -> None:
  """Rounds of both, their ratio."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=45)
  parser.add_argument("--quick", action="store_true")
  arguments = parser.parse_args()
  rounds, steps = (1, 40) if arguments.quick else (arguments.rounds, arguments.steps)
  found = {name: [] for name in MODES}
  ratios = []
  for number in range(rounds):
    for name in list(MODES)[:: 1 if number % 2 == 0 else -1]:
      found[name].append(run(name, steps))
      print(f"round {number + 1}, {name}: {found[name][-1]}", flush=True)
    both = [found[name][-1]["seconds_per_step"] for name in MODES]
    ratios.append(round(both[0] / both[1], 3))
  per_hour = {
    name: round(3600 / statistics.median(row["seconds_per_step"] for row in rows))
    for name, rows in found.items()
  }
  cores = both_cores()
  asked = " ".join(["python -m benchmarks.async_overlap", *sys.argv[1:]])
  result = {
    "machine": machine(),
    "command": asked,
    "card": CARD,
    "modes": MODES,
    "steps_per_hour": per_hour,
    "ratio": statistics.median(ratios),
    "ratios": ratios,
    "both_cores": cores,
    "runs": found,
  }
  print(
    f"steps per hour: {per_hour}; ratio {result['ratio']} {ratios}; "
    f"both cores do {cores} times the work of one"
  )
  if not arguments.quick:
    (RESULTS / "async_overlap.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
