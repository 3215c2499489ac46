"""Kernels and savings: the same values and gradients, however they are computed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import attention, names, policy, sharding
from offpolicy_rl.replay import packing
from tests.model.decoder_test import CONFIG, random_params
from tests.params import some
from tests.replay.packing_test import COMPLETION, PROMPT, completions_of
from tests.rows import cache_of_rows

LOCAL = dataclasses.replace(
  CONFIG, local_layers=(True, False, True), sliding_window=4, local_rope_theta=100.0
)


def packed_rows(columns=24):
  """Four rows of several prompts, completions and padding."""
  limits = packing.Limits(packing.PACKED, PROMPT, COMPLETION, columns, shards=4)
  groups = [(6, [5, 4, 1]), (2, [3, 3, 5, 2]), (5, [1, 5])]
  return jax.tree.map(lambda x: x[0], packing.lay_out([completions_of(groups, seed=3)], limits)[0])


def judged(config, params, rows):
  """A scalar that depends on every log-probability and entropy, and its gradient."""
  weights = np.random.default_rng(0).normal(size=(2, *rows.targets.shape)).astype(np.float32)
  # Scored columns that stand for nothing: their source is the first token of the row.
  weights *= np.asarray(rows.sources > 0)[None]

  def total(params):
    stats = policy.token_stats(config, params, rows, 0.8)
    known = (stats.logprobs, stats.entropy)
    return sum(jnp.sum(w * x) for w, x in zip(weights, known, strict=True)), stats

  return jax.jit(jax.value_and_grad(total, has_aux=True))(params)


def assert_same(a, b, rtol=1e-4, atol=2e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize(
  "config",
  some([LOCAL], [CONFIG, dataclasses.replace(CONFIG, attention_softcap=2.0)]),
  ids=["local", "global", "softcap"],
)
def test_the_kernel_of_the_tpu_computes_the_same(config):
  params, rows = random_params(config), packed_rows()
  splash = dataclasses.replace(config, attention=attention.SPLASH_INTERPRETED)
  assert_same(judged(splash, params, rows), judged(config, params, rows))


def test_the_kernel_works_on_every_shard_by_itself():
  params, rows, mesh = random_params(LOCAL), packed_rows(), sharding.make_mesh(2, 2, 2)
  splash = dataclasses.replace(LOCAL, attention=attention.SPLASH_INTERPRETED)
  plain = judged(LOCAL, params, rows)
  with jax.sharding.set_mesh(mesh):
    placed = jax.device_put(params, policy.param_shardings(mesh, params))
    split = jax.device_put(rows, jax.NamedSharding(mesh, sharding.spec("batch", None)))
    assert_same(judged(splash, placed, split), plain)


def test_the_mesh_decides_which_kernel_is_used():
  best = functools.partial(attention.training_kernel, head_dim=64)
  assert best("cpu", compute_dtype="bfloat16", branches=False) == "plain"
  assert best("tpu", compute_dtype="float32", branches=False) == "splash"
  assert best("tpu", compute_dtype="bfloat16", branches=True) == "plain"
  assert best("gpu", compute_dtype="bfloat16", branches=True) == "cudnn"
  assert best("gpu", compute_dtype="float32", branches=False) == "plain"
  for size in (20, 256):  # cuDNN refuses them on some GPU
    assert best("gpu", compute_dtype="bfloat16", head_dim=size, branches=True) == "plain"


@pytest.mark.parametrize("length", [12, 13])
def test_an_even_number_of_columns_changes_nothing(length):
  draw = np.random.default_rng(0)
  q = jnp.asarray(draw.normal(size=(2, length, 4, 8)), jnp.float32)
  k, v = jnp.asarray(draw.normal(size=(2, 2, length, 2, 8)), jnp.float32)
  visible = jnp.asarray(draw.random((2, length, length)) < 0.5) | jnp.eye(length, dtype=bool)[None]
  plain = lambda *x: jnp.sum(
    jnp.sin(jax.nn.dot_product_attention(*x, mask=visible[:, None], scale=0.3))
  )
  even = lambda *x: jnp.sum(jnp.sin(attention._even(*x, visible, 0.3, "xla")))
  assert_same(*(jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (even, plain)))


@pytest.mark.parametrize("name", some(["full"], ["dots"]))
def test_what_is_computed_again_is_the_same_and_saves_memory(name):
  params, rows = random_params(CONFIG), packed_rows()
  again = dataclasses.replace(CONFIG, remat=name)
  assert_same(judged(again, params, rows), judged(CONFIG, params, rows), rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_the_more_is_computed_again_the_less_is_kept():
  wide = dataclasses.replace(CONFIG, num_layers=8)
  limits = packing.Limits(packing.PADDED, 32, 96, 128)
  completions = [packing.Completion(i, np.zeros(32, int), np.zeros(96, int)) for i in range(8)]
  rows = jax.tree.map(lambda x: x[0], packing.lay_out([completions], limits)[0])

  def temporary_bytes(remat):
    config = dataclasses.replace(wide, remat=remat)
    total = lambda p: jnp.sum(policy.token_stats(config, p, rows, 1.0, chunk=8).logprobs)
    compiled = jax.jit(jax.grad(total)).lower(policy.shapes(config)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = map(temporary_bytes, names.REMAT)
  assert none > 1.3 * dots and dots > 1.3 * full


def test_bfloat16_is_used_inside_and_float32_comes_out():
  params, rows = random_params(CONFIG), packed_rows()
  coarse = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
  (_, stats), gradient = judged(coarse, params, rows)
  (_, exact), exact_gradient = judged(CONFIG, params, rows)
  assert {x.dtype for x in jax.tree.leaves((stats, gradient))} == {np.dtype("float32")}
  gap = np.abs(stats.logprobs - exact.logprobs)[np.asarray(rows.sources) > 0]
  assert 1e-5 < gap.max() < 0.3  # bfloat16 has 8 bits; the same order of magnitude, not the same
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  a, b = flat(gradient), flat(exact_gradient)
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99
  cache = cache_of_rows(coarse, 2, 4)
  assert cache.pool.k_LxYxKxSxC.dtype == "bfloat16"
