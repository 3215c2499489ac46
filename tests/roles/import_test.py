"""`offpolicy-rl import` of files that somebody else wrote: what is taken, and how bad ones end."""

import json

import numpy as np
import pytest
import safetensors.numpy

from offpolicy_rl.cli import main
from offpolicy_rl.model import pretrained
from offpolicy_rl.tasks import tokenizer
from tests.conftest import ROOT
from tests.model import config_variants, random_checkpoints
from tests.tasks.tokenizer_test import Gguf

KEYS = config_variants.changed("llama", {"tie_word_embeddings": True})
EMBEDDING = "model.embed_tokens.weight"


def publish(folder, keys):
  """A small checkpoint with a tokenizer of 261 tokens."""
  random_checkpoints.write(folder, keys)
  tokenizer.write_from_gguf(Gguf(), folder)
  return folder


@pytest.fixture
def source(tmp_path):
  return publish(tmp_path / "source", KEYS)


def run(source, to, *more):
  return main.main(["import", f"--from={source}", f"--to={to}", *more])


def save(folder, name, tensors):
  safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})


def test_only_the_files_that_are_read_are_taken(source, tmp_path):
  tensors = random_checkpoints.tensors(KEYS)
  save(source, "consolidated.safetensors", tensors)  # as Mistral's and Llama's come
  save(source, "model-00001-of-00001.safetensors", tensors)
  index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
  (source / pretrained.INDEX).write_text(json.dumps(index))
  weights = lambda to: sorted(path.name for path in to.glob("*.safetensors*"))
  assert run(source, tmp_path / "single") == 0
  assert weights(tmp_path / "single") == [pretrained.SINGLE]
  (source / pretrained.SINGLE).unlink()
  assert run(source, tmp_path / "indexed") == 0
  assert weights(tmp_path / "indexed") == ["model-00001-of-00001.safetensors", pretrained.INDEX]


def test_brackets_in_the_name_of_a_directory_are_no_pattern(source, tmp_path):
  odd = source.rename(tmp_path / "models [b]*")
  assert run(odd, tmp_path / "to [1-2]") == 0
  assert sorted(p.name for p in (tmp_path / "to [1-2]").iterdir()) == sorted(
    p.name for p in odd.iterdir()
  )


def test_gemma_3_1b_has_one_token_more_than_rows(tmp_path, capsys):
  """<image_soft_token>, 262,144: imported, and refused where a prompt would use it."""
  published = ROOT / "tests" / "data" / "published" / "gemma-3-1b-it" / "config.json"
  keys = random_checkpoints.shrunk(json.loads(published.read_text())) | {"vocab_size": 261}
  source = publish(tmp_path / "source", keys)
  path = source / tokenizer.TOKENIZER
  content = json.loads(path.read_text())
  extra = content["added_tokens"][0] | {"id": 261, "content": "<image_soft_token>"}
  content["added_tokens"].append(extra)
  path.write_text(json.dumps(content))
  assert run(source, tmp_path / "to") == 0
  assert "no prompt may contain: 1, '<image_soft_token>'" in capsys.readouterr().out
  words = tokenizer.Tokenizer(tokenizer.read_files(tmp_path / "to"), vocab_size=261)
  assert words.prompt("1 + 1")
  with pytest.raises(tokenizer.TokenizerError, match="'<image_soft_token>' in .* has id 261, but"):
    words.prompt("<image_soft_token>1 + 1")


def test_text_without_embeddings_is_refused(tmp_path, capsys):
  source = publish(tmp_path / "source", KEYS | {"vocab_size": 260})
  assert run(source, tmp_path / "to") == 1
  assert "got ids up to 260, expected all below vocab_size = 260" in capsys.readouterr().err


def change_config(**keys):
  return lambda d: (d / pretrained.CONFIG).write_text(json.dumps(KEYS | keys))


def change_weights(d, **tensors):
  save(d, pretrained.SINGLE, random_checkpoints.tensors(KEYS) | tensors)


def put(name, data):
  return lambda d: (d / name).write_bytes(data)


def cut(d):
  path = d / pretrained.SINGLE
  path.write_bytes(path.read_bytes()[:-1])


def indexed(content):
  """An index in the place of the one file."""

  def change(d):
    (d / pretrained.SINGLE).unlink()
    (d / pretrained.INDEX).write_text(json.dumps(content))

  return change


BAD = {
  "config.json: no JSON": put(pretrained.CONFIG, b"{"),
  "config.json: no JSON: maximum": put(pretrained.CONFIG, b"[" * 100_000),
  "config.json: 'utf-8'": put(pretrained.CONFIG, b"\xff\xfe"),
  "config.json: got [1], expected an object": put(pretrained.CONFIG, b"[1]"),
  "config.json: no such file": lambda d: (d / pretrained.CONFIG).unlink(),
  "model_type: got ['llama']": change_config(model_type=["llama"]),
  "quantization_config: got {'quant_method': 'fp8'}, supported: None": change_config(
    quantization_config={"quant_method": "fp8"}
  ),
  "num_attention_heads: got 0": change_config(num_attention_heads=0),
  "rope_scaling: got 'linear', supported: an object": change_config(rope_scaling="linear"),
  "torch_dtype: got 'auto'": change_config(torch_dtype="auto"),
  "no complete safetensors file": cut,
  "weight_map: got None": indexed({"metadata": {}}),
  "weight_map.a: got '../../etc/passwd'": indexed({"weight_map": {"a": "../../etc/passwd"}}),
  "files ['b.safetensors'] are missing": indexed({"weight_map": {"a": "b.safetensors"}}),
  f"{EMBEDDING}: got I8": lambda d: change_weights(d, **{EMBEDDING: np.zeros((264, 48), np.int8)}),
  "lm_head.weight is not model.embed_tokens.weight": lambda d: change_weights(
    d, **{"lm_head.weight": np.zeros((264, 48), np.float32)}
  ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_ends_with_one_line(source, tmp_path, capsys, message):
  BAD[message](source)
  assert run(source, tmp_path / "to") == 1
  said = capsys.readouterr().err
  assert said.startswith("offpolicy-rl import: ") and said.count("\n") == 1
  assert message in said
  assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("model.gguf", b"GGUF", "no complete GGUF file"),
    ("model.gguf", b"", "no complete GGUF file"),
    ("model.safetensors", b"", "is no directory and no .gguf file"),
    ("missing.gguf", None, "no complete GGUF file"),
    ("missing", None, "is no directory and no .gguf file"),
  ],
)
def test_what_is_no_checkpoint_ends_with_one_line(tmp_path, capsys, name, data, message):
  if data is not None:
    (tmp_path / name).write_bytes(data)
  before = sorted(tmp_path.iterdir())
  assert run(tmp_path / name, tmp_path / "to") == 1
  said = capsys.readouterr().err
  assert message in said and said.count("\n") == 1
  assert sorted(tmp_path.iterdir()) == before


def test_ignoring_a_key_of_a_file_that_is_none(source, tmp_path, capsys):
  put(pretrained.CONFIG, b"null")(source)
  assert run(source, tmp_path / "to", "--ignore=mup") == 1
  assert "config.json: got None, expected an object" in capsys.readouterr().err
