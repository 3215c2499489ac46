"""Architectures by name: `width` is the residual stream, `mlp_width` the MLP's hidden layer."""

from ml_collections import config_dict

_PRESETS = {
  "tiny": dict(num_layers=2, width=64, num_heads=8, num_kv_heads=8, head_dim=8, mlp_width=192),
  "small": dict(num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=384),
}


def preset(name: str) -> config_dict.ConfigDict:
  """A fresh ConfigDict with every key of the model."""
  if name not in _PRESETS:
    raise ValueError(f"model preset: {name!r}, expected one of {sorted(_PRESETS)}")
  # theta: the slowest rotation should turn visibly within a row. 30 fits rows of tens of tokens;
  # long rows want the usual 10,000 and more.
  common = dict(rope_theta=30.0, norm_eps=1e-6, tied_embeddings=True)
  return config_dict.ConfigDict({**_PRESETS[name], **common})
