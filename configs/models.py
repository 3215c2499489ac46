"""Architectures by name. `width` is the residual stream, `mlp_width` the hidden layer of the MLP."""

from ml_collections import config_dict

_PRESETS = {
  "tiny": dict(num_layers=2, width=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=192),
  "small": dict(num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=384),
}


def preset(name: str) -> config_dict.ConfigDict:
  """A fresh ConfigDict with every key of the model."""
  if name not in _PRESETS:
    raise ValueError(f"model preset: {name!r}, expected one of {sorted(_PRESETS)}")
  common = dict(rope_theta=10_000.0, norm_eps=1e-6, tied_embeddings=True)
  return config_dict.ConfigDict({**_PRESETS[name], **common})
