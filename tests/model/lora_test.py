"""Adapters: fresh ones change nothing, merged ones compute the same, gradients follow the chain."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from offpolicy_rl import config as config_lib
from offpolicy_rl.model import lora, names, policy, sharding
from tests.model.decoder_test import CONFIG, random_params
from tests.model.sharding_test import by_rows
from tests.rows import whole_rows

RANK = 3
ADAPTED = dataclasses.replace(
  CONFIG, lora_rank=RANK, lora_alpha=6.0, lora_targets=tuple(names.LORA_INPUT_AXES)
)
TOKENS = np.random.default_rng(1).integers(CONFIG.vocab_size, size=(3, 7), dtype=np.int32)
VARIANTS = {
  "all": {"qkv_bias": True, "tied_embeddings": False},
  "gemma": {"post_norms": True, "qk_norm": True, "norm_offset": 1.0, "activation": "gelu_tanh"},
  "experts": {
    "num_experts": 4,
    "experts_per_token": 2,
    "expert_width": 24,
    "lora_targets": ("w_k", "w_o"),
  },
}


def logits(config, params):
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  return policy.apply(config, params, TOKENS, positions)[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_fresh_adapters_change_no_bit(name):
  config = dataclasses.replace(ADAPTED, **VARIANTS[name])
  whole = policy.init(config, jax.random.key(0))
  base, adapters = lora.split(whole)
  assert policy.shapes(lora.base_config(config)) == jax.eval_shape(lambda: base)
  plain = logits(lora.base_config(config), base)
  np.testing.assert_array_equal(logits(config, whole), plain)
  merged = lora.merge(config, base, adapters)
  for target, x in policy.flatten(merged).items():
    np.testing.assert_array_equal(x, policy.flatten(base)[target])


@pytest.mark.parametrize("name", VARIANTS)
def test_merged_adapters_compute_the_same(name):
  config = dataclasses.replace(ADAPTED, **VARIANTS[name])
  whole = random_params(config)
  base, adapters = lora.split(whole)
  beside, merged = logits(config, whole), lora.merge(config, base, adapters)
  assert policy.shapes(lora.base_config(config)) == jax.eval_shape(lambda: merged)
  np.testing.assert_allclose(logits(lora.base_config(config), merged), beside, atol=5e-5)
  assert np.abs(beside - logits(lora.base_config(config), base)).max() > 0.1
  changed = {k for k, x in policy.flatten(merged).items() if x is not policy.flatten(base)[k]}
  assert changed == {f"blocks/{target}" for target in config.lora_targets}


def test_merging_is_w_plus_alpha_over_rank_a_b():
  base, adapters = lora.split(random_params(ADAPTED))
  merged = lora.merge(ADAPTED, base, adapters)["blocks"]
  for name, inputs in names.LORA_INPUT_AXES.items():
    w = np.asarray(base["blocks"][name], np.float64)
    a, b = (np.asarray(adapters["blocks"][name + x], np.float64) for x in (lora.A, lora.B))
    for layer in range(CONFIG.num_layers):
      product = a[layer].reshape(-1, RANK) @ b[layer].reshape(RANK, -1)
      assert a[layer].ndim == inputs + 1
      expected = w[layer] + 6 / 3 * product.reshape(w[layer].shape)
      np.testing.assert_allclose(merged[name][layer], expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_whole_weights_by_the_chain_rule():
  """W' = W + s A B: dA = s G B', dB = s A' G with G the gradient at W', in float64."""
  base, adapters = lora.split(random_params(ADAPTED))
  weight = jax.random.normal(jax.random.key(2), (*TOKENS.shape, CONFIG.vocab_size))
  gradient = lambda f: jax.jit(jax.grad(f))
  of_adapters = gradient(lambda a: jnp.sum(weight * logits(ADAPTED, lora.join(base, a))))(adapters)
  merged = lora.merge(ADAPTED, base, adapters)
  of_weights = gradient(lambda p: jnp.sum(weight * logits(CONFIG, p)))(merged)
  for name in names.LORA_INPUT_AXES:
    a, b = (np.asarray(adapters["blocks"][name + x], np.float64) for x in (lora.A, lora.B))
    for layer in range(CONFIG.num_layers):
      flat_a, flat_b = a[layer].reshape(-1, RANK), b[layer].reshape(RANK, -1)
      g = np.asarray(of_weights["blocks"][name][layer], np.float64)
      g = g.reshape(len(flat_a), flat_b.shape[1])
      expected = {lora.A: 2 * g @ flat_b.T, lora.B: 2 * flat_a.T @ g}
      for part, value in expected.items():
        found = np.asarray(of_adapters["blocks"][name + part][layer])
        np.testing.assert_allclose(
          found, value.reshape(found.shape), rtol=1e-3, atol=1e-4 * np.abs(value).max()
        )


def test_splitting_and_joining_copies_nothing():
  whole = random_params(ADAPTED)
  base, adapters = lora.split(whole)
  again = policy.flatten(lora.join(base, adapters))
  assert all(again[name] is x for name, x in policy.flatten(whole).items())
  count = sum(math.prod(x.shape) for x in policy.flatten(adapters).values())
  matrices = {
    "w_q": (32, 32),
    "w_k": (32, 16),
    "w_v": (32, 16),
    "w_o": (32, 32),
    "w_gate": (32, 64),
    "w_up": (32, 64),
    "w_down": (64, 32),
  }
  assert count == CONFIG.num_layers * RANK * sum(i + o for i, o in matrices.values())


def test_adapters_are_split_like_their_matrices_and_compute_the_same():
  whole = random_params(ADAPTED)
  mesh = sharding.make_mesh(2, 2, 2)
  placed = jax.device_put(whole, policy.param_shardings(mesh, whole))
  specs = {name: x.sharding.spec for name, x in policy.flatten(placed).items()}
  assert specs["blocks/w_q_lora_a"] == P(None, "fsdp", None)
  assert specs["blocks/w_k_lora_b"] == P(None, None, "tensor", None)
  assert specs["blocks/w_o_lora_a"] == P(None, "tensor", None, None)
  assert specs["blocks/w_o_lora_b"] == P(None, None, "fsdp")
  assert specs["blocks/w_down_lora_a"] == P(None, "tensor", None)
  tokens = whole_rows(jnp.tile(TOKENS[:2], (2, 1)))
  plain = policy.token_stats(ADAPTED, whole, tokens, 1.0)
  with jax.sharding.set_mesh(mesh):
    rows = jax.device_put(tokens, by_rows(mesh))
    stats = jax.jit(policy.token_stats, static_argnums=(0, 3))(ADAPTED, placed, rows, 1.0)
  np.testing.assert_allclose(stats.logprobs, plain.logprobs, atol=5e-5)


def test_the_configuration_names_the_targets(tiny_config):
  for wrong in ("", "w_q,w_x", "w_q, w_k"):
    config_lib.override(tiny_config, [("model.lora_targets", wrong)])
    with pytest.raises(config_lib.ConfigError, match=r"model.lora_targets: got .*, expected some"):
      config_lib.validate(tiny_config)
