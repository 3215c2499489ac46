"""What the devices do while generating: prefill prompts, seat completions, decode.

A fixed number of slots decodes in lockstep; each slot continues one prompt. Shapes never change, so
each program is compiled once, and a completion depends on its own prompt, parameters and key only,
not on its slot, on its neighbours or on when it was seated.

Sizes: S slots, M completion tokens, P pages of a row, R prompts prefilled at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl import types
from offpolicy_rl.model import decoder, paging, policy, sharding
from offpolicy_rl.sampler import sampling

_STREAMS = {types.TRAIN: 0, types.EVAL: 1}


class Slots(NamedTuple):
  """What is generated at the moment."""

  token: jax.Array  # int32 [S], the newest one, which the model has not seen
  position: jax.Array  # int32 [S], its place in prompt plus completion
  running: jax.Array  # bool [S]
  keys: jax.Array  # PRNG keys [S]
  temperature: jax.Array  # float32 [S], 0 = greedy
  lengths: jax.Array  # int32 [S], completion tokens, the end-of-sequence token included
  finished: jax.Array  # bool [S], True = ended by itself
  tokens: jax.Array  # int32 [S, M]
  logprobs: jax.Array  # float32 [S, M]; 0 for a greedy token, which had probability 1


class Seats(NamedTuple):
  """Completions to begin. The same sizes whatever their number."""

  fresh: jax.Array  # bool [S], the slots that begin one
  token: jax.Array  # int32 [S], last token of the prompt
  position: jax.Array  # int32 [S], its place
  keys: jax.Array  # uint32 [S, 3]: stream, group index, completion index
  temperature: jax.Array  # float32 [S]
  page_from: jax.Array  # int32 [S], the last page of the prompt where it is not full; 0 = none
  page_to: jax.Array  # int32 [S], the completion's own, which begins as a copy of it


def empty_pool(config: decoder.DecoderConfig, pages: int, page_tokens: int) -> paging.Pool:
  """Born where it stays: split over the mesh like key and value heads."""
  axes = (None, None, "kv_heads", None, None)
  make = lambda: jax.tree.map(
    lambda x: sharding.constrain(x, *axes), paging.empty(config, pages, page_tokens)
  )
  return jax.jit(make)()


def empty(slots: int, max_tokens: int) -> Slots:
  """Nobody is seated."""
  return Slots(
    token=jnp.zeros(slots, jnp.int32),
    position=jnp.zeros(slots, jnp.int32),
    running=jnp.zeros(slots, bool),
    keys=jax.random.split(jax.random.key(0), slots),
    temperature=jnp.ones(slots),
    lengths=jnp.zeros(slots, jnp.int32),
    finished=jnp.zeros(slots, bool),
    tokens=jnp.zeros((slots, max_tokens), jnp.int32),
    logprobs=jnp.zeros((slots, max_tokens)),
  )


def key_numbers(ticket: types.Ticket, completion: int) -> tuple[int, int, int]:
  """What a completion's key is made of besides the seed; never who samples it."""
  return _STREAMS[ticket.kind], ticket.group_index, completion


def _key(seed, numbers):
  key = jax.random.key(seed)
  for number in numbers:
    key = jax.random.fold_in(key, number)
  return key


@functools.partial(jax.jit, static_argnames="config", donate_argnames="pool")
def prefill(config: decoder.DecoderConfig, params, pool, tables, tokens, start) -> paging.Pool:
  """Writes the keys and values of R pieces of prompts.

  Args:
    tables: int32 [R, P]. What lies past a table's pages is written to page 0.
    tokens: int32 [R, T].
    start: int32 [R], the place of the first of them in its prompt.
  """
  positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
  model = policy.module(config, params)
  return model.hidden(tokens, positions, cache=paging.Cache(pool, tables))[1].pool


@functools.partial(jax.jit, donate_argnames=("slots", "pool"))
def seat(slots: Slots, pool: paging.Pool, seats: Seats, seed) -> tuple[Slots, paging.Pool]:
  """Begins completions; the other slots go on."""
  pool = paging.copy(pool, seats.page_from, seats.page_to)
  keys = jax.vmap(lambda numbers: _key(seed, numbers))(seats.keys)
  pick = functools.partial(jnp.where, seats.fresh)
  return slots._replace(
    token=pick(seats.token, slots.token),
    position=pick(seats.position, slots.position),
    running=seats.fresh | slots.running,
    keys=pick(keys, slots.keys),
    temperature=pick(seats.temperature, slots.temperature),
    lengths=pick(0, slots.lengths),
    finished=~seats.fresh & slots.finished,
  ), pool


@jax.jit
def leave(slots: Slots, stays: jax.Array) -> Slots:
  """Ends what runs in the slots where `stays`, bool [S], is False."""
  return slots._replace(running=slots.running & stays)


@functools.partial(
  jax.jit,
  static_argnames=("config", "steps", "ends", "truncation"),
  donate_argnames=("slots", "pool"),
)
def decode(
  config: decoder.DecoderConfig,
  params,
  slots: Slots,
  pool: paging.Pool,
  tables,
  *,
  steps: int,
  ends: tuple[int, ...],
  truncation: sampling.Truncation = sampling.NONE,
) -> tuple[Slots, paging.Pool]:
  """At most `steps` tokens for every running slot.

  Args:
    tables: int32 [S, P], pages of every slot, with room for these tokens.
    ends: tokens that end a completion.
  """
  max_tokens = slots.tokens.shape[1]
  rows = jnp.arange(slots.token.size)

  def one(carried):
    """One token for every slot that runs."""
    step, slots, pool = carried
    # Those that do not run write to page 0.
    cache = paging.Cache(pool, jnp.where(slots.running[:, None], tables, 0))
    position = jnp.where(slots.running, slots.position, 0)
    logits, cache = policy.apply(config, params, slots.token[:, None], position[:, None], cache)
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.lengths)
    draw = functools.partial(sampling.sample_token, truncation=truncation)
    token, logprob = jax.vmap(draw)(logits[:, 0], keys, slots.temperature)
    column = jnp.where(slots.running, slots.lengths, max_tokens)  # past the end: nothing written
    lengths = slots.lengths + slots.running
    ended = slots.running & jnp.isin(token, jnp.array(ends))
    slots = slots._replace(
      token=token,
      position=slots.position + slots.running,
      running=slots.running & ~ended & (lengths < max_tokens),
      lengths=lengths,
      finished=slots.finished | ended,
      tokens=slots.tokens.at[rows, column].set(token, mode="drop"),
      logprobs=slots.logprobs.at[rows, column].set(logprob, mode="drop"),
    )
    return step + 1, slots, cache.pool

  unfinished = lambda carried: (carried[0] < steps) & jnp.any(carried[1].running)
  return jax.lax.while_loop(unfinished, one, (jnp.int32(0), slots, pool))[1:]
