"""Checkpoints of random weights under any config.json, without PyTorch."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from offpolicy_rl.model import families, pretrained


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
