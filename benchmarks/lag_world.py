"""A small world in which lag hurts and everything can be computed exactly.

A prompt is a vector x; a completion is 16 tokens out of 8. A hidden teacher says for every prompt
which steps from one token to the next are good (3 in 8), and a completion is right when at least c
of its steps are good, c from 9 to 11 depending on the prompt. So every prompt has millions of right
answers, random ones are right with probability 0.10 to 0.01, and what is learned for one prompt
helps with another, or misleads. No prompt comes twice: a policy cannot memorise, so lag is the only
thing that stands between the objectives.

The policy is a network from x to a table of logits (last token -> next token). Being Markov, its
accuracy, entropy and the entropy among its right answers need no sampling: they come from a
recursion over the position, the last token and the number of good steps so far.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

VOCABULARY = 8
LENGTH = 16
FEATURES = 8
HIDDEN = 32
GOOD = 3  # good next tokens of VOCABULARY
HELDOUT_PROMPTS = 128
PROMPTS_PER_STEP = 16
GROUP_SIZE = 8
ROWS = PROMPTS_PER_STEP * GROUP_SIZE
START = VOCABULARY  # index of "no token yet" in the tables


class Prompts(NamedTuple):
  """P prompts: what is asked, and what counts as right."""

  features: jax.Array  # float [P, FEATURES]
  good: jax.Array  # bool [P, VOCABULARY + 1, VOCABULARY]: is the step last -> next good?
  needed: jax.Array  # int [P]: good steps of a right completion


class Completions(NamedTuple):
  """One batch as a sampler would send it: PROMPTS_PER_STEP groups of GROUP_SIZE rows."""

  features: jax.Array  # float [PROMPTS_PER_STEP, FEATURES], the prompts
  tokens: jax.Array  # int [ROWS, LENGTH]
  logprobs: jax.Array  # float [ROWS, LENGTH]
  rewards: jax.Array  # float [ROWS], 0 or 1
  version: jax.Array  # int []: updates the sampling policy had seen


class Exact(NamedTuple):
  """Properties of a policy on prompts, without sampling error. Each float [P]."""

  accuracy: jax.Array  # probability of a right completion
  entropy: jax.Array  # of the completion, nats
  entropy_correct: jax.Array  # of the completion given that it is right, nats


def make_teacher(key: jax.Array) -> jax.Array:
  """What a world is made of: float [FEATURES, VOCABULARY + 1, VOCABULARY]."""
  return jax.random.normal(key, (FEATURES, VOCABULARY + 1, VOCABULARY))


def draw_prompts(teacher: jax.Array, key: jax.Array, count: int) -> Prompts:
  """New prompts of the teacher's world."""
  features = jax.random.normal(key, (count, FEATURES))
  score = jnp.einsum("pf,fab->pab", features, teacher)
  bar = jnp.sort(score, axis=-1)[..., -GOOD, None]
  return Prompts(features, score >= bar, 9 + jnp.arange(count) % 3)


def init_policy(key: jax.Array) -> dict[str, jax.Array]:
  """Fresh parameters: two layers, nearly uniform at first."""
  first, second = jax.random.split(key)
  outputs = (VOCABULARY + 1) * VOCABULARY
  return {
    "w1": jax.random.normal(first, (FEATURES, HIDDEN)) / math.sqrt(FEATURES),
    "b1": jnp.zeros(HIDDEN),
    "w2": 0.1 * jax.random.normal(second, (HIDDEN, outputs)) / math.sqrt(HIDDEN),
    "b2": jnp.zeros(outputs),
  }


def tables(params: dict, features: jax.Array) -> jax.Array:
  """log pi(next | last, x), float [P, VOCABULARY + 1, VOCABULARY]."""
  hidden = jax.nn.relu(features @ params["w1"] + params["b1"][None])
  logits = hidden @ params["w2"] + params["b2"][None]
  return jax.nn.log_softmax(logits.reshape(len(features), VOCABULARY + 1, VOCABULARY))


def sample(params: dict, teacher: jax.Array, key: jax.Array, version: jax.Array) -> Completions:
  """Draws prompts and GROUP_SIZE completions of each, and judges them."""
  prompt_key, token_key = jax.random.split(key)
  prompts = draw_prompts(teacher, prompt_key, PROMPTS_PER_STEP)
  table = tables(params, prompts.features)
  group = jnp.repeat(jnp.arange(PROMPTS_PER_STEP), GROUP_SIZE)
  below = jnp.cumsum(jnp.exp(table), axis=-1)[..., :-1]  # inverse of the distribution function
  uniform = jax.random.uniform(token_key, (LENGTH, ROWS))

  def step(last, uniform):
    token = jnp.sum(uniform[:, None] >= below[group, last], axis=-1)
    return token, (token, table[group, last, token], prompts.good[group, last, token])

  _, (tokens, logprobs, good) = jax.lax.scan(step, jnp.full(ROWS, START), uniform)
  rewards = jnp.sum(good, axis=0) >= prompts.needed[group]
  return Completions(prompts.features, tokens.T, logprobs.T, rewards.astype(jnp.float32), version)


def logprobs(params: dict, batch: Completions) -> jax.Array:
  """lp of a batch's tokens under params, float [ROWS, LENGTH]."""
  table = tables(params, batch.features)
  before = jnp.concatenate([jnp.full((ROWS, 1), START), batch.tokens[:, :-1]], axis=1)
  group = jnp.repeat(jnp.arange(PROMPTS_PER_STEP), GROUP_SIZE)[:, None]
  return table[group, before, batch.tokens]


def evaluate(params: dict, prompts: Prompts) -> Exact:
  """Exact accuracy and entropies, by recursion over (last token, good steps so far)."""
  table = tables(params, prompts.features)
  chance = jnp.exp(table)
  surprise = chance * table  # p log p, finite: the tables are never -inf
  count = len(prompts.needed)
  mass = jnp.zeros((count, VOCABULARY + 1, LENGTH + 1)).at[:, START, 0].set(1.0)
  mass_log = jnp.zeros_like(mass)  # sum over prefixes of p log p

  def step(carry, _):
    mass, mass_log = carry

    def spread(weights, values):  # [P, last, next], [P, last, good] -> [P, next, good]
      miss = jnp.einsum("pab,pac->pbc", jnp.where(prompts.good, 0.0, weights), values)
      hit = jnp.einsum("pab,pac->pbc", jnp.where(prompts.good, weights, 0.0), values)
      total = miss + jnp.pad(hit, ((0, 0), (0, 0), (1, 0)))[..., :-1]
      return jnp.pad(total, ((0, 0), (0, 1), (0, 0)))

    return (spread(chance, mass), spread(chance, mass_log) + spread(surprise, mass)), None

  (mass, mass_log), _ = jax.lax.scan(step, (mass, mass_log), length=LENGTH)
  right = jnp.arange(LENGTH + 1)[None, None] >= prompts.needed[:, None, None]
  accuracy = jnp.sum(jnp.where(right, mass, 0.0), axis=(1, 2))
  among = jnp.sum(jnp.where(right, mass_log, 0.0), axis=(1, 2)) / jnp.maximum(accuracy, 1e-30)
  return Exact(
    accuracy=jnp.clip(accuracy, 0.0, 1.0),
    entropy=-jnp.sum(mass_log, axis=(1, 2)),
    entropy_correct=jnp.log(jnp.maximum(accuracy, 1e-30)) - among,
  )
