"""Do our models compute what transformers computes? Random small models of every family.

  python -m benchmarks.parity        (after `make test`, which installs the reference)

Prints the table of offpolicy_rl/model/README.md and writes it there. The tests ask the same of
other random weights in every run.
"""

import os
import pathlib
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from offpolicy_rl import types
from offpolicy_rl.model import decoder, paging, policy, pretrained, sharding
from offpolicy_rl.sampler import engine, sizing, stopping

ROOT = pathlib.Path(__file__).parent.parent
PYTHON = pathlib.Path(
  os.environ.get("REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)
FAMILIES = {  # folder of the reference -> what it stands for
  "llama": "Llama",
  "llama-scaled": "Llama 3 (llama3 rope scaling, tied)",
  "llama-linear": "Llama (linear rope scaling, own head_dim)",
  "qwen2": "Qwen2.5",
  "qwen3": "Qwen3",
  "qwen3-moe": "Qwen3-MoE",
  "gemma2": "Gemma 2 (both soft-caps)",
  "gemma3": "Gemma 3",
  "gemma3-linear": "Gemma 3 (linear rope scaling)",
}
TOLERANCE = 2e-4  # of float32 logits
_README = ROOT / "offpolicy_rl" / "model" / "README.md"
_BEGIN, _END = "<!-- parity -->\n", "<!-- end of parity -->\n"


def run_reference(*arguments) -> None:
  """Runs tests/reference/transformers_reference.py in its own environment."""
  script = ROOT / "tests" / "reference" / "transformers_reference.py"
  subprocess.run([PYTHON, script, *map(str, arguments)], check=True, timeout=300)


def shardings_of(config: decoder.DecoderConfig, **mesh):
  """Of the parameters, over a mesh with these axes."""
  return policy.param_shardings(sharding.make_mesh(**mesh), policy.shapes(config))


def open_model(folder: pathlib.Path):
  """(configuration, parameters) of a checkpoint."""
  found = pretrained.Checkpoint(folder)
  return found.config, found.load(shardings_of(found.config))


def answers_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """What transformers said: tokens, lengths, logits, greedy, leads."""
  found = dict(np.load(folder / "answers.npz"))
  return found | {"tokens": found["tokens"].astype(np.int32)}


def gap(logits, answers: dict[str, np.ndarray]) -> float:
  """Largest difference of logits at real tokens."""
  pairs = zip(logits, answers["logits"], answers["lengths"], strict=True)
  return max(float(np.abs(np.asarray(ours[:n]) - theirs[:n]).max()) for ours, theirs, n in pairs)


def forward_logits(config, params, tokens):
  """Of whole, ragged rows at once."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return policy.apply(config, params, tokens, positions)[0]


def cached_logits(config, params, tokens, *, prefill: int = 4):
  """The same, a few tokens first and then one at a time through the cache."""
  rows, width = tokens.shape
  pages = 1 + jnp.arange(rows)[:, None]  # one for each row
  cache = paging.Cache(paging.empty(config, rows + 1, width), pages)
  positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
  step = jax.jit(lambda *args: policy.apply(config, params, *args))
  first, cache = step(tokens[:, :prefill], positions[:, :prefill], cache)
  found = [first]
  for t in range(prefill, width):
    logits, cache = step(tokens[:, t : t + 1], positions[:, t : t + 1], cache)
    found.append(logits)
  return jnp.concatenate(found, axis=1)


def greedy_differences(config, params, answers: dict[str, np.ndarray]) -> tuple[int, int]:
  """(tokens unlike those of transformers, tokens compared).

  A row is compared until two tokens were so close that either would be right.
  """
  rows, new = answers["greedy"].shape
  prompts = [t[:n] for t, n in zip(answers["tokens"], answers["lengths"], strict=True)]
  tickets = [
    types.Ticket(str(i), types.EVAL, 0, i, prompt, "", 0, 0, 1, 0.0)
    for i, prompt in enumerate(prompts[:rows])
  ]
  longest = max(prompt.size for prompt in prompts)
  sizes = sizing.Sizes(
    slots=rows, group_size=1, max_prompt_tokens=longest, max_tokens=new, page_tokens=8
  )
  found = engine.Engine(config, sizes, stops=stopping.Stops((-1,)), seed=0).generate(
    params, 0, tickets
  )
  different = compared = 0
  for ours, theirs, leads in zip(found, answers["greedy"], answers["leads"], strict=True):
    close = np.flatnonzero(leads < 2 * TOLERANCE)
    until = close[0] if close.size else new
    different += int(np.sum(ours[0].tokens[:until] != theirs[:until]))
    compared += int(until)
  return different, compared


def tensors_of(folder: pathlib.Path) -> dict[str, tuple]:
  """Name -> (dtype, shape, bytes) of every tensor of all files."""
  found = {}
  for path in folder.glob("*.safetensors"):
    with safetensors.safe_open(path, "np") as file:
      for name in file.keys():  # noqa: SIM118
        array = file.get_tensor(name)
        found[name] = (array.dtype, array.shape, array.tobytes())
  return found


def bytes_differ(source: pathlib.Path, to: pathlib.Path) -> int:
  """Imports `source`, exports it to `to`; how many tensors are not the same."""
  checkpoint = pretrained.Checkpoint(source)
  params = checkpoint.load(shardings_of(checkpoint.config))
  pretrained.save(to, checkpoint.config, params, checkpoint.dtypes)
  before, after = tensors_of(source), tensors_of(to)
  return sum(before.get(name) != after.get(name) for name in before.keys() | after.keys())


def row(family: str, folder: pathlib.Path) -> str:
  """One family's line of the table."""
  config, params = open_model(folder / family / "model")
  answers = answers_of(folder / family)
  forward = gap(forward_logits(config, params, answers["tokens"]), answers)
  cached = gap(cached_logits(config, params, answers["tokens"]), answers)
  different, compared = greedy_differences(config, params, answers)
  changed = bytes_differ(folder / family / "model", folder / family / "again")
  tensors = len(tensors_of(folder / family / "model"))
  return (
    f"| {FAMILIES[family]} | {forward:.1e} | {cached:.1e} | {compared - different} of {compared} | "
    f"{tensors - changed} of {tensors} |"
  )


def main() -> None:
  """Prints and writes the table."""
  with tempfile.TemporaryDirectory(prefix="parity-") as name:
    folder = pathlib.Path(name)
    run_reference("make", 0, folder)
    lines = [
      "| family | logits | logits, prefill + decode | greedy tokens | tensors, import -> export |",
      "| --- | --- | --- | --- | --- |",
      *(row(family, folder) for family in FAMILIES),
    ]
  table = "\n".join(lines) + "\n"
  print(table)
  before, rest = _README.read_text().split(_BEGIN)
  _README.write_text(before + _BEGIN + table + _END + rest.split(_END)[1])


if __name__ == "__main__":
  main()
