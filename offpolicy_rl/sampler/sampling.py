"""Logits -> a token and its log-probability under the distribution sampled from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl import types


class Truncation(NamedTuple):
  """Leaves out unlikely tokens and normalises the rest. Off by default.

  The learner computes probabilities of the full distribution, so truncation makes it differ from
  the sampler.
  """

  top_k: int = 0  # keeps the k likeliest; 0 = all (Fan et al., arXiv 1805.04833)
  top_p: float = 1.0  # keeps the fewest that hold p together (Holtzman et al., arXiv 1904.09751)
  min_p: float = 0.0  # keeps p >= min_p times the largest p (Nguyen et al., arXiv 2407.01082)


class Drawn(NamedTuple):
  """A sampled token."""

  token: jax.Array  # int32
  logprob: jax.Array  # float32, of the distribution it was drawn from
  candidates: types.Candidates | None = None  # [I], the likeliest tokens of that distribution


NONE = Truncation()
_BLOCKS = (256, 128, 64, 32, 16)  # tokens whose probabilities are summed first
_DEVICES = 8  # over which a vocabulary is split without cutting a block, if possible


def truncate(log_p: jax.Array, truncation: Truncation) -> jax.Array:
  """Log-probabilities [V] of the truncated distribution, -inf for tokens left out.

  In this order: min_p, top_k, then top_p of the rest. Of equally likely tokens, all are kept.
  """
  if truncation.min_p > 0:
    log_p = _kept(log_p, jnp.max(log_p) + jnp.log(truncation.min_p))
  if truncation.top_k:
    log_p = _kept(log_p, jax.lax.top_k(log_p, min(truncation.top_k, log_p.size))[0][-1])
  if truncation.top_p < 1:
    ordered = -jnp.sort(-log_p)
    before = jnp.cumsum(jnp.exp(ordered)) - jnp.exp(ordered)  # probability of likelier ones
    last = jnp.sum(before < truncation.top_p) - 1
    log_p = _kept(log_p, ordered[last])
  return log_p


def _kept(log_p: jax.Array, least) -> jax.Array:
  return jax.nn.log_softmax(jnp.where(log_p >= least, log_p, -jnp.inf))


def sample_token(
  logits: jax.Array,
  key: jax.Array,
  temperature: jax.Array,
  truncation: Truncation = NONE,
  candidates: int = 0,
) -> Drawn:
  """Draws from softmax(logits [V] / temperature), truncated.

  Greedy at temperature 0, with logprob 0: the token had probability 1; then candidates are those
  of temperature 1.

  Args:
    candidates: number of the likeliest tokens to record, at most V; 0 = none.
  """
  greedy = temperature == 0
  scores = logits / jnp.where(greedy, 1.0, temperature)
  if truncation != NONE:
    scores = truncate(jax.nn.log_softmax(scores), truncation)
  scores = _in_blocks(scores, -jnp.inf)
  highest = jnp.max(scores, axis=1)
  top = jnp.max(highest)
  p = jnp.exp(scores - top)  # not normalised, which saves a pass over the vocabulary
  drawn, total = _draw(p, jax.random.uniform(key))
  block = jnp.argmax(highest)
  token = jnp.where(greedy, block * scores.shape[1] + jnp.argmax(scores[block]), drawn)
  logprob = scores.reshape(-1)[token] - top - jnp.log(total)
  drawn = Drawn(token.astype(jnp.int32), jnp.where(greedy, 0.0, logprob))
  if not candidates:
    return drawn
  likeliest, tokens = _likeliest(scores, highest, candidates)
  logprobs = jnp.maximum(likeliest - top - jnp.log(total), types.MIN_LOGPROB)
  return drawn._replace(candidates=types.Candidates(tokens.astype(jnp.int32), logprobs))


def _likeliest(scores: jax.Array, highest: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
  """The largest of scores [blocks, tokens], and their tokens; of equal ones, the first.

  They are in the blocks with the largest `highest` scores [blocks]: devices that hold parts of a
  vocabulary exchange only these.
  """
  blocks = jnp.sort(jax.lax.top_k(highest, min(number, highest.size))[1])
  chosen, places = jax.lax.top_k(scores[blocks].reshape(-1), number)
  block, place = jnp.divmod(places, scores.shape[1])
  return chosen, blocks[block] * scores.shape[1] + place


def _in_blocks(x: jax.Array, filling: float) -> jax.Array:
  """[V] -> [blocks, tokens of a block].

  Blocks must not be cut: devices that hold parts of a vocabulary would exchange all of it for each
  token. Qwen's 151,936 entries are 593.5 blocks of 256.
  """
  size = next((size for size in _BLOCKS if x.size % (_DEVICES * size) == 0), _BLOCKS[0])
  return jnp.pad(x, (0, -x.size % size), constant_values=filling).reshape(-1, size)


def _draw(p: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(token drawn with probability proportional to p [blocks, tokens], sum of all p).

  Inverts the cumulative distribution at a number in [0, 1): first of the blocks, then in one. That
  needs one random number per token. Gumbel noise needs one per entry of the vocabulary, which is
  most of the time of a small model's step on CPU.
  """
  blocks = jnp.sum(p, axis=1)
  total = jnp.sum(blocks)
  block, left = _reaches(blocks, uniform * total)
  return block * p.shape[1] + _reaches(p[block], left)[0], total


def _reaches(p: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(first entry at which the cumulative sum exceeds `target`, rest of `target` before it)."""
  sums = jnp.cumsum(p)
  enough = (sums > target) & (p > 0)
  # Rounding may leave no entry, and an entry without probability must never be drawn.
  entry = jnp.where(jnp.any(enough), jnp.argmax(enough), jnp.argmax(p))
  return entry, target - (sums[entry] - p[entry])
