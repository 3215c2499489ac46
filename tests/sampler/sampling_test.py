"""Sampling against slow numpy and against the frequencies of draws."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.sampler import sampling
from offpolicy_rl.sampler.sampling import Truncation
from tests.params import some

WAYS = [
  Truncation(),
  Truncation(top_k=3),
  Truncation(top_k=100),
  Truncation(top_p=0.7),
  Truncation(top_p=0.001),
  Truncation(min_p=0.1),
  Truncation(min_p=0.99),
  Truncation(top_k=6, top_p=0.8, min_p=0.05),
]

SIZES = some([1, 256, 257], [255, 1000, 1024])  # of vocabularies, beside whole blocks


def slow(p: np.ndarray, how: Truncation) -> np.ndarray:
  """One token at a time, in float64."""
  p = np.where(p >= how.min_p * p.max(), p, 0)
  p = p / p.sum()
  order = np.argsort(-p)
  if how.top_k:
    p[order[how.top_k :]] = 0
    p = p / p.sum()
  held, kept = 0.0, []
  for token in order:
    if held >= how.top_p:
      break
    kept.append(token)
    held += p[token]
  q = np.zeros_like(p)
  q[kept] = p[kept]
  return q / q.sum()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_what_slow_numpy_leaves(how, seed):
  logits = 2 * np.random.default_rng(seed).normal(size=12)
  p = np.exp(logits) / np.exp(logits).sum()
  found = sampling.truncate(jnp.log(jnp.array(p)), how)
  np.testing.assert_allclose(jnp.exp(found), slow(p, how), atol=1e-6)


@pytest.mark.parametrize("how", [WAYS[0], WAYS[-1]])
def test_draws_follow_the_distribution_that_is_recorded(how):
  """Chi-square of 4,000 draws."""
  logits, temperature = jnp.array([2.0, 1.0, 0.0, -1.0, 0.5, -6.0]), 0.8
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = lambda key: sampling.sample_token(logits, key, jnp.float32(temperature), how)
  token, logprob, _ = jax.vmap(draw)(keys)
  p = slow(np.array(jax.nn.softmax(logits / temperature), np.float64), how)
  np.testing.assert_allclose(logprob, np.log(p[token]), rtol=1e-4)
  counts = np.bincount(token, minlength=6)
  likely = p > 0
  assert counts[~likely].sum() == 0
  chi_square = (((counts - 4000 * p) ** 2)[likely] / (4000 * p[likely])).sum()
  assert chi_square < 20.5  # 0.1 % quantile of chi-square with 5 degrees of freedom


def test_greedy_is_the_likeliest_token_whatever_is_left_out():
  logits = jnp.array([0.0, 3.0, 1.0])
  for how in WAYS:
    token, logprob, _ = sampling.sample_token(logits, jax.random.key(1), jnp.float32(0), how)
    assert (token, logprob) == (1, 0)


@pytest.mark.parametrize("size", SIZES)
def test_greedy_in_a_large_vocabulary_is_the_first_of_the_likeliest(size):
  rng = np.random.default_rng(size)
  for _ in range(20):
    logits = jnp.array(rng.integers(-8, 5, size), jnp.float32)  # many are equally likely
    token, logprob, _ = sampling.sample_token(logits, jax.random.key(0), jnp.float32(0))
    assert (token, logprob) == (np.argmax(logits), 0)


@pytest.mark.parametrize("size", [1, 257, 1000])
def test_the_logprob_is_that_of_float64(size):
  """Also far from zero, where exponentials overflow."""
  rng = np.random.default_rng(size)
  for far in (0.0, 1000.0, -1000.0):
    logits = (far + 3 * rng.normal(size=size)).astype(np.float32)
    token, logprob, _ = sampling.sample_token(jnp.array(logits), jax.random.key(0), jnp.float32(1))
    exact = logits.astype(np.float64) - logits.max()
    exact -= np.log(np.exp(exact).sum())
    np.testing.assert_allclose(logprob, exact[token], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [1, 20])
def test_candidates_are_the_likeliest_in_order_and_do_not_change_the_draw(size, number):
  rng, number = np.random.default_rng(size), min(number, size)
  draw = jax.jit(sampling.sample_token, static_argnums=(3, 4))
  for temperature in (0.5, 3.0):
    logits = rng.integers(-8, 5, size).astype(np.float32)  # many are equally likely
    given = jnp.array(logits), jax.random.key(size), jnp.float32(temperature)
    drawn = draw(*given, sampling.NONE, number)
    exact = logits.astype(np.float64) / temperature
    exact -= np.log(np.exp(exact).sum())
    order = np.argsort(-exact, kind="stable")[:number]
    np.testing.assert_array_equal(drawn.candidates.tokens, order)
    np.testing.assert_allclose(drawn.candidates.logprobs, exact[order], rtol=1e-5, atol=1e-5)
    assert draw(*given, sampling.NONE, 0) == (drawn.token, drawn.logprob, None)


def test_a_candidate_that_was_left_out_has_a_finite_logprob():
  logits, how = jnp.array([0.0, 3.0, 1.0]), Truncation(top_k=2)
  drawn = sampling.sample_token(logits, jax.random.key(0), jnp.float32(1), how, 3)
  np.testing.assert_array_equal(drawn.candidates.tokens, [1, 2, 0])
  expected = [*np.log(slow(np.exp(np.array(logits, np.float64)), how)[[1, 2]]), types.MIN_LOGPROB]
  np.testing.assert_allclose(drawn.candidates.logprobs, expected, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_every_number_is_a_token_that_has_probability(size):
  """Also where rounding makes the last sums fall short, and with most tokens left out."""
  rng = np.random.default_rng(size)
  log_p = jax.nn.log_softmax(jnp.where(rng.random(size) < 0.7, -jnp.inf, 3 * rng.normal(size=size)))
  log_p = jnp.where(jnp.isnan(log_p), 0.0, log_p)  # none was kept of one token
  numbers = jnp.concatenate([jnp.linspace(0, 1, 500), jnp.array([np.nextafter(1, 0, dtype="f4")])])
  p = sampling._in_blocks(jnp.exp(log_p), 0.0)
  tokens = jax.vmap(lambda u: sampling._draw(p, u)[0])(numbers)
  assert np.all(np.isfinite(log_p[tokens])) and tokens.min() >= 0 and tokens.max() < size
  held = np.cumsum(np.exp(np.float64(log_p)))
  expected = np.minimum(np.searchsorted(held, np.float64(numbers), side="right"), size - 1)
  near = np.abs(held[:, None] - np.float64(numbers)).min(0) < 1e-5  # either side is right
  np.testing.assert_array_equal(np.asarray(tokens)[~near], expected[~near])


def test_draws_from_a_large_vocabulary_follow_its_blocks_and_their_tokens():
  """Chi-square over 20 bins of tokens from different blocks."""
  log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (5000,)))
  keys = jax.random.split(jax.random.key(2), 20_000)
  draw = lambda key: sampling.sample_token(log_p, key, jnp.float32(1)).token
  tokens = jax.vmap(draw)(keys)
  expected = np.bincount(np.arange(5000) % 20, np.exp(log_p)) * 20_000
  found = np.bincount(np.asarray(tokens) % 20)
  assert ((found - expected) ** 2 / expected).sum() < 43.8  # 0.1 % quantile, 19 degrees


@pytest.mark.parametrize("vocabulary", some([151_936], [128_256, 49_152]))  # Qwen, Llama 3, SmolLM2
@pytest.mark.parametrize(("devices", "candidates"), [(4, 0), (8, 8)])
def test_devices_that_split_a_vocabulary_keep_their_logits(vocabulary, devices, candidates):
  """They send one another sums and maxima of blocks at most, and few blocks."""
  mesh = jax.make_mesh(
    (devices,),
    ("tensor",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  layout = jax.NamedSharding(mesh, jax.P(None, "tensor"))
  logits = jax.ShapeDtypeStruct((4, vocabulary), jnp.float32, sharding=layout)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
  temperature = jax.ShapeDtypeStruct((4,), jnp.float32)
  draw = jax.vmap(functools.partial(sampling.sample_token, candidates=candidates))
  compiled = jax.jit(draw).lower(logits, keys, temperature).compile()
  sent = re.findall(r"= (.*?) (?:all-|collective-|reduce-scatter)[a-z-]*\(", compiled.as_text())
  shapes = [shape for group in sent for shape in re.findall(r"\[4,([\d,]+)\]", group)]
  sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
  assert sizes and max(sizes) <= vocabulary // 16
