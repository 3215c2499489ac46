"""What does a new version cost on its way to the samplers, and what does the learner pay?

Command:  python -m benchmarks.weights
1. transfer: a bfloat16 set shaped like Qwen3-0.6B (596 M parameters), Adam updates at 1e-6 on
   float32 masters: what changes, bytes and seconds of a full transfer and of a delta over loopback
   to another process. Also float32, on a quarter of the set.
2. learner: time of a real train step while 0, 1, 4 and 8 other processes pull every version. The
   learner and all its threads are pinned to core 0, the pullers to core 1, so what is measured is
   what serving costs the learner, as if it had this one core for both.
Writes results/weights.json.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import time

import ml_dtypes
import numpy as np

from benchmarks.machine import machine
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.system import memory
from offpolicy_rl.transport import client, delta, protocol, receiver, server, weights
from tests.transport import learners

RESULTS = pathlib.Path(__file__).parent / "results"
RATE, B1, B2, EPS = 1e-6, 0.9, 0.99, 1e-8  # the betas of configs/base.py
PROMPT = 8  # tokens
SIGNAL = 0.1  # persistent mean of a gradient element / standard deviation of its noise


def quartiles(values) -> list[float]:
  """Median and the middle half."""
  return [float(f"{x:.4g}") for x in np.percentile(values, [50, 25, 75])]


# ---------------------------------------------------------------- both ends of the wire


def serve(store: weights.WeightStore):
  """A learner's server that only gives weights -> (server, address)."""
  asked = learners.handlers(Ledger(lease_seconds=60))
  identity = protocol.Identity("session", "run", "{}", "print")
  return server.start("127.0.0.1:0", identity, asked, store, max_samplers=8, max_message_mb=64)


def timed(seconds: dict, name: str, function):
  """`function` that adds up its time."""

  def wrapped(*args):
    start = time.perf_counter()
    try:
      return function(*args)
    finally:
      seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

  return wrapped


def puller(pipe, address: str, layout: receiver.Layout, core: int | None) -> None:
  """A sampler that only pulls: "delta", "full" or None to end -> figures of that pull."""
  memory.keep_freed_memory()
  if core is not None:
    os.sched_setaffinity(0, {core})
  seconds: dict = {}
  weights.digest = timed(seconds, "verify", weights.digest)
  delta.apply = timed(seconds, "apply", delta.apply)
  wire = client.LearnerClient(address, f"puller-{os.getpid()}")
  wire.hello()
  keeps = receiver.Receiver(layout)
  while (kind := pipe.recv()) is not None:
    held = keeps if kind == "delta" else receiver.Receiver(layout)
    seconds.clear()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # peak memory counts from here
    before, start = held.received_bytes, time.perf_counter()
    version = wire.pull_weights(0, 2**30, held)[0]
    pipe.send(
      {
        "version": version,
        "seconds": time.perf_counter() - start,
        "bytes": held.received_bytes - before,
        "peak_mb": peak_mb(),
        **seconds,
      }
    )
    del held


def peak_mb() -> float:
  """Largest resident memory since it was last reset."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def start_puller(address: str, layout, core: int | None = None):
  """(its pipe, its process)."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=puller, args=(theirs, address, layout, core), daemon=True)
  process.start()
  return ours, process


# ---------------------------------------------------------------- 1: the transfer


def qwen3_06b(part: int = 1) -> dict[str, tuple]:
  """Shapes of Qwen3-0.6B; `part` = 4: a quarter of the vocabulary and of the layers."""
  shapes = {"embed": (151936 // part, 1024), "norm": (1024,)}
  for i in range(28 // part):
    shapes |= {
      f"layer{i}/{name}": shape
      for name, shape in {
        "q": (1024, 2048),
        "k": (1024, 1024),
        "v": (1024, 1024),
        "o": (2048, 1024),
        "gate": (1024, 3072),
        "up": (1024, 3072),
        "down": (3072, 1024),
        "norm1": (1024,),
        "norm2": (1024,),
        "q_norm": (128,),
        "k_norm": (128,),
      }.items()
    }
  return shapes


class Trainee:
  """float32 masters and Adam moments of one tensor, in the middle of a long run.

  Gradients: a fixed mean per element (SIGNAL times normal) and unit noise. Moments begin at their
  stationary distribution. The scale of gradients drops out of Adam.
  """

  def __init__(self, seed: int, shape: tuple):
    self._rng, self._seed = np.random.default_rng(seed), seed
    normal = lambda: self._rng.standard_normal(shape, np.float32)
    self.master = np.ones(shape, np.float32) if len(shape) == 1 else 0.02 * normal()
    self._m = self._mean() + np.sqrt((1 - B1) / (1 + B1)).astype(np.float32) * normal()
    self._v = np.maximum(1 + np.sqrt(2 * (1 - B2) / (1 + B2)).astype(np.float32) * normal(), 0.1)

  def _mean(self) -> np.ndarray:
    rng = np.random.default_rng(self._seed + 10**6)
    return np.float32(SIGNAL) * rng.standard_normal(self.master.shape, np.float32)

  def step(self) -> None:
    """One Adam update."""
    gradient = self._mean()
    gradient += self._rng.standard_normal(self.master.shape, np.float32)
    self._m += np.float32(1 - B1) * (gradient - self._m)
    np.square(gradient, out=gradient)
    self._v += np.float32(1 - B2) * (gradient - self._v)
    self.master -= np.float32(RATE) * self._m / (np.sqrt(self._v) + np.float32(EPS))


def transfer(dtype, part: int, updates: int) -> dict:
  """Several updates over the wire -> medians and middle halves."""
  shapes = qwen3_06b(part)
  model = {name: Trainee(i, shape) for i, (name, shape) in enumerate(shapes.items())}
  store = weights.WeightStore(delta_bases=1)
  wire, address = serve(store)
  pipe, process = start_puller(address, {name: (s, dtype) for name, s in shapes.items()})
  rows = []
  for version in range(updates + 1):
    copies = {name: x.master.astype(dtype) for name, x in model.items()}
    row = one_version(store, version, copies, pipe)
    if version:  # the first has no base
      rows.append(row)
      print(f"  version {version}: {json.dumps(row)}", flush=True)
    store.retain(lambda v, newest=version: v == newest)
    for x in model.values():
      x.step()
  pipe.send(None)
  process.join()
  wire.stop(0).wait()
  count = sum(int(np.prod(s)) for s in shapes.values())
  found = {key: quartiles([row[key] for row in rows]) for key in rows[0]}
  return {"dtype": np.dtype(dtype).name, "parameters": count, "updates": updates, **found}


def one_version(store: weights.WeightStore, version: int, copies: dict, pipe) -> dict:
  """Publishes it, encodes it, has it pulled as a delta and in full -> figures."""
  row, seconds = {}, {}
  timed(seconds, "put", store.put)(version, copies)
  new, old = store._versions[version], store._versions.get(version - 1)
  timed(seconds, "digest", new.digests)()
  if old is not None:
    both = [(delta.bits(old.tensors[k]), delta.bits(x)) for k, x in copies.items()]
    different = sum(int(np.count_nonzero(a != b)) for a, b in both)
    row["fraction_changed"] = different / sum(a.size for a, _ in both)
    plan = lambda: store._plan(new, old)  # kept by the store, as if another sampler had asked
    timed(seconds, "encode", plan)()
  row |= {f"seconds_{name}": value for name, value in seconds.items()}
  for kind in ("delta", "full"):
    pipe.send(kind)
    got = pipe.recv()
    assert got["version"] == version
    row[f"bytes_{kind}"] = got["bytes"]
    row[f"seconds_pull_{kind}"] = got["seconds"]
    row[f"seconds_apply_{kind}"] = got.get("apply", 0.0)
    row[f"seconds_verify_{kind}"] = got["verify"]
    row[f"peak_mb_{kind}"] = got["peak_mb"]
  return row


# ---------------------------------------------------------------- 2: what the learner pays


def random_batch(rng, rows: int, columns: int):
  """Groups of 8 completions that fill their rows."""
  from offpolicy_rl import types
  from offpolicy_rl.replay import batching, packing

  size = columns - PROMPT
  ticket = types.Ticket("", types.TRAIN, 0, 0, np.arange(PROMPT, dtype=np.int32), "", 0, 0, 8, 1.0)

  def completion():
    logprobs = -rng.exponential(1, size).astype(np.float32)
    tokens, versions = rng.integers(0, 1024, size, np.int32), np.zeros(size, np.int32)
    return types.Trajectory(tokens, logprobs, versions, True, float(rng.integers(2)))

  made = [types.Group("", tuple(completion() for _ in range(8))) for _ in range(rows // 8)]
  limits = packing.Limits(packing.PADDED, PROMPT, size, columns)
  return batching.make_batch([types.FinishedGroup(ticket, group, 0) for group in made], limits)


def make_learner(dtype: str, rows: int, columns: int):
  """(function that makes a step and publishes, store, parameters' layout, their number)."""
  import jax

  from offpolicy_rl import losses
  from offpolicy_rl.learner import state as state_lib
  from offpolicy_rl.learner import step
  from offpolicy_rl.model import decoder, policy, sharding

  config = decoder.DecoderConfig(
    vocab_size=1024,
    num_layers=3,
    width=256,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    mlp_width=768,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied_embeddings=True,
  )
  optimizer = state_lib.make_optimizer(learning_rate=RATE, num_steps=10**6, adam=(B1, B2, EPS))
  objective = losses.objective("beta_shift", beta=0.5, kappa=0.2)
  choices = step.StepChoices(config, objective, optimizer, 1.0)
  mesh = sharding.make_mesh()
  jax.sharding.set_mesh(mesh)
  state = state_lib.create(config, mesh, optimizer, 0)
  update = step.compile_step(choices, state_lib.shardings(config, mesh, optimizer))
  rng = np.random.default_rng(0)
  store = weights.WeightStore()
  version = 0

  def advance() -> None:
    nonlocal state, version
    batch = random_batch(rng, rows, columns)
    state, metrics = update(state, state_lib.place_batch(mesh, batch), None)
    float(metrics["loss"])  # waits, as the loop does
    version += 1
    store.put(version, policy.flatten(policy.copy(state.params, dtype)))
    store.retain(lambda v: v == version)

  flat = policy.flatten(state.params)
  layout = {name: (x.shape, np.dtype(dtype)) for name, x in flat.items()}
  return advance, store, layout, sum(x.size for x in flat.values())


def seconds_per_step(advance, pipes: list, steps: int) -> tuple[float, float, float, float]:
  """(wall, cpu, pulls, bytes) per step while `pipes` pull; a busy puller is not asked again.

  wall: median seconds. cpu: seconds of all the learner's threads, serving included. A first step,
  not counted, gives everybody the base of a delta.
  """
  for pipe in pipes:
    pipe.send("delta")
  for pipe in pipes:
    pipe.recv()
  advance()
  taken, busy, replies, cpu = [], set(), [], time.process_time()
  for _ in range(steps):
    start = time.perf_counter()
    for i, pipe in enumerate(pipes):
      if i in busy and pipe.poll():
        replies.append(pipe.recv())
        busy.discard(i)
      if i not in busy:
        pipe.send("delta")
        busy.add(i)
    advance()
    taken.append(time.perf_counter() - start)
  for i in busy:
    replies.append(pipes[i].recv())
  cpu = (time.process_time() - cpu) / steps
  size = sum(reply["bytes"] for reply in replies)
  return float(np.median(taken)), cpu, len(replies) / steps, size / steps


def learner_cost(dtype: str, counts: list[int], rounds: int, steps: int, tokens: tuple) -> dict:
  """Time of a step with so many pullers / with none, in rounds of changing order."""
  advance, store, layout, parameters = make_learner(dtype, *tokens)
  wire, address = serve(store)
  advance()
  pullers = [start_puller(address, layout, core=1) for _ in range(max(counts))]
  found = {n: [] for n in counts}
  rng = np.random.default_rng(0)
  for _ in range(rounds):
    for n in rng.permutation(counts):
      found[int(n)].append(seconds_per_step(advance, [p for p, _ in pullers[:n]], steps))
  for pipe, process in pullers:
    pipe.send(None)
    process.join()
  wire.stop(0).wait()
  values = {n: np.array(x).T for n, x in found.items()}  # n -> [wall, cpu, pulls, bytes][rounds]
  rows = [learner_row(n, values[n], values[0]) for n in counts]
  for row in rows:
    print(f"  {dtype}: {json.dumps(row)}", flush=True)
  return {
    "dtype": dtype,
    "parameters": parameters,
    "tokens_per_step": int(np.prod(tokens)),
    "rounds": rounds,
    "steps_per_round": steps,
    "rows": rows,
  }


def learner_row(pullers: int, values: np.ndarray, none: np.ndarray) -> dict:
  """[wall, cpu, pulls, bytes][rounds] with so many pullers, and with none -> figures."""
  wall, cpu, pulls, size = values
  return {
    "pullers": pullers,
    "seconds_per_step": quartiles(wall),
    "ratio_wall": quartiles(wall / none[0]),
    "cpu_per_step": quartiles(cpu),
    "ratio_cpu": quartiles(cpu / none[1]),
    "pulls_per_step": round(float(pulls.mean()), 2),
    "mb_per_step": round(float(size.mean()) / 1e6, 3),
  }


def small() -> dict[str, float]:
  """Figures for benchmarks/compare.py: one layer of the model and a part of its vocabulary."""
  memory.keep_freed_memory()
  found = transfer(ml_dtypes.bfloat16, part=28, updates=4)
  return {"bytes, delta / full": found["bytes_delta"][0] / found["bytes_full"][0]}


def main() -> None:
  """Measures both and writes."""
  memory.keep_freed_memory()
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", choices=["transfer", "learner"])
  parser.add_argument("--updates", type=int, default=5)
  parser.add_argument("--rounds", type=int, default=4)
  parser.add_argument("--steps", type=int, default=3, help="per round and number of pullers")
  parser.add_argument("--tokens", nargs=2, type=int, default=(64, 64), help="rows, columns")
  arguments = parser.parse_args()
  path = RESULTS / "weights.json"
  about = json.loads(path.read_text()) if path.exists() else {}
  about |= {
    "command": "python -m benchmarks.weights",
    "machine": machine(),
    "quartiles": "median, 25 %, 75 %",
  }
  if arguments.only != "learner":
    about["transfer"] = [
      transfer(ml_dtypes.bfloat16, 1, arguments.updates),
      transfer(np.float32, 4, 3),
    ]
    about["sender_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
  if arguments.only != "transfer":
    os.sched_setaffinity(0, {0})  # before JAX starts its threads
    cost = lambda dtype: learner_cost(
      dtype, [0, 1, 4, 8], arguments.rounds, arguments.steps, tuple(arguments.tokens)
    )
    about["learner"] = [cost("bfloat16"), cost("float32")]
  path.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
  main()
