"""Published checkpoints against transformers: logits, cache, greedy tokens, bytes; and bad ones."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from offpolicy_rl.model import decoder, policy, pretrained, sharding
from offpolicy_rl.sampler import engine
from tests.model.conftest import run_reference

FAMILIES = (
  "llama", "llama-scaled", "llama-linear", "qwen2", "qwen3", "qwen3-moe", "gemma2", "gemma3",
  "gemma3-linear",
)  # fmt: skip
TOLERANCE = 2e-4  # of float32 logits


def shardings_of(config, **mesh):
  shapes = jax.eval_shape(lambda: policy.init(config, jax.random.key(0)))
  return policy.param_shardings(sharding.make_mesh(**mesh), shapes)


def opened(folder):
  """(configuration, parameters) of a checkpoint."""
  found = pretrained.Checkpoint(folder)
  return found.config, found.load(shardings_of(found.config))


def answers_of(folder):
  found = np.load(folder / "answers.npz")
  return found["tokens"].astype(np.int32), found["lengths"], found["logits"], found


def worst(logits, expected, lengths):
  gaps = [np.abs(np.asarray(logits[i, :n]) - expected[i, :n]).max() for i, n in enumerate(lengths)]
  return max(gaps)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(reference, family):
  config, params = opened(reference / family / "model")
  tokens, lengths, expected, _ = answers_of(reference / family)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  logits, _ = policy.apply(config, params, tokens, positions)
  assert worst(logits, expected, lengths) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode_equal_the_full_forward_pass(reference, family):
  config, params = opened(reference / family / "model")
  tokens, lengths, expected, _ = answers_of(reference / family)
  rows, width = tokens.shape
  half = 4  # shorter than every row
  cache = decoder.empty_cache(config, rows, width)
  positions = jnp.broadcast_to(jnp.arange(width), tokens.shape)
  step = jax.jit(lambda *args: policy.apply(config, params, *args))
  first, cache = step(tokens[:, :half], positions[:, :half], cache)
  found = [first]
  for t in range(half, width):
    logits, cache = step(tokens[:, t : t + 1], positions[:, t : t + 1], cache)
    found.append(logits)
  assert worst(jnp.concatenate(found, axis=1), expected, lengths) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(reference, family):
  config, params = opened(reference / family / "model")
  tokens, lengths, _, answers = answers_of(reference / family)
  rows, new = answers["greedy"].shape
  requests = engine.Requests(
    tokens[:rows], lengths[:rows], jnp.arange(rows), jax.random.split(jax.random.key(0), rows),
    jnp.zeros(rows), jnp.ones(rows, bool),
  )  # fmt: skip
  found = engine.generate(config, params, requests, max_tokens=new, eos=-1)
  for i in range(rows):
    close = np.flatnonzero(answers["leads"][i] < 2 * TOLERANCE)  # either token would be right
    until = close[0] if close.size else new
    np.testing.assert_array_equal(found.tokens[i, :until], answers["greedy"][i, :until])


@pytest.mark.parametrize("family", FAMILIES)
def test_import_and_export_return_the_same_bytes(reference, family, tmp_path):
  source = reference / family / "model"
  checkpoint = pretrained.Checkpoint(source)
  params = checkpoint.load(shardings_of(checkpoint.config))
  pretrained.save(tmp_path, checkpoint.config, params, checkpoint.dtypes)
  assert tensors_of(tmp_path) == tensors_of(source)


def tensors_of(folder):
  """Name -> (dtype, shape, bytes) of every tensor of all files."""
  found = {}
  for path in folder.glob("*.safetensors"):
    with safetensors.safe_open(path, "np") as file:
      for name in file.keys():  # noqa: SIM118
        array = file.get_tensor(name)
        found[name] = (array.dtype, array.shape, array.tobytes())
  return found


def test_bfloat16_in_several_files_comes_back_as_it_was(reference, tmp_path, monkeypatch):
  rounded = tmp_path / "rounded"
  shutil.copytree(reference / "qwen3" / "model", rounded)
  tensors = {
    name: np.frombuffer(data, dtype).reshape(shape).astype(jnp.bfloat16)
    for name, (dtype, shape, data) in tensors_of(rounded).items()
  }
  safetensors.numpy.save_file(tensors, rounded / pretrained.SINGLE)
  checkpoint = pretrained.Checkpoint(rounded)
  params = checkpoint.load(shardings_of(checkpoint.config))
  monkeypatch.setattr(pretrained, "_SHARD_BYTES", 20_000)
  pretrained.save(tmp_path / "out", checkpoint.config, params, checkpoint.dtypes)
  assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
  assert tensors_of(tmp_path / "out") == tensors_of(rounded)
  shutil.copy(rounded / pretrained.CONFIG, tmp_path / "out")
  _, again = opened(tmp_path / "out")
  assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), params, again))
  index = json.loads((tmp_path / "out" / pretrained.INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(2 * t.size for t in tensors.values())


def test_what_we_export_is_read_by_transformers(reference, tmp_path):
  config, params = opened(reference / "gemma3" / "model")
  params = jax.tree.map(lambda x: x * 1.25, params)
  dtypes = dict.fromkeys(tensors_of(reference / "gemma3" / "model"), "float32")
  pretrained.save(tmp_path / "model", config, params, dtypes)
  shutil.copy(reference / "gemma3" / "model" / pretrained.CONFIG, tmp_path / "model")
  run_reference("answer", tmp_path)
  tokens, lengths, expected, _ = answers_of(tmp_path)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  assert worst(policy.apply(config, params, tokens, positions)[0], expected, lengths) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2", "qwen3-moe"])
def test_every_device_reads_its_own_part(reference, family):
  checkpoint = pretrained.Checkpoint(reference / family / "model")
  plain = checkpoint.load(shardings_of(checkpoint.config))
  split = checkpoint.load(shardings_of(checkpoint.config, fsdp=4, tensor=2))
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), plain, split))
  w_q = split["blocks"]["w_q"]
  assert w_q.addressable_shards[0].data.size == w_q.size // 8


DAMAGE = {
  "files \\['model.safetensors'\\] are missing": lambda d: (d / pretrained.SINGLE).unlink(),
  "config.json: no such file": lambda d: (d / pretrained.CONFIG).unlink(),
  "config.json: no JSON": lambda d: (d / pretrained.CONFIG).write_text("{"),
  "model.norm.weight missing": lambda d: change(d, lambda t: t.pop("model.norm.weight")),
  "model.layers.9.x unexpected": lambda d: change(
    d, lambda t: t.update({"model.layers.9.x": np.zeros(3, np.float32)})
  ),
  r"model.norm.weight: got F32 \[3\], expected \[48\]": lambda d: change(
    d, lambda t: t.update({"model.norm.weight": np.zeros(3, np.float32)})
  ),
  r"model.norm.weight: got I32 \[48\], .* of one of \['BF16', 'F16', 'F32'\]": lambda d: change(
    d, lambda t: t.update({"model.norm.weight": np.zeros(48, np.int32)})
  ),
}


def change(folder, how):
  """Rewrites the tensors of a checkpoint."""
  tensors = safetensors.numpy.load_file(folder / pretrained.SINGLE)
  how(tensors)
  safetensors.numpy.save_file(tensors, folder / pretrained.SINGLE)


@pytest.mark.parametrize("message", DAMAGE)
def test_a_bad_checkpoint_is_refused_by_name(reference, tmp_path, message):
  folder = tmp_path / "model"
  shutil.copytree(reference / "llama" / "model", folder)
  DAMAGE[message](folder)
  with pytest.raises(pretrained.CheckpointError, match=message):
    pretrained.Checkpoint(folder)
