"""config.json of the published models in cards, as on huggingface.co in 2025.

With them `offpolicy-rl plan` needs no checkpoint.
"""

_QWEN3 = {
  "model_type": "qwen3",
  "hidden_act": "silu",
  "head_dim": 128,
  "num_key_value_heads": 8,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1_000_000,
  "attention_bias": False,
  "vocab_size": 151_936,
  "max_position_embeddings": 40_960,
  "sliding_window": None,
  "rope_scaling": None,
}


def _qwen3(width: int, layers: int, heads: int, mlp: int, *, tied: bool) -> dict:
  return _QWEN3 | {
    "hidden_size": width,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "intermediate_size": mlp,
    "tie_word_embeddings": tied,
  }


KNOWN = {
  "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
  "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
  "qwen3-8b": _qwen3(4096, 36, 32, 12_288, tied=False),
  "qwen3-32b": _qwen3(5120, 64, 64, 25_600, tied=False),
  "qwen3-30b-a3b": _qwen3(2048, 48, 32, 6144, tied=False)
  | {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
  },
}
