"""Checkpoints of random weights under any config.json, without PyTorch."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from offpolicy_rl.model import families, pretrained

SIZES = {
  "vocab_size": 264,
  "hidden_size": 48,
  "intermediate_size": 80,
  "num_attention_heads": 6,
  "head_dim": 16,
  "num_experts": 6,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 24,
}


def shrunk(keys: dict) -> dict:
  """A published config.json with every key kept, and sizes of a random model."""
  gemma = keys["model_type"].startswith("gemma")
  layers = 7 if gemma else 2  # one more than the pattern of Gemma 3
  groups = keys["num_attention_heads"] // keys["num_key_value_heads"]
  sizes = SIZES | {"num_hidden_layers": layers, "num_key_value_heads": {1: 6, 4: 1}.get(groups, 2)}
  if gemma:
    sizes |= {"sliding_window": 5, "sliding_window_size": 5}
  if "layer_types" in keys:
    sizes |= {"layer_types": keys["layer_types"][:layers]}
  for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
    if name in keys:
      ids = keys[name]
      sizes[name] = [i % 64 for i in ids] if isinstance(ids, list) else ids % 64
  return keys | {key: value for key, value in sizes.items() if key in keys}


def tensors(keys: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Published names -> float32 values, none of them 0 or 1 by default."""
  config, draw = families.read(keys), np.random.default_rng(seed)
  found = {}
  for name, shape in pretrained.tensor_shapes(config).items():
    usual = 1.0 - config.norm_offset if "norm" in name else 0.0
    spread = 0.15 if len(shape) == 1 else shape[-1] ** -0.5
    found[name] = (usual + spread * draw.normal(size=shape)).astype(np.float32)
  return found


def write(folder: pathlib.Path, keys: dict) -> pathlib.Path:
  """config.json and model.safetensors; returns the folder."""
  folder.mkdir(parents=True)
  (folder / pretrained.CONFIG).write_text(json.dumps(keys))
  safetensors.numpy.save_file(tensors(keys), folder / pretrained.SINGLE, {"format": "pt"})
  return folder
