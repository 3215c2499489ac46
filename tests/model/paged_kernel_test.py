"""The TPU's kernel for decoding, simulated, against plain attention to the cache."""

import dataclasses
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import attention, decoder, paged_kernel, paging, policy, sharding
from offpolicy_rl.sampler import sizing
from tests.model.decoder_test import CONFIG, random_params
from tests.params import some

LAYERS, CHANNELS, SIZE, PAGES = 2, 16, 4, 7  # tokens of a page, pages of a table
FULL = types.SimpleNamespace(kv_heads=2, group=2, rows=6, dtype="float32", local=None, cap=0.0)


def case(**changes):
  return types.SimpleNamespace(**vars(FULL) | changes)


def config_of(one) -> decoder.DecoderConfig:
  return dataclasses.replace(
    CONFIG,
    num_heads=one.kv_heads * one.group,
    num_kv_heads=one.kv_heads,
    head_dim=CHANNELS,
    compute_dtype=one.dtype,
    sliding_window=6,
    attention_softcap=one.cap,
  )


def decoding(one):
  """Random arguments: rows of all lengths that share pages, the first one not running."""
  seed = int.from_bytes(os.urandom(3))
  print(f"seed: {seed}")  # pytest shows it where a test fails
  draw = np.random.default_rng(seed)
  new = lambda *shape: jnp.asarray(draw.normal(size=shape), one.dtype)
  position = draw.integers(0, PAGES * SIZE, one.rows)
  position[:3] = 0, PAGES * SIZE - 1, SIZE
  tables = draw.integers(1, 5, (one.rows, PAGES))  # pages of several
  tables[np.arange(one.rows), position // SIZE] = 5 + np.arange(one.rows)  # written to
  tables[0] = 0
  pool = (LAYERS, 5 + one.rows, one.kv_heads, SIZE, CHANNELS)
  row = (one.rows, 1, one.kv_heads, CHANNELS)
  cache = paging.LayerCache(
    paging.Pool(new(*pool), new(*pool)), jnp.int32(1), jnp.asarray(tables, jnp.int32)
  )
  q = new(one.rows, 1, one.kv_heads * one.group, CHANNELS)
  local = None if one.local is None else jnp.array(one.local)
  return q, new(*row), new(*row), cache, jnp.asarray(position, jnp.int32)[:, None], local


def attended(config, form, arguments):
  config = dataclasses.replace(config, attention=form)
  return jax.jit(lambda *x: paging.extend_and_attend(*x, config))(*arguments)


def assert_same(found, expected, dtype):
  (out, cache), (exact, plain) = found, expected
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  np.testing.assert_allclose(np.float32(out), np.float32(exact), rtol=tolerance, atol=tolerance)
  jax.tree.map(np.testing.assert_array_equal, cache, plain)


@pytest.mark.parametrize(
  "one",
  some(
    [case(group=1, rows=5, local=True, dtype="bfloat16"), case(group=4, local=True, cap=2.0)],
    [case(), case(group=4, kv_heads=1, local=False, cap=2.0)],
  ),
  ids=["window, odd rows, bfloat16", "window, soft-cap", "all", "one key head, soft-cap"],
)
def test_the_kernel_writes_and_sees_the_same(one, monkeypatch):
  two_pages = 2 * one.kv_heads * SIZE * CHANNELS * jnp.dtype(one.dtype).itemsize
  monkeypatch.setattr(paged_kernel, "_BLOCK_BYTES", two_pages)
  config, arguments = config_of(one), decoding(one)
  found, expected = (
    attended(config, form, arguments) for form in (attention.PAGED_INTERPRETED, attention.PLAIN)
  )
  assert_same(found, expected, one.dtype)


def test_every_shard_works_on_its_own_heads():
  config, arguments = config_of(FULL), decoding(FULL)
  expected = attended(config, attention.PLAIN, arguments)
  mesh = sharding.make_mesh(tensor=2)
  with jax.sharding.set_mesh(mesh):
    heads = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, sharding.spec(*axes)))
    q, k, v, cache, *more = arguments
    pool = jax.tree.map(lambda x: heads(x, None, None, "kv_heads"), cache.pool)
    new = [heads(x, None, None, "kv_heads") for x in (k, v)]
    split = (heads(q, None, None, "heads"), *new, cache._replace(pool=pool), *more)
    found = attended(config, attention.PAGED_INTERPRETED, split)
    assert found[1].pool.k_LxYxKxSxC.sharding.shard_shape(pool[0].shape)[2] == 1
    assert_same(found, expected, "float32")


def test_a_row_does_not_depend_on_the_others():
  config, (q, k, v, cache, position, _) = config_of(FULL), decoding(FULL)
  alone = lambda x: jnp.where(jnp.arange(6).reshape(6, *[1] * (x.ndim - 1)) == 3, x, 0)
  tables = alone(cache.tables_BxZ)
  arguments = (q, k, v, cache._replace(tables_BxZ=tables), alone(position), None)
  few, _ = attended(config, attention.PAGED_INTERPRETED, arguments)
  all_, _ = attended(config, attention.PAGED_INTERPRETED, (q, k, v, cache, position, None))
  np.testing.assert_array_equal(few[3], all_[3])


def test_a_decoder_of_both_kinds_of_layers_says_the_same_with_it():
  local = dataclasses.replace(
    CONFIG, num_layers=2, local_layers=(True, False), sliding_window=3, local_rope_theta=100.0
  )
  params, keys = random_params(local), iter(jax.random.split(jax.random.key(5)))
  pool = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), paging.empty(local, 10, 4))
  cache = paging.Cache(pool, jnp.arange(9).reshape(3, 3) + 1)
  token, position = jnp.array([[3], [9], [11]]), jnp.array([[0], [4], [10]])

  def said(form):
    config = dataclasses.replace(local, attention=form)
    return jax.jit(lambda *x: policy.apply(config, params, *x))(token, position, cache)

  found, expected = map(said, (attention.PAGED_INTERPRETED, attention.PLAIN))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_mesh_and_the_cache_decide_whether_the_kernel_is_used():
  def form(platform="tpu", tensor=1, config=CONFIG, **changes):
    sizes = dict(slots=8, group_size=2, max_prompt_tokens=96, max_tokens=96, page_tokens=32)
    mesh = types.SimpleNamespace(
      devices=np.array([types.SimpleNamespace(platform=platform)]), shape={"tensor": tensor}
    )
    return sizing.with_attention(config, sizing.Sizes(**sizes | changes), mesh).attention

  wide = dataclasses.replace(CONFIG, head_dim=128, compute_dtype="bfloat16")
  assert form(config=wide) == attention.PAGED
  assert form(config=wide, platform="cpu") == attention.PLAIN
  assert form(config=CONFIG) == attention.PLAIN  # 8 channels per head
  assert form(config=wide, page_tokens=24) == attention.PLAIN
  assert form(config=wide, page_tokens=4096) == attention.PLAIN  # more than a buffer
  assert form(config=wide, page_tokens=4096, tensor=2) == attention.PAGED
  assert form(config=wide, slots=2**15, max_tokens=2**10) == attention.PLAIN  # tables
