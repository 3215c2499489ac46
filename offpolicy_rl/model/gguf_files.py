"""GGUF files, dequantised, as published checkpoints: config.json, tensors by their usual names.

The `gguf` package (extra "gguf") reads and dequantises. GGUF files of Llama keep the rows of Q and
K in the order of interleaved rotations; they are put back in the half-split order here.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

_SAME_ROWS = {"qwen2": "qwen2", "qwen3": "qwen3"}
_FAMILIES = {"llama": "llama", **_SAME_ROWS}  # general.architecture -> model_type
_KEYS = {  # config.json -> metadata after "ARCHITECTURE."
  "num_hidden_layers": "block_count",
  "hidden_size": "embedding_length",
  "intermediate_size": "feed_forward_length",
  "num_attention_heads": "attention.head_count",
  "num_key_value_heads": "attention.head_count_kv",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
  "rope_theta": "rope.freq_base",
  "max_position_embeddings": "context_length",
}
_OPTIONAL = {"head_dim": "attention.key_length"}
_NAMES = {  # theirs -> published; {} is the layer
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "model.layers.{}.input_layernorm",
  "attn_q": "model.layers.{}.self_attn.q_proj",
  "attn_k": "model.layers.{}.self_attn.k_proj",
  "attn_v": "model.layers.{}.self_attn.v_proj",
  "attn_q_norm": "model.layers.{}.self_attn.q_norm",
  "attn_k_norm": "model.layers.{}.self_attn.k_norm",
  "attn_output": "model.layers.{}.self_attn.o_proj",
  "ffn_norm": "model.layers.{}.post_attention_layernorm",
  "ffn_gate": "model.layers.{}.mlp.gate_proj",
  "ffn_up": "model.layers.{}.mlp.up_proj",
  "ffn_down": "model.layers.{}.mlp.down_proj",
}


class GgufError(ValueError):
  """A GGUF file that can't be turned into a checkpoint; names the key or tensor."""


class GgufFile:
  """An opened GGUF file."""

  def __init__(self, path: pathlib.Path):
    """Raises GgufError for a file that is none, or whose architecture is not covered."""
    try:
      import gguf
    except ImportError:
      raise GgufError(f"{path}: reading GGUF needs `pip install offpolicy-rl[gguf]`") from None
    self._gguf, self._path = gguf, path
    try:
      self._reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
      raise GgufError(f"{path}: no GGUF file: {error}") from None
    self.architecture = self.get("general.architecture")
    if self.architecture not in _FAMILIES:
      raise GgufError(
        f"{path}: general.architecture: got {self.architecture!r}, supported: {sorted(_FAMILIES)}"
      )

  def get(self, key: str, default=None):
    """A value of the metadata; GgufError when it is not there and has no default."""
    field = self._reader.get_field(key)
    if field is not None:
      return field.contents()
    if default is None:
      raise GgufError(f"{self._path}: {key} missing")
    return default

  def config_json(self) -> dict:
    """What its config.json would say."""
    prefix = f"{self.architecture}."
    scaling = self.get(prefix + "rope.scaling.type", "none")
    if scaling != "none" or any(t.name == "rope_freqs.weight" for t in self._reader.tensors):
      raise GgufError(f"{self._path}: rope scaling {scaling!r} is not read, supported: none")
    found = {name: self.get(prefix + key) for name, key in _KEYS.items()}
    keys = self._reader.fields
    found |= {n: self.get(prefix + k) for n, k in _OPTIONAL.items() if prefix + k in keys}
    names = {tensor.name for tensor in self._reader.tensors}
    return found | {
      "model_type": _FAMILIES[self.architecture],
      "hidden_act": "silu",
      "vocab_size": len(self.get("tokenizer.ggml.tokens")),
      "tie_word_embeddings": "output.weight" not in names,
      "torch_dtype": "float32",
    }

  def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
    """Published name and float32 values of every tensor."""
    for tensor in self._reader.tensors:
      values = self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
      name = self._published(tensor.name)
      if self.architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = "head_count_kv" if ".k_proj." in name else "head_count"
        values = _half_split(values, self.get(f"llama.attention.{heads}"))
      yield name, values

  def _published(self, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = ""
    if stem.startswith("blk."):
      _, layer, stem = stem.split(".", 2)
    if stem not in _NAMES or kind not in ("weight", "bias"):
      raise GgufError(f"{self._path}: tensor {name!r} has no place in {self.architecture}")
    return f"{_NAMES[stem].format(layer)}.{kind}"


def _half_split(rows: np.ndarray, heads: int) -> np.ndarray:
  """Rows of a projection, pairs interleaved -> first halves of all pairs, then the second ones."""
  pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
  return pairs.swapaxes(1, 2).reshape(rows.shape)
