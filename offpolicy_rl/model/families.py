"""config.json of a published checkpoint -> the decoder's configuration.

Every key is read, known to be harmless, or refused: a model that computes something slightly else
would train without an error and never be found out.
"""

import dataclasses
from typing import NamedTuple

from offpolicy_rl.model import rope
from offpolicy_rl.model.decoder import DecoderConfig


class Family(NamedTuple):
  """What models of one model_type compute differently from Llama, whatever their config.json."""

  qkv_bias: bool = False  # biases at queries, keys and values
  qk_norm: bool = False  # RMSNorm of every query and key
  experts: bool = False  # in place of every MLP
  gemma: int = 0  # 2 | 3: norms on both sides, scaled embeddings, local layers, GeGLU
  window_switch: bool = False  # use_sliding_window says whether sliding_window means anything


# model_type -> Family
FAMILIES = {
  "llama": Family(),
  "qwen2": Family(qkv_bias=True, window_switch=True),
  "qwen3": Family(qk_norm=True, window_switch=True),
  "qwen3_moe": Family(qk_norm=True, experts=True, window_switch=True),
  "gemma2": Family(gemma=2),
  "gemma3_text": Family(gemma=3, qk_norm=True),
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Keys that do not change what a forward pass computes.
_HARMLESS = {
  "_attn_implementation_autoset", "_name_or_path", "_sliding_window_pattern", "architectures",
  "attention_dropout", "attn_implementation", "bos_token_id", "cache_implementation",
  "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label", "initializer_range",
  "is_encoder_decoder", "label2id", "max_position_embeddings", "max_window_layers",
  "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
  "pretraining_tp", "problem_type", "return_dict", "router_aux_loss_coef", "sliding_window_pattern",
  "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
# Keys that may be there with one value only.
_FIXED = {
  "attention_bias": False,  # of all four projections; Qwen2's bias of three is its own
  "mlp_bias": False,
  "use_bidirectional_attention": False,
  "use_sliding_window": False,
  "decoder_sparse_step": 1,  # every layer has experts
  "mlp_only_layers": [],
}


# Key of our own, written by the import: unknown keys that its user knows to change nothing.
IGNORED = "offpolicy_rl_ignored_keys"


class UnsupportedModel(ValueError):
  """Lists everything in a config.json that the decoder does not compute."""


@dataclasses.dataclass
class _Reader:
  """Reads keys once each and collects what is wrong."""

  keys: dict
  seen: set[str]
  problems: list[str]

  def get(self, *names: str, default=None):
    """The first of these keys that is there and not null; without a default, one must be."""
    self.seen.update(names)
    found = [self.keys[name] for name in names if self.keys.get(name) is not None]
    if not found and default is None:
      self.problems.append(f"{names[0]}: missing")
      return 1  # only to go on and find more
    return found[0] if found else default

  def refuse(self, key: str, value, expected: str) -> None:
    """Notes a value that the decoder can't do."""
    self.problems.append(f"{key}: got {value!r}, supported: {expected}")


def read(keys: dict) -> DecoderConfig:
  """The architecture that a parsed config.json describes.

  Unknown keys that the list under `IGNORED` names do not matter.

  Raises:
    UnsupportedModel: lists every key that is missing, unknown, or asks for something else.
  """
  r = _Reader(keys, {"model_type"}, [])
  if str(keys.get("model_type")) not in FAMILIES:
    r.refuse("model_type", keys.get("model_type"), ", ".join(FAMILIES))
    raise _unsupported(r)
  family = FAMILIES[keys["model_type"]]
  gemma = bool(family.gemma)
  width, heads = r.get("hidden_size"), r.get("num_attention_heads")
  head_dim = r.get("head_dim", default=width // heads)
  layers = r.get("num_hidden_layers")
  activation = r.get("hidden_activation" if gemma else "hidden_act")
  if activation not in _ACTIVATIONS:
    r.refuse("hidden_act", activation, ", ".join(_ACTIVATIONS))
  local_layers, window = _local_layers(r, layers, family.gemma) if gemma else ((), 0)
  theta, scaling, local_theta = _rotations(r, family.gemma)
  config = DecoderConfig(
    vocab_size=r.get("vocab_size"),
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=r.get("num_key_value_heads", default=heads),
    head_dim=head_dim,
    mlp_width=r.get("intermediate_size"),
    rope_theta=float(theta),
    norm_eps=float(r.get("rms_norm_eps")),
    tied_embeddings=bool(r.get("tie_word_embeddings", default=gemma)),
    scaled_embeddings=gemma,
    activation=_ACTIVATIONS.get(activation, "silu"),
    qkv_bias=family.qkv_bias,
    qk_norm=family.qk_norm,
    norm_offset=1.0 if gemma else 0.0,
    post_norms=gemma,
    rope_scaling=scaling,
    local_layers=local_layers,
    sliding_window=window,
    local_rope_theta=float(local_theta),
    query_scale=r.get("query_pre_attn_scalar", default=head_dim) ** -0.5 if gemma else 0.0,
    attention_softcap=float(r.get("attn_logit_softcapping", default=0.0)),
    logit_softcap=float(r.get("final_logit_softcapping", default=0.0)),
    **(_experts(r) if family.experts else {}),
  )
  if family.gemma == 3 and config.attention_softcap:  # transformers reads the key and does nothing
    r.refuse("attn_logit_softcapping", config.attention_softcap, "null")
  _refuse_the_rest(r, family)
  if r.problems:
    raise _unsupported(r)
  return config


def _experts(r: _Reader) -> dict:
  return {
    "num_experts": r.get("num_experts", "num_local_experts"),
    "experts_per_token": r.get("num_experts_per_tok"),
    "expert_width": r.get("moe_intermediate_size"),
    "normalized_router": bool(r.get("norm_topk_prob", default=False)),
  }


def _unsupported(r: _Reader) -> UnsupportedModel:
  return UnsupportedModel("config.json: " + "; ".join(r.problems))


def _refuse_the_rest(r: _Reader, family: Family) -> None:
  for key, only in _FIXED.items():
    if r.keys.get(key) not in (None, only):
      r.refuse(key, r.keys[key], str(only))
  if family.window_switch or r.keys.get("sliding_window") is None:
    r.seen.update(("sliding_window", "layer_types"))  # written, but not used
  ignored = {IGNORED, *r.get(IGNORED, default=())}
  unknown = sorted(r.keys.keys() - r.seen - _HARMLESS - _FIXED.keys() - ignored)
  if unknown:
    r.problems.append(
      f"unknown keys {unknown} (--ignore=KEY for those that do not change what the model computes)"
    )


def _local_layers(r: _Reader, layers: int, gemma: int) -> tuple[tuple[bool, ...], int]:
  """Which layers see a window only, and its size: as a list, or every n-th one sees everything."""
  usual = 2 if gemma == 2 else 6
  every = r.get("_sliding_window_pattern", "sliding_window_pattern", default=usual)
  plain = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]
  kinds = r.get("layer_types", default=plain)
  if len(kinds) != layers or set(kinds) - {"full_attention", "sliding_attention"}:
    r.refuse("layer_types", kinds, f"{layers} times full_attention or sliding_attention")
  return tuple(kind == "sliding_attention" for kind in kinds), r.get("sliding_window")


def _rotations(r: _Reader, gemma: int) -> tuple[float, rope.Scaling | None, float]:
  """(theta, its scaling, theta of local layers), in the spelling of transformers 4 or 5."""
  new = r.get("rope_parameters", default={})
  old_theta = r.get("rope_theta", default=0.0)
  old_scaling = r.get("rope_scaling", default={})
  old_local = r.get("rope_local_base_freq", default=10_000.0)
  if not new:
    if not old_theta:
      r.problems.append("rope_theta: missing")
    local = {0: 0.0, 2: old_theta, 3: old_local}[gemma]
    return old_theta, _scaling(r, "rope_scaling", old_scaling), local
  whole = new.get("full_attention", new)
  theta = whole.get("rope_theta", old_theta)
  local = new.get("sliding_attention", {"rope_theta": theta})
  if _scaling(r, "rope_parameters.sliding_attention", local) is not None:
    r.refuse("rope_parameters.sliding_attention", local, "rope_type default")
  scaling = _scaling(r, "rope_parameters", whole)
  return theta, scaling, local["rope_theta"] if gemma else 0.0


def _scaling(r: _Reader, key: str, given: dict) -> rope.Scaling | None:
  kind = given.get("rope_type", given.get("type", "default"))
  known = {"rope_type", "type", "rope_theta"}
  found = None
  if kind == "linear":
    known |= {"factor"}
    found = rope.Scaling("linear", float(given.get("factor", 1.0)))
  elif kind == "llama3":
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    known |= set(names)
    missing = [name for name in names if name not in given]
    if missing:
      r.problems.append(f"{key}: {missing} missing")
    else:
      found = rope.Scaling("llama3", *(float(given[n]) for n in names[:3]), int(given[names[3]]))
  elif kind != "default":
    r.refuse(f"{key}.rope_type", kind, "default, linear, llama3")
    return None
  if given.keys() - known:
    r.problems.append(f"{key}: unknown keys {sorted(given.keys() - known)}")
  return found
