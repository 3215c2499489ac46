"""Published checkpoints against transformers: logits, cache, greedy tokens, bytes; and bad ones."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from benchmarks.parity import (
  FAMILIES,
  TOLERANCE,
  answers_of,
  bytes_differ,
  cached_logits,
  forward_logits,
  gap,
  greedy_differences,
  open_model,
  shardings_of,
  tensors_of,
)
from offpolicy_rl.model import pretrained
from tests.model.conftest import run_reference
from tests.params import some

DECODED = some(["gemma3"], [name for name in FAMILIES if name != "gemma3"])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(reference, family):
  config, params = open_model(reference / family / "model")
  answers = answers_of(reference / family)
  assert gap(forward_logits(config, params, answers["tokens"]), answers) < TOLERANCE


@pytest.mark.parametrize("family", DECODED)
def test_prefill_and_decode_equal_the_full_forward_pass(reference, family):
  config, params = open_model(reference / family / "model")
  answers = answers_of(reference / family)
  assert gap(cached_logits(config, params, answers["tokens"]), answers) < TOLERANCE


@pytest.mark.parametrize("family", some(["gemma3"], ["qwen3-moe"]))
def test_greedy_tokens_are_those_of_transformers(reference, family):
  """The same follows for the other families from the two tests above."""
  config, params = open_model(reference / family / "model")
  different, compared = greedy_differences(config, params, answers_of(reference / family))
  assert different == 0 and compared >= 64


@pytest.mark.parametrize("family", FAMILIES)
def test_import_and_export_return_the_same_bytes(reference, family, tmp_path):
  assert bytes_differ(reference / family / "model", tmp_path) == 0


def test_every_family_of_the_reference_is_asked(reference):
  assert {path.name for path in reference.iterdir()} == FAMILIES.keys()


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
  _, again = open_model(tmp_path / "out")
  assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), params, again))
  index = json.loads((tmp_path / "out" / pretrained.INDEX).read_text())
  assert index["metadata"]["total_size"] == sum(2 * t.size for t in tensors.values())


@pytest.mark.long
def test_what_we_export_is_read_by_transformers(reference, tmp_path):
  config, params = open_model(reference / "gemma3" / "model")
  params = jax.tree.map(lambda x: x * 1.25, params)
  dtypes = dict.fromkeys(tensors_of(reference / "gemma3" / "model"), "float32")
  pretrained.save(tmp_path / "model", config, params, dtypes)
  shutil.copy(reference / "gemma3" / "model" / pretrained.CONFIG, tmp_path / "model")
  run_reference("answer", tmp_path)
  answers = answers_of(tmp_path)
  assert gap(forward_logits(config, params, answers["tokens"]), answers) < TOLERANCE


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
  with pytest.raises(pretrained.PretrainedError, match=message):
    pretrained.Checkpoint(folder)
