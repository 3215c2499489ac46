"""The decoder against an independent float64 numpy transformer, and its cache against itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import decoder, policy
from tests.rows import cache_of_rows, whole_rows

CONFIG = decoder.DecoderConfig(
  vocab_size=48,
  num_layers=3,
  width=32,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_width=64,
  rope_theta=1000.0,
  norm_eps=1e-5,
  tied_embeddings=True,
)


@functools.cache
def random_params(config, seed=0):
  """Initial parameters with norms that are not all one."""
  params = policy.init(config, jax.random.key(seed))
  keys = iter(jax.random.split(jax.random.key(seed + 1), 100))
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


def numpy_logits(config, params, tokens):
  """One row, float64, written position by position from the papers."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  c = config

  def norm(x, scale):
    return x / np.sqrt(np.mean(x**2) + c.norm_eps) * scale

  def rotate(x, position):
    """Pairs (i, i + C/2) turned by position * theta^(-2i/C)."""
    out, half = x.copy(), c.head_dim // 2
    for i in range(half):
      angle = position * c.rope_theta ** (-2 * i / c.head_dim)
      out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
      out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out

  x = [p["embedding"][token] * np.sqrt(c.width) for token in tokens]
  for layer in range(c.num_layers):
    w = {name: array[layer] for name, array in p["blocks"].items()}
    normed = [norm(v, w["attention_norm"]) for v in x]
    for t in range(len(x)):
      out = np.zeros(c.width)
      for h in range(c.num_heads):
        k_head = h // (c.num_heads // c.num_kv_heads)
        query = rotate(normed[t] @ w["w_q"][:, h], t)
        scores = np.array(
          [
            query @ rotate(normed[s] @ w["w_k"][:, k_head], s) / np.sqrt(c.head_dim)
            for s in range(t + 1)
          ]
        )
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        value = sum(weights[s] * (normed[s] @ w["w_v"][:, k_head]) for s in range(t + 1))
        out += value @ w["w_o"][h]
      x[t] = x[t] + out
    for t in range(len(x)):
      y = norm(x[t], w["mlp_norm"])
      gate = y @ w["w_gate"]
      x[t] = x[t] + (gate / (1 + np.exp(-gate)) * (y @ w["w_up"])) @ w["w_down"]
  unembedding = p["embedding"].T if c.tied_embeddings else p["unembedding"]
  return np.array([norm(v, p["final_norm"]) @ unembedding for v in x])


def tokens_of(shape, seed=2):
  return jax.random.randint(jax.random.key(seed), shape, 0, CONFIG.vocab_size)


def positions_of(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_match_numpy(tied, kv_heads):
  config = dataclasses.replace(CONFIG, tied_embeddings=tied, num_kv_heads=kv_heads)
  params = random_params(config, seed=kv_heads)
  tokens = tokens_of((2, 7), seed=kv_heads)
  logits, cache = policy.apply(config, params, tokens, positions_of(tokens))
  assert cache is None
  for row in range(2):
    np.testing.assert_allclose(
      logits[row], numpy_logits(config, params, np.array(tokens[row])), atol=2e-5
    )


def test_prefill_and_decode_through_the_cache_equal_the_full_pass():
  params, tokens = random_params(CONFIG), tokens_of((3, 10))
  full, _ = policy.apply(CONFIG, params, tokens, positions_of(tokens))
  # Rows of different lengths: padding in the prompt is overwritten as decoding goes on.
  lengths = jnp.array([3, 5, 6])
  padded = jnp.where(jnp.arange(6)[None] < lengths[:, None], tokens[:, :6], 0)
  cache = cache_of_rows(CONFIG, 3, 12)
  logits, cache = policy.apply(CONFIG, params, padded, positions_of(padded), cache)
  for row in range(3):
    n = int(lengths[row])
    np.testing.assert_allclose(logits[row, :n], full[row, :n], atol=1e-5)
  for i in range(4):
    at = (lengths + i)[:, None]
    token = jnp.take_along_axis(tokens, at, axis=1)
    logits, cache = policy.apply(CONFIG, params, token, at, cache)
    expected = jnp.take_along_axis(full, at[..., None], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_no_token_sees_the_future():
  params, tokens = random_params(CONFIG), tokens_of((1, 8))
  changed = tokens.at[0, 5].set((tokens[0, 5] + 1) % CONFIG.vocab_size)
  before = policy.apply(CONFIG, params, tokens, positions_of(tokens))[0]
  after = policy.apply(CONFIG, params, changed, positions_of(tokens))[0]
  np.testing.assert_array_equal(before[0, :5], after[0, :5])
  assert np.abs(before[0, 5:] - after[0, 5:]).max(-1).min() > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_stats_are_shifted_by_one_and_use_the_temperature(temperature):
  params, tokens = random_params(CONFIG), tokens_of((2, 6))
  candidates = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 5, 3))
  rows = whole_rows(tokens)
  assert policy.token_stats(CONFIG, params, rows, temperature).candidate_logprobs is None
  rows = rows._replace(candidates=candidates)
  stats = policy.token_stats(CONFIG, params, rows, temperature)
  for row in range(2):
    logits = numpy_logits(CONFIG, params, np.array(tokens[row])) / temperature
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [log_p[t - 1, tokens[row, t]] for t in range(1, 6)]
    np.testing.assert_allclose(stats.logprobs[row], expected, atol=2e-5)
    np.testing.assert_allclose(stats.entropy[row], -(np.exp(log_p) * log_p).sum(-1)[:-1], atol=2e-5)
    expected = np.take_along_axis(log_p[:-1], candidates[row], -1)
    np.testing.assert_allclose(stats.candidate_logprobs[row], expected, atol=2e-5)


def test_flatten_and_unflatten_are_inverse():
  params = policy.init(CONFIG, jax.random.key(0))
  flat = policy.flatten(params)
  assert list(flat) == sorted(flat) and "blocks/w_q" in flat
  assert jax.tree.all(
    jax.tree.map(lambda a, b: bool((a == b).all()), policy.unflatten(flat), params)
  )


def test_every_parameter_names_its_logical_axes():
  shapes = jax.eval_shape(
    lambda: policy.init(dataclasses.replace(CONFIG, tied_embeddings=False), jax.random.key(0))
  )
  for name, leaf in policy.flatten(shapes).items():
    assert len(decoder.PARAM_AXES[name.split("/")[-1]]) == leaf.ndim, name
