"""A countdown task of long answers, and a small transformer for it, as pure functions.

A prompt shows digits in order and a target: "1 4 4 9 : 0 =". An answer takes them in any order with
a sign before each, so that the sum is the target, and says the total after each: "+4 4 -1 3 -9 -6
..."; two tokens per digit, all of them always. The verifier looks at the signed digits only. A
prompt of 32 digits has astronomically many right answers, of 64 tokens.

Prompts and demonstrations are made on the device from a random key, so none comes twice; answers
are judged there. Nothing here needs more than JAX. Everything may be vectorised over parameters.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model import rope

MAX_TOTAL = 20  # of a demonstration on its way, either sign
# Tokens: +1 to +9, -1 to -9, digits of prompts, totals, "=".
_DIGITS, _TOTALS, _EQUALS = 18, 27, 27 + 2 * MAX_TOTAL + 1
VOCABULARY = _EQUALS + 1
_EPS = 1e-6


class Size(NamedTuple):
  """Of the task and of the transformer: 10.7 M parameters."""

  numbers: int = 32  # digits of a prompt
  layers: int = 6
  width: int = 384
  heads: int = 6

  @property
  def prompt_tokens(self) -> int:
    """Of every prompt."""
    return self.numbers + 2

  @property
  def answer_tokens(self) -> int:
    """Of every answer."""
    return 2 * self.numbers


class Sampled(NamedTuple):
  """N completions of M tokens."""

  tokens: jax.Array  # int32 [N, M]
  logprobs: jax.Array  # float32 [N, M]


# ---------------------------------------------------------------- the task


def problems(size: Size, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """(prompts [count, P], demonstrations [count, M]), int32 tokens, drawn anew.

  The demonstration comes first: digits and signs at random, a sign turned round where the total
  would leave [-MAX_TOTAL, MAX_TOTAL]. So it is a random one of the prompt's right answers.
  """
  digit_key, sign_key = jax.random.split(key)
  digits = jax.random.randint(digit_key, (size.numbers, count), 1, 10)
  signs = jax.random.rademacher(sign_key, (size.numbers, count), jnp.int32)

  def add(total, drawn):
    digit, sign = drawn
    sign = jnp.where(jnp.abs(total + sign * digit) > MAX_TOTAL, -sign, sign)
    term = jnp.where(sign > 0, digit - 1, digit + 8)
    return total + sign * digit, (term, total + sign * digit)

  target, (terms, totals) = jax.lax.scan(add, jnp.zeros(count, jnp.int32), (digits, signs))
  told = totals + _TOTALS + MAX_TOTAL
  answers = jnp.stack([terms, told], axis=1).reshape(size.answer_tokens, count).T
  shown = jnp.sort(digits.T, axis=1) - 1 + _DIGITS
  asked = jnp.stack([target + _TOTALS + MAX_TOTAL, jnp.full(count, _EQUALS)], axis=1)
  return jnp.concatenate([shown, asked], axis=1), answers


def is_right(prompts: jax.Array, answers: jax.Array) -> jax.Array:
  """Whether each answer [N, M] takes exactly its prompt's [N, P] digits and reaches the target.

  The totals that it tells are not looked at.
  """
  terms = answers[:, ::2]
  values = jnp.where(terms < 9, terms + 1, 8 - terms)
  counts = lambda digits: jnp.sum(jax.nn.one_hot(digits, 9, dtype=jnp.int32), axis=1)
  same = jnp.all(counts(jnp.abs(values) - 1) == counts(prompts[:, :-2] - _DIGITS), axis=1)
  target = prompts[:, -2] - _TOTALS - MAX_TOTAL
  return jnp.all(terms < _DIGITS, axis=1) & same & (jnp.sum(values, axis=1) == target)


# ---------------------------------------------------------------- the policy


def init(size: Size, key: jax.Array) -> dict:
  """Fresh float32 parameters; those of layers are stacked in front."""
  layers, width, heads = size.layers, size.width, size.heads
  channels, keys = width // heads, jax.random.split(key, 6)

  def normal(key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
    return jax.random.normal(key, shape) / math.sqrt(fan_in)

  return {
    "embedding": normal(keys[0], (VOCABULARY, width), 1),
    "unembedding": normal(keys[1], (width, VOCABULARY), width),
    "layers": {
      "qkv": normal(keys[2], (layers, width, 3, heads, channels), width),
      "out": normal(keys[3], (layers, heads, channels, width), 2 * layers * width),
      "up": normal(keys[4], (layers, width, 4 * width), width),
      "down": normal(keys[5], (layers, 4 * width, width), 2 * layers * 4 * width),
    },
  }


def _norm(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPS)


def _layer(weights: dict, x_BxTxD: jax.Array, first: jax.Array | int, attend) -> tuple:
  """(x after the layer, what `attend` keeps); `attend(q, k, v)` -> ([B, T, H, C], anything).

  first: position of the first of the T tokens.
  """
  rows, tokens, _ = x_BxTxD.shape
  q, k, v = jnp.moveaxis(jnp.einsum("btd,dnhc->btnhc", _norm(x_BxTxD), weights["qkv"]), 2, 0)
  positions = jnp.broadcast_to(first + jnp.arange(tokens)[None], (rows, tokens))
  angles = rope.angles(positions, rope.frequencies(1e4, q.shape[-1], None))
  attended, kept = attend(rope.rotate(q, angles), rope.rotate(k, angles), v)
  x_BxTxD = x_BxTxD + jnp.einsum("bthc,hcd->btd", attended, weights["out"])
  return x_BxTxD + jax.nn.gelu(_norm(x_BxTxD) @ weights["up"]) @ weights["down"], kept


def _causal(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
  return jax.nn.dot_product_attention(q, k, v, is_causal=True), (k, v)


def _log_p(params: dict, x_BxTxD: jax.Array) -> jax.Array:
  return jax.nn.log_softmax(_norm(x_BxTxD) @ params["unembedding"])


def logprobs(params: dict, prompts: jax.Array, answers: jax.Array) -> jax.Array:
  """Log-probabilities [N, M] of answers [N, M] to prompts [N, P]."""
  rows = jnp.concatenate([prompts, answers[:, :-1]], axis=1)

  def layer(x_BxTxD, weights):
    return _layer(weights, x_BxTxD, 0, _causal)[0], None

  x_BxTxD, _ = jax.lax.scan(layer, params["embedding"][rows], params["layers"])
  log_p = _log_p(params, x_BxTxD[:, prompts.shape[1] - 1 :])
  return jnp.take_along_axis(log_p, answers[..., None], axis=-1)[..., 0]


def sample(
  size: Size, params: dict, prompts: jax.Array, key: jax.Array, *, group_size: int
) -> Sampled:
  """`group_size` completions of each prompt [P], one after the other, through a cache of keys.

  A prompt is read once for all its completions.
  """
  by_layer = [jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(size.layers)]
  room = ((0, 0), (0, size.answer_tokens), (0, 0), (0, 0))
  x_BxTxD, cache = params["embedding"][prompts[:, :-1]], []
  for weights in by_layer:
    x_BxTxD, kept = _layer(weights, x_BxTxD, 0, _causal)
    cache.append([jnp.repeat(jnp.pad(x, room), group_size, axis=0) for x in kept])
  last = jnp.repeat(prompts[:, -1], group_size)

  def one_token(carried, drawn):
    (token, cache), (position, key) = carried, drawn
    x_BxTxD, extended = params["embedding"][token][:, None], []

    def attend(q, k, v, held):
      put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, position, axis=1)
      k, v = put(held[0], k), put(held[1], v)
      seen = (jnp.arange(k.shape[1]) <= position)[None, None, None]
      return jax.nn.dot_product_attention(q, k, v, mask=seen), [k, v]

    for weights, held in zip(by_layer, cache, strict=True):
      see = lambda q, k, v, held=held: attend(q, k, v, held)
      x_BxTxD, kept = _layer(weights, x_BxTxD, position, see)
      extended.append(kept)
    log_p = _log_p(params, x_BxTxD)[:, 0]
    token = jax.random.categorical(key, log_p).astype(jnp.int32)
    chance = jnp.take_along_axis(log_p, token[:, None], axis=1)[:, 0]
    return (token, extended), (token, chance)

  positions = size.prompt_tokens - 1 + jnp.arange(size.answer_tokens)
  keys = jax.random.split(key, size.answer_tokens)
  _, (tokens, chances) = jax.lax.scan(one_token, (last, cache), (positions, keys))
  return Sampled(tokens.T, chances.T)
