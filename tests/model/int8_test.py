"""Matrices as integers: how far from the real ones they are, and what the decoder makes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import decoder, int8, policy, sharding
from tests.model.decoder_test import CONFIG, positions_of, random_params, tokens_of

MIXTURE = dataclasses.replace(
  CONFIG, num_experts=4, experts_per_token=2, expert_width=16, normalized_router=True
)


def rounded(params: dict) -> dict:
  """The same parameters, matrices rounded to 255 steps per output, in slow numpy."""
  blocks = dict(params["blocks"])
  for name in int8.SUMMED_AXES.keys() & blocks.keys():
    w = np.array(blocks[name], np.float32)
    axes = tuple(i + 1 for i in int8.SUMMED_AXES[name])
    step = np.abs(w).max(axis=axes, keepdims=True) / np.float32(127)
    blocks[name] = jnp.array(np.round(w / step) * step)
  return params | {"blocks": blocks}


@pytest.mark.parametrize("config", [CONFIG, MIXTURE], ids=["dense", "mixture"])
def test_the_decoder_computes_with_the_rounded_matrices(config):
  params, tokens = random_params(config), tokens_of((2, 7))
  coarse = dataclasses.replace(config, int8_weights=True)
  held = int8.quantize(params)
  shape = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shape(held) == shape(policy.shapes(coarse))
  found = policy.apply(coarse, held, tokens, positions_of(tokens))[0]
  expected = policy.apply(config, rounded(params), tokens, positions_of(tokens))[0]
  np.testing.assert_allclose(found, expected, atol=2e-5)
  exact = policy.apply(config, params, tokens, positions_of(tokens))[0]
  assert 1e-4 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_every_matrix_of_a_layer_is_held_in_a_byte_per_number():
  blocks = int8.quantize(random_params(MIXTURE))["blocks"]
  matrices = {name for name, x in blocks.items() if x.ndim > 2 and not name.endswith(int8.SCALE)}
  assert matrices - {"router"} == {name for name, x in blocks.items() if x.dtype == jnp.int8}
  assert int8.SUMMED_AXES.keys() <= set(decoder.PARAM_AXES)


def test_a_matrix_of_zeros_stays_one():
  integers, scale = int8.quantize_matrix(jnp.zeros((3, 2)), (0,))
  assert not np.any(integers) and np.isfinite(scale).all()


def test_integers_and_scales_are_split_like_the_matrices():
  mesh = sharding.make_mesh(tensor=2)
  coarse = dataclasses.replace(CONFIG, int8_weights=True)
  placed = policy.param_shardings(mesh, policy.shapes(coarse))["blocks"]
  shape = policy.shapes(coarse)["blocks"]
  assert placed["w_q"].shard_shape(shape["w_q"].shape) == (3, 32, 2, 8)
  assert placed["w_q" + int8.SCALE].shard_shape(shape["w_q" + int8.SCALE].shape) == (3, 1, 2, 8)
  assert placed["w_o" + int8.SCALE].shard_shape(shape["w_o" + int8.SCALE].shape) == (3, 1, 1, 32)
