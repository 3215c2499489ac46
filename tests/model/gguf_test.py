"""GGUF files written by the gguf package: names, order of rows, dequantised values; bad ones."""

import gguf
import numpy as np
import pytest

from offpolicy_rl.model import families, gguf_files

WIDTH, HEADS, KV_HEADS, WORDS = 64, 4, 2, 40


def tensors():
  draw = np.random.default_rng(0)
  shapes = {
    "token_embd.weight": (WORDS, WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH),
    "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, 96),
  }
  return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, arrays, architecture="llama", leave_out=(), **settings):
  """`settings`: further keys by their methods of the writer, or over those that are there."""
  writer = gguf.GGUFWriter(path, architecture)
  plain = {
    "block_count": 1,
    "embedding_length": WIDTH,
    "feed_forward_length": 96,
    "head_count": HEADS,
    "head_count_kv": KV_HEADS,
    "layer_norm_rms_eps": 1e-5,
    "rope_freq_base": 1e4,
    "context_length": 128,
    "token_list": [f"t{i}" for i in range(WORDS)],
  }
  for key in plain.keys() - set(leave_out):
    getattr(writer, f"add_{key}")(plain[key])
  for key, value in settings.items():
    if isinstance(value, tuple):  # a name, perhaps of one of the above
      writer.kv_data[0].pop(value[0], None)
    getattr(writer, f"add_{key}")(*(value if isinstance(value, tuple) else (value,)))
  for name, array in arrays.items():
    if name == "blk.0.ffn_down.weight":
      kind = gguf.GGMLQuantizationType.Q8_0
      writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def interleaved(rows, heads):
  """What converters to GGUF do to Llama's Q and K: channel i and i + C/2 become neighbours."""
  out = np.empty_like(rows)
  channels = rows.shape[0] // heads
  for head in range(heads):
    for i in range(channels // 2):
      out[head * channels + 2 * i] = rows[head * channels + i]
      out[head * channels + 2 * i + 1] = rows[head * channels + i + channels // 2]
  return out


def test_llama_is_read_under_its_usual_names_with_its_rows_in_order(tmp_path):
  plain = tensors()
  stored = dict(plain)
  stored["blk.0.attn_q.weight"] = interleaved(plain["blk.0.attn_q.weight"], HEADS)
  stored["blk.0.attn_k.weight"] = interleaved(plain["blk.0.attn_k.weight"], KV_HEADS)
  file = gguf_files.GgufFile(write(tmp_path / "f.gguf", stored))
  found = dict(file.tensors())
  attention = "model.layers.0.self_attn."
  np.testing.assert_array_equal(found["model.embed_tokens.weight"], plain["token_embd.weight"])
  np.testing.assert_array_equal(found[attention + "q_proj.weight"], plain["blk.0.attn_q.weight"])
  np.testing.assert_array_equal(found[attention + "k_proj.weight"], plain["blk.0.attn_k.weight"])
  down = plain["blk.0.ffn_down.weight"]
  error = np.abs(found["model.layers.0.mlp.down_proj.weight"] - down).max()
  assert 0 < error <= np.abs(down).max() / 127  # 8 bits
  config = families.read(file.config_json())
  assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (HEADS, KV_HEADS, WORDS)
  assert config.tied_embeddings and config.rope_theta == 1e4


def test_qwen_keeps_its_rows_and_its_biases(tmp_path):
  given = tensors() | {"blk.0.attn_q.bias": np.arange(WIDTH, dtype=np.float32)}
  file = gguf_files.GgufFile(write(tmp_path / "f.gguf", given, "qwen2", key_length=32))
  found = dict(file.tensors())
  name = "model.layers.0.self_attn.q_proj."
  np.testing.assert_array_equal(found[name + "weight"], given["blk.0.attn_q.weight"])
  np.testing.assert_array_equal(found[name + "bias"], given["blk.0.attn_q.bias"])
  config = families.read(file.config_json())
  assert config.qkv_bias and config.head_dim == 32


def test_what_a_file_leaves_out_follows_from_its_sizes(tmp_path):
  """Not from the defaults of the family's config.json, which has 32 and 128."""
  given = tensors() | {"token_embd.weight": np.zeros((WORDS + 3, WIDTH), np.float32)}
  path = write(tmp_path / "f.gguf", given, "qwen3", leave_out=("head_count_kv", "rope_freq_base"))
  config = families.read(gguf_files.GgufFile(path).config_json())
  assert (config.num_kv_heads, config.head_dim, config.rope_theta) == (HEADS, WIDTH // HEADS, 1e4)
  assert config.vocab_size == WORDS + 3  # rows, of which some have no token


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"rope_dimension_count": 8}, "llama.rope.dimension_count: got 8, supported: 16, the channels"),
    ({"value_length": 8}, "llama.attention.value_length: got 8, supported: 16"),
    ({"attention_scale": 0.5}, r"unknown keys \['llama.attention.scale'\]"),
    ({"expert_count": 8}, r"unknown keys \['llama.expert_count'\]"),
    ({"sliding_window": 8}, r"unknown keys \['llama.attention.sliding_window'\]"),
    ({"rope_scaling_type": gguf.RopeScalingType.LINEAR}, "rope scaling 'linear' is not read"),
    ({"float32": ("llama.rope.scale_linear", 4.0)}, r"unknown keys \['llama.rope.scale_linear'\]"),
    ({"uint16": ("split.count", 3)}, "split.count: got 3, supported: 1"),
    ({"array": ("llama.block_count", [1, 1])}, r"num_hidden_layers: got \[1, 1\]"),
    ({"string": ("llama.embedding_length", "64")}, "hidden_size: got '64', supported"),
    ({"uint32": ("llama.attention.head_count", 0)}, "num_attention_heads: got 0, supported"),
    ({"uint32": ("llama.attention.head_count_kv", 3)}, "num_key_value_heads: got 3, supported"),
    ({"array": ("general.architecture", ["llama"])}, r"general.architecture: got \['llama'\]"),
  ],
)
def test_what_changes_the_computation_is_refused_by_key(tmp_path, settings, message):
  path = write(tmp_path / "f.gguf", tensors(), **settings)
  with pytest.raises((gguf_files.GgufError, families.UnsupportedModel), match=message):
    gguf_files.GgufFile(path).config_json()


def test_rows_that_are_no_whole_heads_are_refused_by_name(tmp_path):
  given = tensors() | {"blk.0.attn_k.weight": np.ones((3, WIDTH), np.float32)}
  with pytest.raises(gguf_files.GgufError, match="tensor 'blk.0.attn_k.weight': cannot reshape"):
    dict(gguf_files.GgufFile(write(tmp_path / "f.gguf", given)).tensors())
  odd = {"blk.x.attn_k.weight": np.zeros(3, np.float32), "blk.0.weight": np.zeros(3, np.float32)}
  for name, values in odd.items():
    file = gguf_files.GgufFile(write(tmp_path / f"{name}.gguf", {name: values}))
    with pytest.raises(gguf_files.GgufError, match=f"tensor '{name}' has no place in llama"):
      dict(file.tensors())


def test_what_is_not_covered_is_refused_by_name(tmp_path):
  with pytest.raises(gguf_files.GgufError, match="architecture: got 'mamba', supported: .*llama"):
    gguf_files.GgufFile(write(tmp_path / "a.gguf", tensors(), "mamba"))
  odd = write(tmp_path / "b.gguf", {"blk.0.gizmo.weight": np.zeros(3, np.float32)})
  with pytest.raises(gguf_files.GgufError, match=r"tensor 'blk.0.gizmo.weight' has no place"):
    dict(gguf_files.GgufFile(odd).tensors())
  long = write(tmp_path / "c.gguf", tensors() | {"rope_freqs.weight": np.ones(8, np.float32)})
  with pytest.raises(
    gguf_files.GgufError, match="tensor 'rope_freqs.weight' is not read, expected no"
  ):
    gguf_files.GgufFile(long).config_json()


def test_bytes_that_are_no_gguf_file_are_refused(tmp_path):
  (tmp_path / "f.gguf").write_bytes(b"something else altogether" * 10)
  with pytest.raises(gguf_files.GgufError, match="f.gguf: no complete GGUF file"):
    gguf_files.GgufFile(tmp_path / "f.gguf")
  whole = write(tmp_path / "w.gguf", tensors()).read_bytes()
  for length in (0, 3, 4, 8, 20, 100, 200, 400, len(whole) // 2, len(whole) - 100):
    (tmp_path / "cut.gguf").write_bytes(whole[:length])
    with pytest.raises(gguf_files.GgufError, match="cut.gguf: no complete GGUF file"):
      gguf_files.GgufFile(tmp_path / "cut.gguf")
