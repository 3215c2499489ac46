"""GGUF files, dequantised, as published checkpoints: config.json and tensors by their usual names.

The `gguf` package (extra "gguf") reads and dequantises. GGUF files of Llama store the rows of Q and
K in the order of interleaved rotations; here they return to the half-split order.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from offpolicy_rl.model import families

_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # general.architecture, which is also the model_type
_KEYS = {  # config.json -> metadata after "ARCHITECTURE."
  "num_hidden_layers": "block_count",
  "hidden_size": "embedding_length",
  "intermediate_size": "feed_forward_length",
  "num_attention_heads": "attention.head_count",
  "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
  "head_dim": "attention.key_length",
  "max_position_embeddings": "context_length",
  "num_key_value_heads": "attention.head_count_kv",
  "rope_theta": "rope.freq_base",
}
_SCALING = "rope.scaling.type"
_ROPE_FACTORS = "rope_freqs.weight"  # the scaling of Llama 3.1, worked out
# They change nothing; the last three only as long as nothing is scaled.
_HARMLESS = {
  "vocab_size",
  "tensor_data_layout",
  "rope.scaling.factor",
  "rope.scaling.finetuned",
  "rope.scaling.original_context_length",
}
_HEAD_DIMS = ("rope.dimension_count", "attention.value_length")  # all channels, not some
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
    """Raises GgufError for a file that is not GGUF, or an architecture that is not covered."""
    try:
      import gguf
    except ImportError:
      raise GgufError(f"{path}: reading GGUF needs `pip install offpolicy-rl[gguf]`") from None
    self._gguf, self._path = gguf, path
    try:
      self._reader = gguf.GGUFReader(path)
      self._metadata = {key: field.contents() for key, field in self._reader.fields.items()}
    except Exception as error:  # it raises whatever its parsing runs into
      raise GgufError(f"{path}: no complete GGUF file: {error}") from None
    self.architecture = self.get("general.architecture")
    if not isinstance(self.architecture, str) or self.architecture not in _ARCHITECTURES:
      raise GgufError(
        f"{path}: general.architecture: got {self.architecture!r}, supported: {[*_ARCHITECTURES]}"
      )
    if self.get("split.count", 1) != 1:
      raise GgufError(
        f"{path}: split.count: got {self.get('split.count')}, supported: 1 (`gguf-split --merge` "
        "joins the files)"
      )

  def get(self, key: str, default: Any = None) -> Any:
    """A value of the metadata; GgufError where it is missing without a default."""
    value = self._metadata.get(key, default)
    if value is None:
      raise GgufError(f"{self._path}: {key} missing")
    return value

  def config_json(self) -> dict:
    """The keys of its config.json.

    Raises:
      GgufError: a key or tensor is missing, unknown, or not supported.
      families.UnsupportedModel: a size is out of range.
    """
    prefix = f"{self.architecture}."
    present = {k.removeprefix(prefix): k for k in self._metadata if k.startswith(prefix)}
    scaling = self.get(prefix + _SCALING, "none")
    rows = {tensor.name: int(tensor.shape[-1]) for tensor in self._reader.tensors}
    if scaling != "none":
      raise GgufError(f"{self._path}: rope scaling {scaling!r} is not read, supported: none")
    if _ROPE_FACTORS in rows:
      raise GgufError(
        f"{self._path}: tensor {_ROPE_FACTORS!r} is not read, expected no rope scaling; Llama 3.1 "
        "and later can be imported from their *.safetensors"
      )
    if "token_embd.weight" not in rows:
      raise GgufError(f"{self._path}: tensor 'token_embd.weight' missing")
    known = {*_KEYS.values(), *_OPTIONAL.values(), *_HARMLESS, *_HEAD_DIMS, _SCALING}
    unknown = sorted(present[key] for key in present.keys() - known)
    if unknown:
      raise GgufError(f"{self._path}: unknown keys {unknown}")
    keys = _KEYS | {name: key for name, key in _OPTIONAL.items() if key in present}
    config = {name: self.get(prefix + key) for name, key in keys.items()}
    # Missing sizes follow from the others, as in a config.json of Qwen2.
    sizes = families.read({"num_key_value_heads": None} | config | {"model_type": "qwen2"})
    config |= {
      "num_key_value_heads": sizes.num_kv_heads,
      "head_dim": sizes.head_dim,
      "model_type": self.architecture,
      "hidden_act": "silu",
      "vocab_size": rows["token_embd.weight"],
      "tie_word_embeddings": "output.weight" not in rows,
      "torch_dtype": "float32",
    }
    for key in _HEAD_DIMS:
      if key in present and self.get(prefix + key) != sizes.head_dim:
        raise GgufError(
          f"{self._path}: {prefix}{key}: got {self.get(prefix + key)}, supported: "
          f"{sizes.head_dim}, the channels of a head"
        )
    return config

  def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
    """Published name and float32 values of every tensor."""
    for tensor in self._reader.tensors:
      name = self._published(tensor.name)
      try:
        values = self._gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        yield name, self._in_order(name, values)
      except (ValueError, NotImplementedError) as error:
        raise GgufError(f"{self._path}: tensor {tensor.name!r}: {error}") from None

  def _in_order(self, name: str, values: np.ndarray) -> np.ndarray:
    if self.architecture != "llama" or not (".q_proj." in name or ".k_proj." in name):
      return values
    heads = self.get("llama.attention.head_count")
    if ".k_proj." in name:
      heads = self.get("llama.attention.head_count_kv", heads)
    # Pairs of rows are interleaved -> first halves of all pairs, then second halves.
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)

  def _published(self, name: str) -> str:
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*?)(?:\.(\w+))?", name, re.S)
    assert parts is not None, "every text matches"
    layer, stem, kind = parts.groups()
    place = _NAMES.get(stem, "")
    if not place or kind not in ("weight", "bias") or (layer is None) == ("{}" in place):
      raise GgufError(f"{self._path}: tensor {name!r} has no place in {self.architecture}")
    return f"{place.format(layer)}.{kind}"
