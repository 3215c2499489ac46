"""How much memory does taking and loading a published checkpoint of 1.2 B parameters need?

Command:  python -m benchmarks.loading            (about 6 GB of disk; --quick: a small model)
A random bfloat16 checkpoint with the architecture of Llama-3.2-1B is written, imported, and loaded
as float32 by one process with 8 devices and by two processes with 4 devices each (CPU devices, so
that "device memory" is the process's own). Reported: the most anonymous memory of each process
beyond what it held before, next to the size of the parameters. Mapped files are not counted: the
system may drop their pages at any time. Writes results/loading.json.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import socket
import tempfile
import threading
import time

from benchmarks.demo_seeds import machine

RESULTS = pathlib.Path(__file__).parent / "results"
LLAMA_1B = {
  "model_type": "llama",
  "hidden_size": 2048,
  "intermediate_size": 8192,
  "num_hidden_layers": 16,
  "num_attention_heads": 32,
  "num_key_value_heads": 8,
  "head_dim": 64,
  "vocab_size": 128_256,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "rope_theta": 5e5,
  "tie_word_embeddings": True,
  "dtype": "bfloat16",
}
QUICK = LLAMA_1B | {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 8_192}


class Peak:
  """Watches this process's anonymous memory; `mb` is by how much it grew at most."""

  def __enter__(self):
    self._first = self._most = self._now()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._done.set()
    self._thread.join()
    self.mb = (max(self._most, self._now()) - self._first) / 1e3

  def _watch(self):
    while not self._done.wait(0.01):
      self._most = max(self._most, self._now())

  def _now(self) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def make(folder: pathlib.Path, keys: dict) -> int:
  """Writes the checkpoint in several files; returns its number of parameters."""
  import jax.numpy as jnp
  import numpy as np
  import safetensors.numpy

  from offpolicy_rl.model import families, pretrained
  from offpolicy_rl.tasks import tokenizer
  from tests.tasks.tokenizer_test import Gguf

  shapes = pretrained.tensor_shapes(families.read(keys))
  draw = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
  folder.mkdir()
  names, weight_map, count = list(shapes), {}, 0
  for part in range(4):
    tensors = {}
    for name in names[part::4]:
      size = int(np.prod(shapes[name]))
      tensors[name] = np.resize(draw, size).reshape(shapes[name]).astype(jnp.bfloat16)
      count += size
    file = f"model-{part}.safetensors"
    safetensors.numpy.save_file(tensors, folder / file)
    weight_map |= dict.fromkeys(tensors, file)
  (folder / pretrained.INDEX).write_text(json.dumps({"weight_map": weight_map}))
  (folder / pretrained.CONFIG).write_text(json.dumps(keys))
  tokenizer.write_from_gguf(Gguf(), folder)
  return count


def take(pipe, source: str, to: str) -> None:
  """Imports in this process."""
  from offpolicy_rl.roles import convert

  start = time.perf_counter()
  with Peak() as peak:
    convert.import_checkpoint(source, to)
  pipe.send({"peak_mb": peak.mb, "seconds": time.perf_counter() - start})


def load(pipe, folder: str, processes: int, index: int, port: int) -> None:
  """Loads this process's share in float32, split over all devices of all processes."""
  import jax

  jax.config.update("jax_num_cpu_devices", 8 // processes)
  if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
  from offpolicy_rl.model import policy, pretrained, sharding

  opened = pretrained.Checkpoint(pathlib.Path(folder))
  mesh = sharding.make_mesh(fsdp=4, tensor=2)
  shardings = policy.param_shardings(mesh, policy.shapes(opened.config))
  start = time.perf_counter()
  with Peak() as peak:
    params = jax.block_until_ready(opened.load(shardings))
  held = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
  pipe.send({"peak_mb": peak.mb, "held_mb": held / 1e6, "seconds": time.perf_counter() - start})


def run(target, *arguments) -> list[dict]:
  """What each of the processes says; `arguments`: a tuple per process."""
  context = multiprocessing.get_context("spawn")
  started = []
  for each in arguments:
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *each))
    process.start()
    started.append((ours, process))
  found = [pipe.recv() for pipe, _ in started]
  for _, process in started:
    process.join()
  return found


def main() -> None:
  """Measures, prints, writes results/loading.json."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true", help="a small model; writes nothing")
  arguments = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  with tempfile.TemporaryDirectory(prefix="loading-") as name:
    source, taken = pathlib.Path(name) / "source", pathlib.Path(name) / "taken"
    count = make(source, QUICK if arguments.quick else LLAMA_1B)
    found = {
      "machine": machine(),
      "parameters": count,
      "float32_mb": 4 * count / 1e6,
      "import": run(take, (str(source), str(taken)))[0],
      "load, one process": run(load, (str(taken), 1, 0, 0)),
      "load, two processes": run(load, *((str(taken), 2, i, port) for i in range(2))),
    }
  print(json.dumps(found, indent=2))
  if not arguments.quick:
    (RESULTS / "loading.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  main()
