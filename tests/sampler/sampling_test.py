"""Sampling against slow numpy and against the frequencies of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.sampler import sampling
from offpolicy_rl.sampler.sampling import Truncation

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
  token, logprob = jax.vmap(draw)(keys)
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
    token, logprob = sampling.sample_token(logits, jax.random.key(1), jnp.float32(0), how)
    assert (token, logprob) == (1, 0)
