"""What does each saving of memory or work save in a train step of a model with 116 M parameters?

Command:  python -m benchmarks.savings            (--quick: a small model, half a minute)
The same 8 completions (2 groups, prompts of 128 tokens, 8 to 64 per completion) are trained on
with the plain step and with each saving alone and with all together. Every variant runs in a
process of its own. Peak memory is what XLA plans for the step beyond its arguments (`temporary`),
and what the process's memory grew to (`resident`). Every variant takes its steps in turn with the
plain one; the ratio is the median of those pairs. A second table gives the step with a shared
prompt for prompt : completion from 1:4 to 4:1. Writes results/savings.json.
"""

import argparse
import dataclasses
import json
import multiprocessing
import pathlib
import statistics
import sys
import time

import numpy as np

from benchmarks.demo_seeds import machine

RESULTS = pathlib.Path(__file__).parent / "results"
VARIANTS = {
  "plain": {},
  "logprobs in chunks of 16": {"chunk": 16},
  "packed rows": {"layout": "packed"},
  "shared prompts": {"layout": "shared"},
  "remat: dots": {"remat": "dots"},
  "remat: full": {"remat": "full"},
  "bfloat16 compute": {"dtype": "bfloat16"},
  "2 micro-batches": {"parts": 2},
  "all, remat full": {"chunk": 16, "layout": "shared", "remat": "full", "parts": 2},
}
RATIOS = {"1:4": (32, 128), "1:2": (64, 128), "1:1": (64, 64), "2:1": (128, 64), "4:1": (128, 32)}
GROUPS, GROUP_SIZE = 2, 4


@dataclasses.dataclass(frozen=True)
class Work:
  """A model and what it is trained on."""

  quick: bool
  prompt: int = 128  # tokens
  shortest: int = 8  # completion
  longest: int = 64

  def model(self):
    """Vocabulary of Qwen, 12 layers of 512."""
    from offpolicy_rl.model import decoder

    size = dict(num_layers=12, width=512, num_heads=8, num_kv_heads=4, head_dim=64, mlp_width=1536)
    if self.quick:
      size = dict(num_layers=2, width=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=128)
    vocabulary = 4_096 if self.quick else 151_936
    return decoder.DecoderConfig(
      vocab_size=vocabulary, rope_theta=1e4, norm_eps=1e-6, tied_embeddings=True, **size
    )

  def groups(self, vocab_size: int):
    """The same random ones for every variant."""
    from offpolicy_rl import types

    rng = np.random.default_rng(0)
    found = []
    for g in range(GROUPS):
      prompt = rng.integers(0, vocab_size, self.prompt).astype(np.int32)
      ticket = types.Ticket(str(g), types.TRAIN, 0, g, prompt, "", 0, 0, GROUP_SIZE, 1.0)
      made = []
      for _ in range(GROUP_SIZE):
        size = int(rng.integers(self.shortest, self.longest + 1))
        logprobs = -rng.exponential(1, size).astype(np.float32)
        tokens = rng.integers(0, vocab_size, size).astype(np.int32)
        reward = float(rng.integers(2))
        made.append(types.Trajectory(tokens, logprobs, np.zeros(size, np.int32), True, reward))
      found.append(types.FinishedGroup(ticket, types.Group(str(g), tuple(made)), 0))
    return found


def resident_mb() -> float:
  """The most memory that this process ever held, in MB (Linux)."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def serve(pipe, work: Work, chunk=0, layout="padded", remat="none", dtype="float32", parts=1):
  """One variant: says what it planned, then makes a step for every message until None."""
  import jax

  from offpolicy_rl import losses
  from offpolicy_rl.learner import state as state_lib
  from offpolicy_rl.learner import step
  from offpolicy_rl.model import sharding
  from offpolicy_rl.replay import batching, packing

  model = dataclasses.replace(work.model(), remat=remat, compute_dtype=dtype)
  mesh = sharding.make_mesh()
  jax.sharding.set_mesh(mesh)
  optimizer = state_lib.make_optimizer(learning_rate=1e-6, num_steps=100)
  objective = losses.objective("beta_shift", beta=0.1)
  choices = step.StepChoices(model, objective, optimizer, 1.0, logprob_chunk=chunk)
  longest = (work.prompt, work.longest)
  columns = packing.row_columns(layout, *longest, GROUP_SIZE)
  if layout == packing.PACKED:
    columns = 3 * sum(longest)
  limits = packing.Limits(layout, *longest, columns, buckets=8)
  batch = batching.make_batch(work.groups(model.vocab_size), limits, parts)
  batch = state_lib.place_batch(mesh, batch)
  state = state_lib.create(model, mesh, optimizer, 0)
  jitted = step.compile_step(choices, state_lib.shardings(model, mesh, optimizer))
  compiled = jitted.lower(state, batch, None).compile()
  before = resident_mb()
  state, metrics = compiled(state, batch, None)
  jax.block_until_ready(state)
  pipe.send(
    {
      "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
      "resident_mb": resident_mb(),
      "resident_before_mb": before,
      "loss": float(metrics["loss"]),
      "tokens": int(metrics["tokens"]),
      "columns": int(batch.rows.tokens.size),
      "scored": int(batch.rows.targets.size),
      "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
    }
  )
  while pipe.recv() is not None:
    start = time.perf_counter()
    state, metrics = compiled(state, batch, None)
    jax.block_until_ready(state)
    pipe.send(time.perf_counter() - start)


class Running:
  """A variant's process."""

  def __init__(self, work: Work, options: dict):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(target=serve, args=(theirs, work), kwargs=options, daemon=True)
    self._process.start()
    self.found = self._pipe.recv()

  def step(self) -> float:
    """Seconds."""
    self._pipe.send("step")
    return self._pipe.recv()

  def end(self) -> None:
    """Frees its memory."""
    self._pipe.send(None)
    self._process.join()


def compare(variants: dict[str, dict], work: Work, repeats: int) -> list[dict]:
  """One row per variant; each takes steps in turn with the first, which stays."""
  (first, options), *others = variants.items()
  plain = Running(work, options)
  rows = [{"variant": first} | plain.found | {"seconds": [], "of_plain": 1.0}]
  for name, options in others:
    other = Running(work, options)
    pairs = [(plain.step(), other.step()) for _ in range(repeats)]
    other.end()
    rows[0]["seconds"] += [base for base, _ in pairs]
    found = {"seconds": [s for _, s in pairs]}
    found["of_plain"] = statistics.median(s / base for base, s in pairs)
    found["of_plain_spread"] = [min(s / b for b, s in pairs), max(s / b for b, s in pairs)]
    rows.append({"variant": name} | other.found | found)
  plain.end()
  return rows


def table(rows: list[dict]) -> str:
  """One line each."""
  lines = [
    "| step | tokens | temporary MB | resident MB | seconds | of plain |",
    "| --- " * 6 + "|",
  ]
  for r in rows:
    lines.append(
      f"| {r['variant']} | {r['columns']:,} | {r['temporary_mb']:,.0f} | {r['resident_mb']:,.0f} | "
      f"{statistics.median(r['seconds']):.2f} | {r['of_plain']:.2f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Measures, prints two tables, writes results/savings.json."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="a small model; writes nothing")
  parser.add_argument("--repeats", type=int, default=3)
  arguments = parser.parse_args()
  work = Work(arguments.quick)
  rows = compare(VARIANTS, work, arguments.repeats)
  print(f"{rows[0]['parameters'] / 1e6:.0f} M parameters\n{table(rows)}\n", flush=True)
  ratios = {}
  layouts = {name: {"layout": name, "chunk": 16} for name in ("padded", "shared")}
  for ratio, (prompt, longest) in RATIOS.items():
    pair = compare(layouts, Work(arguments.quick, prompt, longest, longest), arguments.repeats)
    ratios[ratio] = pair
    padded, shared = pair
    print(
      f"prompt:completion {ratio}: {shared['columns'] / padded['columns']:.2f} of the tokens, "
      f"{shared['of_plain']:.2f} of the time, "
      f"{shared['temporary_mb'] / padded['temporary_mb']:.2f} of the temporary memory",
      flush=True,
    )
  if not arguments.quick:
    asked = " ".join(["python -m benchmarks.savings", *sys.argv[1:]])
    found = {"machine": machine(), "command": asked, "variants": rows, "shared_prompt": ratios}
    (RESULTS / "savings.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
