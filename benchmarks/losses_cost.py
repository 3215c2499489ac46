"""What does an objective cost next to just reading its inputs?

Command:  python -m benchmarks.losses_cost
For every preset, on arrays [4096, 2048] of float32: time of the jitted loss, of loss and metrics,
and of the gradient, each divided by the time of a plain masked sum of the same arrays, measured in
turn in one process. Writes results/losses_cost.json and prints a table of medians.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine
from offpolicy_rl import losses

RESULTS = pathlib.Path(__file__).parent / "results"


def inputs_for(choices: losses.Choices, rows: int, columns: int) -> losses.LossInputs:
  """Random inputs with the log-probs that the choices look at."""
  rng = np.random.default_rng(0)

  def logprobs():
    return jnp.asarray(-rng.exponential(1, (rows, columns)), jnp.float32)

  policy = logprobs()
  near = policy + 0.1 * jnp.asarray(rng.normal(size=policy.shape), jnp.float32)
  return losses.LossInputs(
    policy_logprobs=policy,
    sampler_logprobs=near,
    loss_mask=jnp.asarray(np.arange(columns) < rng.integers(1, columns, (rows, 1))),
    rewards=jnp.asarray(rng.integers(0, 2, rows), jnp.float32),
    group_ids=jnp.arange(rows) // 8,
    reference_logprobs=near if choices.needs_reference else None,
    proximal_logprobs=near if choices.needs_proximal else None,
    values=jnp.full(rows, 0.5) if choices.advantage == "value" else None,
    candidate_logprobs=policy[..., None] if choices.needs_candidates else None,
    sampler_candidate_logprobs=near[..., None] if choices.needs_candidates else None,
  )


def masked_sum(x: losses.LossInputs) -> jax.Array:
  """The floor: every array read once, multiplied by the mask, added up."""
  arrays = [v for v in x if v is not None and v.ndim == 2 and v.dtype != bool]
  return sum((jnp.sum(jnp.where(x.loss_mask, v, 0.0)) for v in arrays), jnp.float32(0))


def compare(functions: dict, x: losses.LossInputs, repeats: int) -> dict[str, list[float]]:
  """Seconds of every function, taken in turn."""
  seconds = {name: [] for name in functions}
  for function in functions.values():
    jax.block_until_ready(function(x))
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function(x))
      seconds[name].append(time.perf_counter() - start)
  return seconds


def cost(name: str, rows: int, columns: int, repeats: int) -> dict:
  """Ratios to the masked sum: median and spread (the middle half) of the rounds."""
  objective = losses.objective(name, max_tokens=columns, group_size=8)
  x = inputs_for(objective.choices, rows, columns)

  def loss(x):
    return objective.loss(x, objective.prepare(x))

  def gradient(x):
    return jax.grad(lambda lp: loss(x._replace(policy_logprobs=lp)))(x.policy_logprobs)

  functions = {"floor": masked_sum, "loss": loss, "with_metrics": objective, "gradient": gradient}
  seconds = compare({k: jax.jit(f) for k, f in functions.items()}, x, repeats)
  floor = np.array(seconds.pop("floor"))
  found = {"name": name, "floor_ms": round(1e3 * float(np.median(floor)), 2)}
  for key, values in seconds.items():
    found[key] = np.percentile(np.array(values) / floor, [50, 25, 75]).round(2).tolist()
  return found


def small() -> dict[str, float]:
  """Figures for benchmarks/compare.py: gradients of presets of every family."""
  names = ("beta_shift", "cispo", "copg", "grpo", "opsm")
  return {
    f"{name}, gradient / masked sum": cost(name, 1024, 1024, 15)["gradient"][0] for name in names
  }


def main() -> None:
  """Measures and writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--names", nargs="*", default=sorted(losses.PRESETS))
  parser.add_argument("--shape", nargs=2, type=int, default=(4096, 2048))
  parser.add_argument("--repeats", type=int, default=15)
  arguments = parser.parse_args()
  results = []
  print(f"{'objective':20}{'floor':>9}{'loss':>8}{'+metrics':>10}{'gradient':>10}   (x floor)")
  for name in arguments.names:
    row = cost(name, *arguments.shape, arguments.repeats)
    results.append(row)
    numbers = f"{row['loss'][0]:8.2f}{row['with_metrics'][0]:10.2f}{row['gradient'][0]:10.2f}"
    print(f"{name:20}{row['floor_ms']:6.1f} ms{numbers}", flush=True)
  about = {
    "command": "python -m benchmarks.losses_cost",
    "machine": machine(),
    "shape": list(arguments.shape),
    "median_25_75_percent_of_ratios": results,
  }
  (RESULTS / "losses_cost.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
  main()
