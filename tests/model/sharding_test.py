"""Meshes and layouts on eight virtual devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import paging, policy, sharding
from tests.model.decoder_test import CONFIG
from tests.rows import whole_rows


def test_a_mesh_that_needs_too_many_devices_is_refused():
  shape = "data=4 x fsdp=4 x tensor=1 x expert=1"
  with pytest.raises(ValueError, match=f"mesh: {shape} needs 16 devices, this machine has 8"):
    sharding.make_mesh(4, 4, 1)


def test_logical_axes_become_mesh_axes():
  assert sharding.spec("batch", None, "heads") == P(("data", "fsdp", "expert"), None, "tensor")
  assert sharding.spec("vocab", "embed") == P("tensor", "fsdp")


def test_state_is_born_sharded():
  mesh = sharding.make_mesh(2, 2, 2)
  state = state_lib.create(
    CONFIG, mesh, state_lib.make_optimizer(learning_rate=1e-3, num_steps=9), seed=0
  )
  expected = {
    "embedding": (24, 16),
    "blocks/w_q": (3, 16, 2, 8),
    "blocks/w_k": (3, 16, 1, 8),
    "blocks/w_down": (3, 32, 16),
    "final_norm": (32,),
  }
  moments = next(
    s
    for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    if hasattr(s, "mu")
  )
  for tree in (state.params, moments.mu, moments.nu):
    flat = policy.flatten(tree)
    for name, shard in expected.items():
      assert flat[name].sharding.shard_shape(flat[name].shape) == shard, name


def test_constrain_does_nothing_without_a_mesh():
  x = jnp.ones((3, 5))
  assert sharding.constrain(x, "batch", "embed") is x


def by_rows(mesh):
  return jax.sharding.NamedSharding(mesh, sharding.spec("batch", None))


def test_a_sharded_forward_pass_equals_the_plain_one():
  params = policy.init(CONFIG, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, CONFIG.vocab_size)
  plain = policy.token_stats(CONFIG, params, whole_rows(tokens), 1.0)
  mesh = sharding.make_mesh(2, 2, 2)
  placed = jax.device_put(params, policy.param_shardings(mesh, params))
  with jax.sharding.set_mesh(mesh):
    rows = jax.device_put(whole_rows(tokens), by_rows(mesh))
    stats = jax.jit(policy.token_stats, static_argnums=(0, 3))(CONFIG, placed, rows, 1.0)
  assert stats.logprobs.sharding.shard_shape((4, 5)) == (1, 5)
  assert jnp.allclose(stats.logprobs, plain.logprobs, atol=1e-5)
  assert jnp.allclose(stats.entropy, plain.entropy, atol=1e-5)


def test_the_cache_has_the_shape_of_the_configuration():
  pool = paging.empty(CONFIG, pages=5, page_tokens=9)
  assert pool.k_LxYxKxSxC.shape == pool.v_LxYxKxSxC.shape == (3, 5, 2, 9, 8)
