"""config.json of a published checkpoint -> the decoder's configuration.

A file means what it means to transformers 5, with its defaults for missing keys and its precedence
where two keys say the same. Every key is read, known to be harmless, or refused: a model that
computes something slightly different would train without an error.
"""

from collections.abc import Mapping
from typing import NamedTuple

from offpolicy_rl.model import config_reader, rope_keys
from offpolicy_rl.model.config_reader import FEW, FLAG, NOT_NEGATIVE, POSITIVE, SIZE, Kind, Reader
from offpolicy_rl.model.decoder import DecoderConfig
from offpolicy_rl.model.rope_keys import FULL, LOCAL

# Defaults of transformers for missing keys (`Family.defaults`).
_LLAMA = {
  "vocab_size": 32_000,
  "hidden_size": 4096,
  "intermediate_size": 11_008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "num_key_value_heads": None,
  "head_dim": None,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": False,
  "max_position_embeddings": 2048,
}
_QWEN2 = _LLAMA | {
  "vocab_size": 151_936,
  "intermediate_size": 22_016,
  "num_key_value_heads": 32,
  "max_position_embeddings": 32_768,
}
_QWEN3_MOE = _QWEN2 | {
  "hidden_size": 2048,
  "intermediate_size": 6144,
  "num_hidden_layers": 24,
  "num_key_value_heads": 4,
  "num_experts": 128,
  "num_experts_per_tok": 8,
  "moe_intermediate_size": 768,
  "norm_topk_prob": False,
}
_GEMMA2 = {
  "vocab_size": 256_000,
  "hidden_size": 2304,
  "intermediate_size": 9216,
  "num_hidden_layers": 26,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "hidden_activation": "gelu_pytorch_tanh",
  "rms_norm_eps": 1e-6,
  "tie_word_embeddings": True,
  "max_position_embeddings": 8192,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "final_logit_softcapping": 30.0,
  "attn_logit_softcapping": 50.0,
}
_GEMMA3 = _GEMMA2 | {
  "vocab_size": 262_208,
  "max_position_embeddings": 131_072,
  "sliding_window_pattern": 6,
  "final_logit_softcapping": None,
  "attn_logit_softcapping": None,
}


class Family(NamedTuple):
  """Differences of a model_type from Llama that its config.json does not say."""

  defaults: Mapping = _LLAMA  # of missing keys
  nulls: tuple[str, ...] = ("num_key_value_heads", "head_dim")  # keys that may be null
  qkv_bias: bool = False  # biases at queries, keys and values
  qk_norm: bool = False  # RMSNorm of every query and key
  experts: bool = False  # in place of every MLP
  gemma: int = 0  # 2 | 3: norms on both sides, scaled embeddings, local layers, GeGLU
  window_switch: bool = False  # use_sliding_window says whether sliding_window means anything


_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_NULL_HEADS = ("num_key_value_heads",)
# model_type -> Family
FAMILIES = {
  "llama": Family(),
  "qwen2": Family(_QWEN2, _NULL_HEADS, qkv_bias=True, window_switch=True),
  "qwen3": Family(_QWEN2 | {"head_dim": 128}, _NULL_HEADS, qk_norm=True, window_switch=True),
  "qwen3_moe": Family(_QWEN3_MOE, (), qk_norm=True, experts=True, window_switch=True),
  "gemma2": Family(_GEMMA2, _SOFTCAPS, gemma=2),
  "gemma3_text": Family(_GEMMA3, _SOFTCAPS, gemma=3, qk_norm=True),
}
_ACTIVATIONS = dict.fromkeys(("silu", "swish"), "silu")
_ACTIVATIONS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_new"), "gelu_tanh")
_ACTIVATION = Kind(", ".join(_ACTIVATIONS), lambda x: x in [*_ACTIVATIONS], "silu")


# Keys that do not change what a forward pass computes: of the configuration itself
# (dual_chunk_attention_config is Qwen2.5-1M's, which transformers ignores), ...
_HARMLESS = str.split(
  "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash "
  "_experts_implementation_internal _flash_attn_2_enabled _name_or_path architectures "
  "attention_dropout attn_implementation bos_token_id cache_implementation "
  "chunk_size_feed_forward dual_chunk_attention_config eos_token_id experts_implementation "
  "id2label initializer_range is_encoder_decoder is_llama_config label2id max_position_embeddings "
  "max_sequence_length max_window_layers name_or_path num_labels output_attentions "
  "output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type return_dict "
  "router_aux_loss_coef transformers.js_config transformers_version unsloth_fixed unsloth_version "
  "use_cache"
)
# ... about training or encoders, from transformers 4, ...
_HARMLESS += str.split(
  "add_cross_attention cross_attention_hidden_size decoder_start_token_id finetuning_task "
  "gradient_checkpointing is_decoder neftune_noise_alpha prefix pruned_heads sep_token_id "
  "task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript "
  "use_bfloat16"
)
# ... and about generation, which transformers 5 drops.
_HARMLESS += str.split(
  "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping "
  "encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id "
  "forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups "
  "num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty "
  "return_dict_in_generate suppress_tokens temperature top_k top_p typical_p"
)
# Keys that may have these values only.
_DTYPES = (None, "bfloat16", "float16", "float32")
_FIXED: dict[str, tuple] = {
  "attention_bias": (False,),  # of all four projections; Qwen2's bias of three is its own
  "compression_config": (None,),  # as quantization_config, in older files
  "decoder_sparse_step": (1,),  # every layer has experts
  "dtype": _DTYPES,
  "mlp_bias": (False,),
  "mlp_only_layers": ([], None),
  "partial_rotary_factor": (1.0, 1, None),
  "quantization": (None,),  # as quantization_config, in files of MLX
  "quantization_config": (None,),
  "rope_interleaved": (False, None),
  "shared_expert_intermediate_size": (0,),  # in Qwen3-Coder
  "torch_dtype": _DTYPES,
  "use_bidirectional_attention": (False, None),
  "use_mrope": (False, None),
  "use_sliding_window": (False,),
}
_MOST_EXPERTS = 100_000  # of all layers; each has tensors with names
# Written by the import: unknown keys that the user says change nothing.
IGNORED = "offpolicy_rl_ignored_keys"


class UnsupportedModel(ValueError):
  """Lists everything in a config.json that the decoder does not compute."""


def parse(text: str) -> dict:
  """The keys of a config.json; UnsupportedModel where the text is no JSON object."""
  try:
    return config_reader.parse(text)
  except ValueError as error:
    raise UnsupportedModel(f"config.json: {error}") from None


def read(keys: dict) -> DecoderConfig:
  """The architecture that a parsed config.json describes; keys listed under `IGNORED` are skipped.

  UnsupportedModel lists every key that is unknown or asks for something unsupported.
  """
  name = keys.get("model_type")
  if not isinstance(name, str) or name not in FAMILIES:
    supported = ", ".join(FAMILIES) + (
      "; models of images and text are not, nor their text part" if "text_config" in keys else ""
    )
    raise UnsupportedModel(
      f"config.json: model_type: got {config_reader.abbreviate(name)}, supported: {supported}"
    )
  r = Reader(keys, FAMILIES[name])
  config = _config(r)
  _refuse_the_rest(r)
  if not r.problems:
    _check_shapes(r, config)
  if r.problems:
    raise UnsupportedModel("config.json: " + "; ".join(r.problems))
  return config


def _config(r: Reader) -> DecoderConfig:
  family, gemma = r.family, bool(r.family.gemma)
  width, heads = r.get("hidden_size", SIZE), r.get("num_attention_heads", SIZE)
  layers = r.get("num_hidden_layers", FEW)
  r.get("max_position_embeddings", SIZE)  # not used, but a strange value means an unknown format
  activation = r.get("hidden_activation" if gemma else "hidden_act", _ACTIVATION)
  special = _gemma_keys(r, layers) if gemma else _other_keys(r, layers)
  return DecoderConfig(
    vocab_size=r.get("vocab_size", SIZE),
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=r.get("num_key_value_heads", SIZE) or heads,
    head_dim=r.get("head_dim", SIZE) or width // heads,
    mlp_width=r.get("intermediate_size", SIZE),
    norm_eps=float(r.get("rms_norm_eps", NOT_NEGATIVE)),
    tied_embeddings=bool(r.get("tie_word_embeddings", FLAG)),
    scaled_embeddings=gemma,
    activation=_ACTIVATIONS[activation],
    qkv_bias=family.qkv_bias,
    qk_norm=family.qk_norm,
    norm_offset=1.0 if gemma else 0.0,
    post_norms=gemma,
    **special,
    **(_experts(r) if family.experts else {}),
  )


def _check_shapes(r: Reader, config: DecoderConfig) -> None:
  width, heads, kv_heads = config.width, config.num_heads, config.num_kv_heads
  if width % heads and not r.family.window_switch:  # Qwen alone may
    r.refuse("num_attention_heads", heads, f"a divisor of hidden_size = {width}")
  if heads % kv_heads:
    r.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
  if config.head_dim % 2 or not config.head_dim:
    given = r.keys.get("head_dim") is not None
    from_width = "" if given else " = hidden_size // num_attention_heads"
    r.refuse(f"head_dim{from_width}", config.head_dim, "an even number from 2")
  if config.num_layers * config.num_experts > _MOST_EXPERTS:
    most = f"at most {_MOST_EXPERTS} in all layers"
    r.refuse("num_experts", config.num_experts, most)
  if config.experts_per_token > config.num_experts:
    most = f"at most num_experts = {config.num_experts}"
    r.refuse("num_experts_per_tok", config.experts_per_token, most)


def _other_keys(r: Reader, layers: int) -> dict:
  theta, scaling = rope_keys.shared_rotation(r)
  r.seen.add("layer_types")
  kinds = r.keys.get("layer_types")
  if kinds not in (None, [FULL] * layers):
    r.refuse("layer_types", kinds, f"{layers} times {FULL}")
  if r.family.window_switch or r.keys.get("sliding_window") is None:
    r.seen.add("sliding_window")  # written, but not used
  return {"rope_theta": theta, "rope_scaling": scaling}


def _gemma_keys(r: Reader, layers: int) -> dict:
  version = r.family.gemma
  is_3 = version == 3
  full, local = rope_keys.gemma3_rotations(r) if is_3 else [rope_keys.shared_rotation(r)] * 2
  cap = r.get("attn_logit_softcapping", POSITIVE)
  if is_3 and cap:  # transformers reads the key and does nothing
    r.refuse("attn_logit_softcapping", cap, "None")
  window = r.get("sliding_window", SIZE)
  # hidden_activation counts instead, and in Gemma 2 every second layer is local.
  r.seen |= {"hidden_act", "sliding_window_pattern", "_sliding_window_pattern"}
  if r.keys.get("sliding_window_size") == window:  # in gemma-2-9b, too
    r.seen.add("sliding_window_size")
  return {
    "rope_theta": full[0],
    "rope_scaling": full[1],
    "local_layers": _local_layers(r, version, layers),
    "sliding_window": window,
    "local_rope_theta": local[0],
    "local_rope_scaling": local[1],
    "query_scale": r.get("query_pre_attn_scalar", SIZE) ** -0.5,
    "attention_softcap": float(cap or 0.0),
    "logit_softcap": float(r.get("final_logit_softcapping", POSITIVE) or 0.0),
  }


def _local_layers(r: Reader, version: int, layers: int) -> tuple[bool, ...]:
  """Whether each layer sees a window only: as the list says, else all but every n-th."""
  r.seen.add("layer_types")
  kinds = r.keys.get("layer_types")
  if kinds is None:
    every = 2 if version == 2 else r.get("sliding_window_pattern", FEW)
    return tuple((i + 1) % every != 0 for i in range(layers))
  known = isinstance(kinds, list) and all(kind in (FULL, LOCAL) for kind in kinds)
  if not known or len(kinds) != layers:
    r.refuse("layer_types", kinds, f"{layers} times {FULL} or {LOCAL}")
    return ()
  return tuple(kind == LOCAL for kind in kinds)


def _experts(r: Reader) -> dict:
  r.seen |= {"num_experts", "num_local_experts"}
  name = "num_local_experts" if "num_local_experts" in r.keys else "num_experts"  # which precedes
  experts = r.keys.get(name, r.family.defaults["num_experts"])
  return {
    "num_experts": r.checked(name, experts, FEW),
    "experts_per_token": r.get("num_experts_per_tok", FEW),
    "expert_width": r.get("moe_intermediate_size", SIZE),
    "normalized_router": bool(r.get("norm_topk_prob", FLAG)),
  }


def _refuse_the_rest(r: Reader) -> None:
  family = r.family
  # Some files say this of every model of their family.
  fixed = _FIXED | {"qkv_bias": (family.qkv_bias,), "use_qk_norm": (family.qk_norm,)}
  if family.qkv_bias:  # written by some, read by nobody
    fixed["attention_bias"] = (False, True)
  for key, values in fixed.items():
    value = r.keys.get(key)
    if key in r.keys and not any(type(value) is type(v) and value == v for v in values):
      r.refuse(key, value, " or ".join(map(repr, values)))
  ignored = r.keys.get(IGNORED, [])
  if not isinstance(ignored, list) or not all(isinstance(key, str) for key in ignored):
    r.refuse(IGNORED, ignored, "a list of keys")
    return
  unknown = sorted(r.keys.keys() - r.seen - fixed.keys() - {IGNORED, *_HARMLESS, *ignored})
  if unknown:
    r.problems.append(
      f"unknown keys {unknown} (--ignore=KEY for those that do not change what the model computes)"
    )
