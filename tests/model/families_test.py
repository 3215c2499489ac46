"""config.json of the families, in the spelling of transformers 4 and 5; everything else refused."""

import dataclasses

import numpy as np
import pytest

from offpolicy_rl.model import families, rope
from tests.model import config_variants

LLAMA = {  # as transformers 4 wrote it
  "model_type": "llama",
  "hidden_size": 64,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "num_hidden_layers": 3,
  "intermediate_size": 128,
  "vocab_size": 100,
  "rms_norm_eps": 1e-5,
  "hidden_act": "silu",
  "rope_theta": 500_000.0,
  "tie_word_embeddings": False,
  "attention_bias": False,
  "mlp_bias": False,
  "torch_dtype": "bfloat16",
  "pretraining_tp": 1,
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
GEMMA3 = {
  **LLAMA,
  "model_type": "gemma3_text",
  "hidden_activation": "gelu_pytorch_tanh",
  "head_dim": 32,
  "query_pre_attn_scalar": 256,
  "sliding_window": 512,
  "rope_local_base_freq": 10_000.0,
  "num_hidden_layers": 7,
  "sliding_window_pattern": 6,
  "rope_scaling": None,
}
del GEMMA3["hidden_act"], GEMMA3["tie_word_embeddings"]


def test_llama():
  found = families.read(LLAMA)
  assert (found.width, found.head_dim, found.num_kv_heads, found.mlp_width) == (64, 16, 2, 128)
  assert (found.rope_theta, found.norm_eps, found.rope_scaling) == (500_000.0, 1e-5, None)
  assert not (found.tied_embeddings or found.scaled_embeddings or found.qkv_bias or found.qk_norm)


def test_both_spellings_mean_the_same():
  old = families.read({**LLAMA, "rope_scaling": LLAMA3})
  new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
  new["rope_parameters"] = {**LLAMA3, "rope_theta": 500_000.0}
  assert families.read(new) == old
  assert old.rope_scaling == rope.Scaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_gemma3_in_the_old_spelling():
  found = families.read(GEMMA3)
  assert found.local_layers == (True,) * 5 + (False, True)
  assert (found.sliding_window, found.local_rope_theta) == (512, 10_000.0)
  assert (found.query_scale, found.norm_offset) == (1 / 16, 1.0)
  assert found.tied_embeddings and found.scaled_embeddings and found.post_norms and found.qk_norm


def test_what_only_qwen2_and_qwen3_have():
  plain = families.read(LLAMA)
  qwen2 = families.read(
    {
      **LLAMA,
      "model_type": "qwen2",
      "use_sliding_window": False,
      "sliding_window": 4096,
      "max_window_layers": 21,
    }
  )
  assert qwen2 == dataclasses.replace(plain, qkv_bias=True)
  qwen3 = families.read({**LLAMA, "model_type": "qwen3", "head_dim": 16})
  assert qwen3 == dataclasses.replace(plain, qk_norm=True)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "mistral"}, "model_type: got 'mistral', supported: llama, qwen2"),
    ({"model_type": None}, "model_type: got None"),
    ({"hidden_size": None, "num_attention_heads": 1}, "hidden_size: got None, supported: an int"),
    ({"hidden_act": "relu"}, "hidden_act: got 'relu', supported: silu"),
    ({"attention_bias": True}, "attention_bias: got True, supported: False"),
    ({"rope_theta": None}, "rope_theta: got None, supported: a positive number"),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling.rope_type: got 'yarn'"),
    ({"rope_scaling": {"type": "llama3", "factor": 4}}, "'low_freq_factor'.* missing"),
    ({"rope_scaling": {"type": "linear", "factor": 4, "x": 1}}, r"unknown keys \['x'\]"),
    ({"attention_sinks": 4, "mup": 1}, r"unknown keys \['attention_sinks', 'mup'\] \(--ignore"),
    ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window: got True"),
    ({"sliding_window": 4096}, r"unknown keys \['sliding_window'\]"),
    ({"model_type": ["llama"]}, r"model_type: got \['llama'\], supported: llama, qwen2"),
    (
      {"model_type": "gemma3", "text_config": GEMMA3},
      "model_type: got 'gemma3', supported: .*gemma3_text; models of images and text are not",
    ),
  ],
)
def test_what_the_decoder_does_not_compute_is_refused(change, message):
  with pytest.raises(families.UnsupportedModel, match=message):
    families.read({**LLAMA, **change})


def test_all_problems_are_listed_at_once_and_harmless_keys_can_be_named():
  with pytest.raises(families.UnsupportedModel, match=r"hidden_act.*mlp_bias.*\['mup'\]"):
    families.read({**LLAMA, "hidden_act": "relu", "mlp_bias": True, "mup": 2})
  assert families.read({**LLAMA, "mup": 2, families.IGNORED: ["mup"]}) == families.read(LLAMA)


def test_a_softcap_that_transformers_ignores_is_refused():
  with pytest.raises(families.UnsupportedModel, match="attn_logit_softcapping: got 50.0"):
    families.read({**GEMMA3, "attn_logit_softcapping": 50.0})


def test_a_whole_number_is_a_number():
  """As files that went through JavaScript or jq have it, though transformers 5 minds."""
  whole = {**GEMMA3, "rms_norm_eps": 1, "final_logit_softcapping": 30}
  assert families.read(whole) == families.read(
    {**GEMMA3, "rms_norm_eps": 1.0, "final_logit_softcapping": 30.0}
  )


@pytest.mark.parametrize(
  "text", ["", "{", "[" * 100_000, "\ufeff{}", "[1]", "null", '"llama"', "3"]
)
def test_what_is_no_json_object_is_refused(text):
  with pytest.raises(families.UnsupportedModel, match="config.json: (no JSON|got .*an object)"):
    families.parse(text)


# What may stand in a file that somebody else wrote: in the place of each value, inside objects too.
ODD = (
  None,
  True,
  False,
  0,
  1,
  -1,
  3,
  2**63,
  10**400,
  -1.5,
  0.0,
  1e-320,
  1e308,
  float("nan"),
  float("inf"),
  "",
  "1",
  "silu",
  "\ud800",
  [],
  [1],
  ["full_attention"] * 3,
  [None],
  [[]],
  {},
  {"a": 1},
  {"full_attention": 1},
  {"rope_type": []},
)


def places(value, path=()):
  """Paths of everything inside nested objects."""
  for key, inner in value.items() if isinstance(value, dict) else ():
    yield (*path, key)
    yield from places(inner, (*path, key))


def put(value, path, new):
  """A copy with something else at the path."""
  return {**value, path[0]: put(value[path[0]], path[1:], new) if path[1:] else new}


@pytest.mark.parametrize("family", config_variants.BASES)
def test_whatever_a_key_holds_only_unsupported_model_is_raised(family):
  both = {"full_attention": {**LLAMA3, "rope_theta": 9.0}, "sliding_attention": {"rope_theta": 3.0}}
  more = {
    "rope_parameters": both if family == "gemma3_text" else both["full_attention"],
    "rope_scaling": LLAMA3,
    families.IGNORED: ["mup"],
    "torch_dtype": "bfloat16",
  }
  usual = {k: v for k, v in families.FAMILIES[family].defaults.items() if v is not None}
  base = config_variants.changed(family, usual)
  base |= {"rope_theta": 9.0, "layer_types": None, "quantization_config": None}
  tried = read = 0
  for given in (base, base | more):
    families.read(given)
    for path in places(given):
      for value in ODD:
        tried += 1
        try:
          config = families.read(put(given, path, value))
          read += 1
        except families.UnsupportedModel as error:
          assert path[0] in str(error) or "unknown" in str(error)
          continue
        turns = rope.frequencies(config.rope_theta, 2, config.rope_scaling)
        assert hash(config) and np.isfinite(turns).all() and config.head_dim >= 2
  assert tried > 1000 and 0 < read < tried / 2
