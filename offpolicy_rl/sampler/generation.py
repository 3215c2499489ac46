"""The devices' work: prefill prompts, start completions, decode.

A fixed number of slots decodes in lockstep; each slot continues one prompt. Shapes never change, so
each program is compiled once, and a completion depends only on its prompt, parameters and key: not
on its slot, its neighbours or the time of its start.

Sizes as in `types`: N completions, one per slot, M tokens of each, B prompts prefilled at a time.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.model import decoder, paging, policy, sharding
from offpolicy_rl.sampler import sampling

_STREAMS = {types.TRAIN: 0, types.EVAL: 1}
_LATER_TURNS = np.uint32(1 << 31)  # more than any completion has tokens


class Slots(NamedTuple):
  """The state of all slots."""

  token: jax.Array  # int32 [N], the newest one, which the model has not seen
  position: jax.Array  # int32 [N], of that token in prompt and completion
  running: jax.Array  # bool [N]
  keys: jax.Array  # PRNG keys [N]
  temperature: jax.Array  # float32 [N], 0 = greedy
  lengths: jax.Array  # int32 [N], completion tokens, the end-of-sequence token included
  limits: jax.Array  # int32 [N], of these lengths
  finished: jax.Array  # bool [N], True = ended by itself
  tokens: jax.Array  # int32 [N, M]
  logprobs: jax.Array  # float32 [N, M]; 0 for a greedy token, which had probability 1
  candidates: types.Candidates | None = None  # [N, M, I]; None = none are recorded


class Starts(NamedTuple):
  """Completions to start, as host arrays whose sizes do not depend on their number."""

  fresh: Any  # bool [N], the slots that start one
  token: Any  # int32 [N], last token of the prompt, or of the turns before
  position: Any  # int32 [N], of that token
  limit: Any  # int32 [N], tokens to sample at most
  keys: Any  # uint32 [N, 4]: stream, group index, completion index, turn
  temperature: Any  # float32 [N]
  page_from: Any  # int32 [N], the last page of the prompt if it is not full; 0 = none
  page_to: Any  # int32 [N], the completion's first page, which begins as a copy of it


def empty_pool(config: decoder.DecoderConfig, pages: int, page_tokens: int) -> paging.Pool:
  """A pool of pages, allocated split over the mesh like key and value heads."""
  constrain = lambda x: sharding.constrain(x, None, None, "kv_heads", None, None)
  make = lambda: jax.tree.map(constrain, paging.empty(config, pages, page_tokens))
  return jax.jit(make)()


def empty(slots: int, max_tokens: int, candidates: int = 0) -> Slots:
  """Slots in which nothing runs; `candidates`: to record per token."""
  recorded = (slots, max_tokens, candidates)
  return Slots(
    token=jnp.zeros(slots, jnp.int32),
    position=jnp.zeros(slots, jnp.int32),
    running=jnp.zeros(slots, bool),
    keys=jax.random.split(jax.random.key(0), slots),
    temperature=jnp.ones(slots),
    lengths=jnp.zeros(slots, jnp.int32),
    limits=jnp.full(slots, max_tokens, jnp.int32),
    finished=jnp.zeros(slots, bool),
    tokens=jnp.zeros((slots, max_tokens), jnp.int32),
    logprobs=jnp.zeros((slots, max_tokens)),
    candidates=(
      types.Candidates(jnp.zeros(recorded, jnp.int32), jnp.zeros(recorded)) if candidates else None
    ),
  )


def no_starts(slots: int) -> Starts:
  """Arrays for `slots` slots, in which nothing starts yet."""
  zeros = lambda: np.zeros(slots, np.int32)
  return Starts(
    fresh=np.zeros(slots, bool),
    token=zeros(),
    position=zeros(),
    limit=zeros(),
    keys=np.zeros((slots, 4), np.uint32),
    temperature=np.ones(slots, np.float32),
    page_from=zeros(),
    page_to=zeros(),
  )


def key_numbers(ticket: types.Ticket, completion: int, turn: int = 0) -> tuple[int, ...]:
  """The numbers folded into a turn's key, besides the seed; never the sampler."""
  return _STREAMS[ticket.kind], ticket.group_index, completion, turn


def _key(seed, numbers):
  key = jax.random.key(seed)
  for number in numbers[:3]:
    key = jax.random.fold_in(key, number)
  # A token's number is folded into the key of its turn, in the first turn into this very key.
  later = jax.random.fold_in(key, _LATER_TURNS + numbers[3])
  return jnp.where(numbers[3] > 0, later, key)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="pool")
def prefill(
  config: decoder.DecoderConfig,
  params: dict,
  pool: paging.Pool,
  tables: jax.Array,
  tokens: jax.Array,
  start: jax.Array,
) -> paging.Pool:
  """Writes the keys and values of B pieces of prompts.

  Args:
    tables: int32 [B, Z]; tokens past a table's pages are written to page 0.
    tokens: int32 [B, T].
    start: int32 [B], position of the first token in its prompt.
  """
  positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
  model = policy.module(config, params)
  _, cache, _ = model.hidden(tokens, positions, cache=paging.Cache(pool, tables))
  assert cache is not None, "one was given"
  return cache.pool


@functools.partial(jax.jit, donate_argnames=("slots", "pool"))
def start(slots: Slots, pool: paging.Pool, starts: Starts, seed: int) -> tuple[Slots, paging.Pool]:
  """Starts completions; the other slots continue."""
  pool = paging.copy(pool, starts.page_from, starts.page_to)
  keys = jax.vmap(lambda numbers: _key(seed, numbers))(starts.keys)
  pick = functools.partial(jnp.where, starts.fresh)
  return slots._replace(
    token=pick(starts.token, slots.token),
    position=pick(starts.position, slots.position),
    running=starts.fresh | slots.running,
    keys=pick(keys, slots.keys),
    temperature=pick(starts.temperature, slots.temperature),
    lengths=pick(0, slots.lengths),
    limits=pick(starts.limit, slots.limits),
    finished=~starts.fresh & slots.finished,
  ), pool


@jax.jit
def stop(slots: Slots, stays: jax.Array) -> Slots:
  """Stops the slots where `stays`, bool [N], is False."""
  return slots._replace(running=slots.running & stays)


@jax.jit
def candidates_of(slots: Slots, slot: jax.Array) -> types.Candidates:
  """Those recorded in one slot, [M, I]; of all slots together they may be large."""
  return jax.tree.map(lambda x: x[slot], slots.candidates)


@functools.partial(
  jax.jit,
  static_argnames=("config", "steps", "ends", "truncation"),
  donate_argnames=("slots", "pool"),
)
def decode(
  config: decoder.DecoderConfig,
  params: dict,
  slots: Slots,
  pool: paging.Pool,
  tables: jax.Array,
  *,
  steps: int,
  ends: tuple[int, ...],
  truncation: sampling.Truncation = sampling.NONE,
) -> tuple[Slots, paging.Pool]:
  """Decodes at most `steps` tokens in every running slot.

  Args:
    tables: int32 [N, Z], pages of every slot, with room for these tokens.
    ends: tokens that end a completion.
  """
  max_tokens = slots.tokens.shape[1]
  rows = jnp.arange(slots.token.size)
  recorded = 0 if slots.candidates is None else slots.candidates.tokens.shape[-1]

  def one_token(carried):
    step, slots, pool = carried
    # Slots that do not run write to page 0.
    cache = paging.Cache(pool, jnp.where(slots.running[:, None], tables, 0))
    position = jnp.where(slots.running, slots.position, 0)
    logits, extended = policy.apply(config, params, slots.token[:, None], position[:, None], cache)
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.lengths)
    draw = functools.partial(sampling.sample_token, truncation=truncation, candidates=recorded)
    token, logprob, candidates = jax.vmap(draw)(logits[:, 0], keys, slots.temperature)
    column = jnp.where(slots.running, slots.lengths, max_tokens)  # past the end: nothing written
    lengths = slots.lengths + slots.running
    ended = slots.running & jnp.isin(token, jnp.array(ends))
    write = lambda x, new: x.at[rows, column].set(new, mode="drop")
    slots = slots._replace(
      token=token,
      position=slots.position + slots.running,
      running=slots.running & ~ended & (lengths < slots.limits),
      lengths=lengths,
      finished=slots.finished | ended,
      tokens=write(slots.tokens, token),
      logprobs=write(slots.logprobs, logprob),
      candidates=jax.tree.map(write, slots.candidates, candidates),
    )
    assert extended is not None, "one was given"
    return step + 1, slots, extended.pool

  unfinished = lambda carried: (carried[0] < steps) & jnp.any(carried[1].running)
  return jax.lax.while_loop(unfinished, one_token, (jnp.int32(0), slots, pool))[1:]
