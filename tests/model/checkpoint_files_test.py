"""Files of a checkpoint that somebody else wrote: which are read, how bad ones are refused."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from benchmarks.parity import shardings_of
from offpolicy_rl.model import families, pretrained
from tests.model import config_variants, random_checkpoints

TIED = config_variants.changed("llama", {"tie_word_embeddings": True})
UNTIED = config_variants.changed("llama", {})
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path):
  """A good checkpoint of one file."""
  return random_checkpoints.write(tmp_path / "model", UNTIED)


def save(folder, tensors, name=pretrained.SINGLE):
  safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})


def index(folder, content):
  (folder / pretrained.INDEX).write_text(json.dumps(content))


def split(folder):
  """Two files and their index in place of one; returns the index."""
  tensors = sorted(random_checkpoints.tensors(UNTIED).items())
  (folder / pretrained.SINGLE).unlink()
  files = {"a.safetensors": dict(tensors[::2]), "b.safetensors": dict(tensors[1::2])}
  for name, part in files.items():
    save(folder, part, name)
  weight_map = {tensor: name for name, part in files.items() for tensor in part}
  index(folder, {"metadata": {}, "weight_map": weight_map})
  return weight_map


def embedding(folder):
  checkpoint = pretrained.Checkpoint(folder)
  return checkpoint.load(shardings_of(checkpoint.config))["embedding"]


def test_an_older_index_beside_one_newer_file_is_not_read(folder):
  """As in transformers: a run that saved one file where several were leaves the others behind."""
  split(folder)
  newer = random_checkpoints.tensors(UNTIED, seed=1)
  save(folder, newer)
  np.testing.assert_array_equal(embedding(folder), newer[EMBEDDING])
  assert pretrained.weight_files(folder) == [pretrained.SINGLE]
  index(folder, [])
  pretrained.Checkpoint(folder)


def test_files_of_an_index_are_read_and_others_are_not(folder):
  split(folder)
  save(folder, {"optimizer": np.zeros(3)}, "training_state.safetensors")
  expected = random_checkpoints.tensors(UNTIED)[EMBEDDING]
  np.testing.assert_array_equal(embedding(folder), expected)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ({"metadata": {}}, "weight_map: got None, expected an object of tensor names"),
    ({"weight_map": {}}, "weight_map: got {}, expected an object"),
    ({"weight_map": ["a.safetensors"]}, r"weight_map: got \['a.safetensors'\], expected"),
    ([], r"index.json: got \[\], expected an object"),
    ({"weight_map": {HEAD: 3}}, "weight_map.lm_head.weight: got 3, expected the name of a"),
    ({"weight_map": {HEAD: "../a.safetensors"}}, "weight_map.lm_head.weight: got '../a.safe"),
    ({"weight_map": {HEAD: "/etc/passwd"}}, "weight_map.lm_head.weight: got '/etc/passwd'"),
    ({"weight_map": {HEAD: "a\0.safetensors"}}, "weight_map.lm_head.weight: got 'a"),
    ({"weight_map": {HEAD: "c.safetensors"}}, r"files \['c.safetensors'\] are missing"),
    ({"weight_map": {HEAD: "a.safetensors"}}, "missing"),
  ],
)
def test_a_bad_index_is_refused_by_name(folder, content, message):
  split(folder)
  index(folder, content)
  with pytest.raises(pretrained.PretrainedError, match=message):
    pretrained.Checkpoint(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe{", b"null"])
@pytest.mark.parametrize("name", [pretrained.INDEX, pretrained.CONFIG])
def test_a_file_that_is_no_json_object_is_refused_by_name(folder, name, text):
  split(folder)
  (folder / name).write_bytes(text)
  with pytest.raises(pretrained.PretrainedError, match=f"{name}: (no JSON|got None|.utf-8)"):
    pretrained.Checkpoint(folder)


def test_a_directory_in_the_place_of_a_file_is_refused(folder):
  for name in (pretrained.SINGLE, pretrained.CONFIG):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(pretrained.PretrainedError, match=name):
      pretrained.Checkpoint(folder)


def test_a_tensor_in_two_files_is_refused(folder):
  weight_map = split(folder)
  save(folder, random_checkpoints.tensors(UNTIED), weight_map[HEAD])
  with pytest.raises(pretrained.PretrainedError, match=r"is in [ab].safetensors and in b.safet"):
    pretrained.Checkpoint(folder)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_copy_of_the_embedding_is_no_matrix_of_its_own(tmp_path, dtype, monkeypatch):
  monkeypatch.setattr(pretrained, "_COMPARED", 1000)  # in many parts
  folder = random_checkpoints.write(tmp_path / "model", TIED)
  tensors = {k: v.astype(dtype) for k, v in random_checkpoints.tensors(TIED).items()}
  save(folder, tensors | {HEAD: tensors[EMBEDDING].copy()})
  assert pretrained.Checkpoint(folder).config.tied_embeddings
  other = tensors[EMBEDDING].copy()
  other[-1, -1] += 1  # seen in the last part
  for head in (other, other[1:], other.astype(np.float16)):
    save(folder, tensors | {HEAD: head})
    with pytest.raises(
      pretrained.PretrainedError,
      match="lm_head.weight is not model.embed_tokens.weight, expected a copy of it, or tie_word_",
    ):
      pretrained.Checkpoint(folder)
  (folder / pretrained.CONFIG).write_text(json.dumps(UNTIED))  # what the message says
  save(folder, tensors | {HEAD: other})
  assert not pretrained.Checkpoint(folder).config.tied_embeddings


def test_a_matrix_with_two_names_may_be_kept_under_either(tmp_path):
  """Whatever drops one of two equal names: transformers reads lm_head as both."""
  keys = UNTIED | {"tie_word_embeddings": True}
  folder = random_checkpoints.write(tmp_path / "model", keys)
  tensors = random_checkpoints.tensors(keys)
  expected = tensors.pop(EMBEDDING)
  save(folder, tensors | {HEAD: expected})
  np.testing.assert_array_equal(embedding(folder), expected)
  assert HEAD not in pretrained.Checkpoint(folder).dtypes


def test_a_head_that_is_promised_and_missing_is_refused(tmp_path):
  folder = random_checkpoints.write(tmp_path / "model", TIED)
  (folder / pretrained.CONFIG).write_text(json.dumps(UNTIED))
  with pytest.raises(pretrained.PretrainedError, match="lm_head.weight missing"):
    pretrained.Checkpoint(folder)


def test_buffers_of_old_checkpoints_do_not_matter(folder):
  tensors = random_checkpoints.tensors(UNTIED)
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
  save(folder, tensors)
  pretrained.Checkpoint(folder)
  save(folder, tensors | {"model.layers.0.self_attn.o_proj.bias": np.ones(48, np.float32)})
  with pytest.raises(pretrained.PretrainedError, match="self_attn.o_proj.bias unexpected"):
    pretrained.Checkpoint(folder)


def header_of(data: bytes) -> dict:
  (size,) = struct.unpack("<Q", data[:8])
  return json.loads(data[8 : 8 + size])


def with_header(data: bytes, header) -> bytes:
  (size,) = struct.unpack("<Q", data[:8])
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data[8 + size :]


def bad_files(data: bytes):
  """Weight files that are cut, damaged, or say something odd of one tensor."""
  yield from (data[:n] for n in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1))
  yield data + b"x"
  yield from (struct.pack("<Q", n) + data[8:] for n in (0, 1, 2**31, 2**63, 2**64 - 1))
  yield from (with_header(data, text) for text in (b"", b"{", b"[]", b"null", b"\xff" * 9))
  header = header_of(data)
  for key, values in {
    "dtype": ("F8_E4M3", "F8_E5M2", "I8", "U8", "F64", "I64", "BOOL", "BF16", "X", None, 3, []),
    "shape": ([], [264], [48, 264], [264, 48, 1], [2**40, 2**40], [-1, 48], None, "x", [None]),
    "data_offsets": ([0, 0], [1, 2], [0], [2**63, 2**64], [-4, 0], None, "x", [0, 10**30]),
  }.items():
    for value in values:
      yield with_header(data, header | {HEAD: header[HEAD] | {key: value}})
  yield with_header(data, header | {HEAD: None})
  yield with_header(data, {name: v for name, v in header.items() if name != HEAD})
  yield with_header(data, header | {"\ud800": header[HEAD]})
  yield with_header(data, header | {"__metadata__": {"a": 1}})


def test_a_damaged_weight_file_is_refused_by_name(folder):
  path = folder / pretrained.SINGLE
  data, tried = path.read_bytes(), 0
  for bad in bad_files(data):
    path.write_bytes(bad)
    with pytest.raises(pretrained.PretrainedError, match=r"model.safetensors|lm_head.weight"):
      pretrained.Checkpoint(folder)
    tried += 1
  assert tried > 40
  path.write_bytes(data)
  pretrained.Checkpoint(folder)


def test_quantized_weights_are_refused_by_dtype(folder):
  tensors = random_checkpoints.tensors(UNTIED)
  for dtype, name in ((jnp.float8_e4m3fn, "F8_E4M3"), (np.int8, "I8"), (np.float64, "F64")):
    save(folder, tensors | {HEAD: tensors[HEAD].astype(dtype)})
    with pytest.raises(
      pretrained.PretrainedError, match=rf"{HEAD}: got {name} .* of one of \['BF16', 'F16', 'F32'\]"
    ):
      pretrained.Checkpoint(folder)


def test_every_dtype_that_is_supported_is_read(folder):
  tensors = random_checkpoints.tensors(UNTIED)
  for dtype in (np.float16, jnp.bfloat16):
    save(folder, {name: value.astype(dtype) for name, value in tensors.items()})
    found = embedding(folder)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, tensors[EMBEDDING].astype(dtype).astype(np.float32))


def test_what_is_missing_entirely_is_said(tmp_path):
  with pytest.raises(pretrained.PretrainedError, match="config.json: no such file"):
    pretrained.Checkpoint(tmp_path)
  (tmp_path / pretrained.CONFIG).write_text(json.dumps(UNTIED))
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(
    pretrained.PretrainedError, match=r"files \['model.safetensors'\] are missing; \*.bin files are"
  ):
    pretrained.Checkpoint(tmp_path)


def test_what_else_a_directory_may_hold_is_said(tmp_path):
  (tmp_path / "model-q4.gguf").touch()
  (tmp_path / "snapshots").mkdir()
  with pytest.raises(pretrained.PretrainedError, match=r"reads a GGUF .*; the directories in snap"):
    pretrained.weight_files(tmp_path)


def test_an_adapter_is_not_the_model_alone(folder):
  """transformers puts one beside a model into it."""
  (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
  with pytest.raises(
    pretrained.PretrainedError, match="adapter_config.json: adapters are not read"
  ):
    pretrained.weight_files(folder)


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod."])
def test_names_with_something_before_them_are_shown(folder, prefix):
  tensors = {prefix + name: x for name, x in random_checkpoints.tensors(UNTIED).items()}
  save(folder, tensors)
  expected = f"got tensors like {prefix}lm_head.weight, expected {len(tensors)} like lm_head.weight"
  with pytest.raises(pretrained.PretrainedError, match=expected):
    pretrained.Checkpoint(folder)


def test_a_pointer_of_git_lfs_is_named(folder):
  pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
  (folder / pretrained.SINGLE).write_bytes(pointer)
  with pytest.raises(pretrained.PretrainedError, match="a pointer of Git LFS, `git lfs pull` gets"):
    pretrained.Checkpoint(folder)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
def test_sizes_beyond_all_bounds_are_refused(tmp_path, family):
  keys = config_variants.changed(family, {})
  folder = random_checkpoints.write(tmp_path / "model", keys)
  no_shapes = {"sliding_window", "query_pre_attn_scalar"}
  if family == "qwen3_moe":
    no_shapes.add("intermediate_size")
  sizes = [name for name, value in keys.items() if type(value) is int and name not in no_shapes]
  for name in sizes:
    (folder / pretrained.CONFIG).write_text(json.dumps(keys | {name: 2**31 - 2}))
    with pytest.raises((pretrained.PretrainedError, families.UnsupportedModel)):
      pretrained.Checkpoint(folder)
  (folder / pretrained.CONFIG).write_text(json.dumps(keys | dict.fromkeys(sizes, 2**31 - 2)))
  with pytest.raises((pretrained.PretrainedError, families.UnsupportedModel)):
    pretrained.Checkpoint(folder)
