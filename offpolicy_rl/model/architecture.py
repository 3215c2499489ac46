"""The configuration of a decoder."""

import dataclasses

from offpolicy_rl.model import rope


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture. The fields without a default are keys of `config.model`."""

  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float
  norm_eps: float
  tied_embeddings: bool
  # Differences between published models.
  scaled_embeddings: bool = True  # embeddings are multiplied by sqrt(width): ours, Gemma
  activation: str = "silu"  # of the MLP's gate: "silu" (SwiGLU) | "gelu_tanh" (GeGLU)
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # RMSNorm of every query and key: Qwen3, Gemma 3
  norm_offset: float = 0.0  # added to the scales of norms: 1 in Gemma
  post_norms: bool = False  # norms after attention and MLP, too: Gemma
  rope_scaling: rope.Scaling | None = None  # of the layers that see everything
  local_layers: tuple[bool, ...] = ()  # per layer: sees only the last `sliding_window` tokens
  sliding_window: int = 0  # tokens, the present one included
  local_rope_theta: float = 0.0  # of local layers
  local_rope_scaling: rope.Scaling | None = None
  query_scale: float = 0.0  # of attention scores; 0 = head_dim**-0.5
  attention_softcap: float = 0.0  # scores become cap * tanh(scores / cap); 0 = not
  logit_softcap: float = 0.0  # the same for logits
  # Mixture of experts in place of every MLP; 0 experts = none.
  num_experts: int = 0
  experts_per_token: int = 0
  expert_width: int = 0
  normalized_router: bool = False  # weights of a token's experts add up to 1
  # How it is computed, which is no part of the architecture.
  compute_dtype: str = "float32"  # of weights, activations and cache; logits are always float32
  remat: str = "none"  # what the backward pass computes a second time: a key of names.REMAT
  attention: str = "plain"  # a form of `attention`
  int8_weights: bool = False  # matrices of the layers are held as integers (int8.py)
  # Adapters (lora.py); rank 0 = none.
  lora_rank: int = 0
  lora_alpha: float = 0.0
  lora_targets: tuple[str, ...] = ()  # of names.LORA_INPUT_AXES
