"""Log-probabilities in chunks: the plain values and gradients, without the memory of all logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import policy, sharding
from offpolicy_rl.planning import collectives
from tests.model.decoder_test import CONFIG, random_params
from tests.model.sharding_test import by_rows
from tests.params import some
from tests.rows import whole_rows

TOKENS = np.random.default_rng(2).integers(CONFIG.vocab_size, size=(8, 13), dtype=np.int32)


def weighted(config, chunk):
  """A scalar that depends on every log-probability and entropy by another weight."""
  draw = np.random.default_rng(0)
  a, b = draw.normal(size=(2, 8, 12)).astype(np.float32)
  c = draw.normal(size=(8, 12, 3)).astype(np.float32)
  candidates = draw.integers(0, config.vocab_size, c.shape)

  def total(params, tokens):
    rows = whole_rows(tokens)._replace(candidates=jnp.asarray(candidates))
    stats = policy.token_stats(config, params, rows, 0.8, chunk=chunk)
    each = jnp.sum(a * stats.logprobs + b * stats.entropy)
    return each + jnp.sum(c * stats.candidate_logprobs), stats

  return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize(
  ("chunk", "changes"),
  some(
    [(5, {"tied_embeddings": False, "logit_softcap": 2.0})],
    [(1, {}), (12, {}), (99, {"logit_softcap": 2.0})],
  ),
  ids=str,
)
def test_chunks_change_neither_values_nor_gradients(chunk, changes):
  config = dataclasses.replace(CONFIG, **changes)
  params = random_params(config)
  (_, plain), plain_gradient = weighted(config, 0)(params, TOKENS)
  (_, stats), gradient = weighted(config, chunk)(params, TOKENS)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, stats, plain)
  jax.tree.map(close, gradient, plain_gradient)


def test_chunks_keep_a_sharded_batch_where_it_is():
  params = random_params(CONFIG)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  (_, plain), plain_gradient = weighted(CONFIG, 0)(params, TOKENS)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, policy.param_shardings(mesh, params))
    rows = jax.device_put(TOKENS, by_rows(mesh))
    (_, stats), gradient = weighted(CONFIG, 4)(placed, rows)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
  jax.tree.map(close, stats, plain)
  jax.tree.map(close, gradient, plain_gradient)


@pytest.mark.long
def test_more_chunks_say_no_more_between_devices():
  params = policy.shapes(CONFIG)
  mesh = sharding.make_mesh(fsdp=8)
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  with jax.set_mesh(mesh):
    placed = jax.tree.map(place, params, policy.param_shardings(mesh, params))
    rows = place(TOKENS, by_rows(mesh))
    said = {
      chunk: collectives.parse(weighted(CONFIG, chunk).lower(placed, rows).compile().as_text())
      for chunk in (2, 6)
    }
  assert said[2] == said[6]
  assert (
    said[2]["all-gather"].bytes >= CONFIG.vocab_size * CONFIG.width * 4
  )  # the unembedding, whole


def test_the_logits_of_all_tokens_never_exist():
  """Qwen's vocabulary: what XLA plans to allocate for values and gradients."""
  config = dataclasses.replace(CONFIG, vocab_size=151_936, num_layers=1)
  shapes = policy.shapes(config)
  tokens = jax.ShapeDtypeStruct((2, 1025), jnp.int32)

  def temporary_bytes(chunk):
    total = lambda p, t: jnp.sum(
      policy.token_stats(config, p, whole_rows(t), 1.0, chunk=chunk).logprobs
    )
    analysis = jax.jit(jax.grad(total)).lower(shapes, tokens).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  all_logits = 2 * 1024 * config.vocab_size * 4
  assert temporary_bytes(0) > all_logits
  assert temporary_bytes(32) < all_logits / 4
