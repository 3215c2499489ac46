"""Generation: prefill the prompts, decode with a KV cache, record what was really sampled from.

A fixed number of slots decodes in lockstep; each slot continues one prompt. Shapes never change, so
there is one compilation, and a completion depends on its own prompt, parameters and key only, not
on the slot or on its neighbours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.model import decoder, policy

_STREAMS = {types.TRAIN: 0, types.EVAL: 1}


class Requests(NamedTuple):
  """What to generate. N prompts, S slots, P prompt tokens."""

  prompts: jax.Array  # int32 [N, P], right padded
  prompt_lengths: jax.Array  # int32 [N]
  slot_prompt: jax.Array  # int32 [S], which prompt a slot continues
  keys: jax.Array  # PRNG keys [S]
  temperature: jax.Array  # float32 [S], 0 = greedy
  active: jax.Array  # bool [S], False = the slot is not used


class Completions(NamedTuple):
  """What was generated. M completion tokens at most."""

  tokens: jax.Array  # int32 [S, M]
  logprobs: jax.Array  # float32 [S, M]; 0 for a greedy token, which had probability 1
  lengths: jax.Array  # int32 [S], the end-of-sequence token included
  finished: jax.Array  # bool [S], True = ended by itself


@jax.jit
def completion_keys(seed, streams, group_indices, completion_indices) -> jax.Array:
  """Keys of completions: of the run, the group and the completion, never of who samples them."""

  def one(stream, group, completion):
    key = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.random.fold_in(jax.random.fold_in(key, group), completion)

  return jax.vmap(one)(streams, group_indices, completion_indices)


def sample_token(logits: jax.Array, key: jax.Array, temperature: jax.Array):
  """One draw from softmax(logits [V] / temperature) -> (token, its logprob); greedy at 0."""
  greedy = temperature == 0
  log_p = jax.nn.log_softmax(logits / jnp.where(greedy, 1.0, temperature))
  drawn = jnp.argmax(log_p + jax.random.gumbel(key, log_p.shape))
  token = jnp.where(greedy, jnp.argmax(logits), drawn)
  return token.astype(jnp.int32), jnp.where(greedy, 0.0, log_p[token])


class _Decoding(NamedTuple):
  step: jax.Array
  logits: jax.Array  # float32 [S, V], of the next token
  cache: decoder.Cache
  done: jax.Array  # bool [S]
  out: Completions


def prefill(config: decoder.DecoderConfig, params, requests: Requests, max_tokens: int):
  """Runs each prompt once -> logits [S, V] of the first completion token, cache of the slots."""
  num_prompts, width = requests.prompts.shape
  cache = decoder.empty_cache(config, num_prompts, width + max_tokens)
  positions = jnp.broadcast_to(jnp.arange(width), (num_prompts, width))
  # Padding also writes keys and values, beyond the prompt; decoding overwrites each such slot
  # before any token can see it.
  last, cache = policy.logits_at(
    config, params, requests.prompts, positions, cache, columns=requests.prompt_lengths - 1
  )
  return last[requests.slot_prompt], jax.tree.map(lambda x: x[:, requests.slot_prompt], cache)


@functools.partial(jax.jit, static_argnames=("config", "max_tokens", "eos"))
def generate(
  config: decoder.DecoderConfig, params, requests: Requests, *, max_tokens: int, eos: int
) -> Completions:
  """Samples until every active slot has ended or holds `max_tokens` tokens."""
  slots = requests.slot_prompt.shape[0]
  start = requests.prompt_lengths[requests.slot_prompt]
  params = policy.cast(config, params)  # once, not in every round of the loop
  logits, cache = prefill(config, params, requests, max_tokens)
  out = Completions(
    tokens=jnp.zeros((slots, max_tokens), jnp.int32),
    logprobs=jnp.zeros((slots, max_tokens)),
    lengths=jnp.zeros(slots, jnp.int32),
    finished=jnp.zeros(slots, bool),
  )

  def decode(state: _Decoding) -> _Decoding:
    keys = jax.vmap(jax.random.fold_in, (0, None))(requests.keys, state.step)
    token, logprob = jax.vmap(sample_token)(state.logits, keys, requests.temperature)
    running = ~state.done
    finished = state.out.finished | (running & (token == eos))
    out = Completions(
      tokens=state.out.tokens.at[:, state.step].set(jnp.where(running, token, 0)),
      logprobs=state.out.logprobs.at[:, state.step].set(jnp.where(running, logprob, 0.0)),
      lengths=state.out.lengths + running,
      finished=finished,
    )
    position = (start + state.step)[:, None]
    logits, cache = policy.apply(config, params, token[:, None], position, state.cache)
    return _Decoding(state.step + 1, logits[:, 0], cache, state.done | finished, out)

  state = _Decoding(jnp.int32(0), logits, cache, ~requests.active, out)
  unfinished = lambda s: (s.step < max_tokens) & ~jnp.all(s.done)
  return jax.lax.while_loop(unfinished, decode, state).out


class Engine:
  """Answers tickets in one `generate` call: packs them into slots and unpacks the completions."""

  def __init__(
    self, config: decoder.DecoderConfig, *, slots: int, prompts: int,
    max_prompt_tokens: int, max_tokens: int, eos: int, seed: int,
  ):  # fmt: skip
    self._config = config
    self._slots, self._prompts = slots, prompts
    self._max_prompt_tokens, self._max_tokens = max_prompt_tokens, max_tokens
    self._eos, self._seed = eos, seed

  def generate(
    self, params, version: int, tickets: list[types.Ticket]
  ) -> list[list[types.Trajectory]]:
    """Unscored trajectories, one list per ticket, in as many calls as the slots ask for.

    Raises:
      ValueError: a ticket asks for more completions than slots, or its prompt is too long.
    """
    groups, start = [], 0
    while start < len(tickets):
      stop = start + 1
      while stop < len(tickets) and self._fits(tickets[start : stop + 1]):
        stop += 1
      groups += self._generate_once(params, version, tickets[start:stop])
      start = stop
    return groups

  def _fits(self, tickets: list[types.Ticket]) -> bool:
    completions = sum(ticket.num_completions for ticket in tickets)
    return len(tickets) <= self._prompts and completions <= self._slots

  def _generate_once(self, params, version, tickets) -> list[list[types.Trajectory]]:
    completions = generate(
      self._config, params, self._requests(tickets), max_tokens=self._max_tokens, eos=self._eos
    )
    completions = jax.device_get(completions)
    groups, slot = [], 0
    for ticket in tickets:
      stop = slot + ticket.num_completions
      groups.append([_trajectory(completions, s, version) for s in range(slot, stop)])
      slot = stop
    return groups

  def _requests(self, tickets: list[types.Ticket]) -> Requests:
    if not self._fits(tickets):
      raise ValueError(
        f"tickets: {len(tickets)} do not fit {self._prompts} prompts, {self._slots} slots"
      )
    prompts = np.zeros((self._prompts, self._max_prompt_tokens), np.int32)
    lengths = np.ones(self._prompts, np.int32)
    slots = np.zeros((4, self._slots), np.int32)  # prompt, stream, group index, completion index
    temperature = np.ones(self._slots, np.float32)
    slot = 0
    for n, ticket in enumerate(tickets):
      if ticket.prompt_tokens.size > self._max_prompt_tokens:
        size = ticket.prompt_tokens.size
        raise ValueError(f"{ticket.ticket_id}: prompt of {size} > {self._max_prompt_tokens} tokens")
      prompts[n, : ticket.prompt_tokens.size] = ticket.prompt_tokens
      lengths[n] = ticket.prompt_tokens.size
      for completion in range(ticket.num_completions):
        slots[:, slot] = n, _STREAMS[ticket.kind], ticket.group_index, completion
        temperature[slot] = ticket.temperature
        slot += 1
    keys = completion_keys(self._seed, slots[1], slots[2], slots[3])
    return Requests(prompts, lengths, slots[0], keys, temperature, np.arange(self._slots) < slot)


def _trajectory(completions: Completions, slot: int, version: int) -> types.Trajectory:
  length = int(completions.lengths[slot])
  return types.Trajectory(
    tokens=completions.tokens[slot, :length],
    logprobs=completions.logprobs[slot, :length],
    versions=np.full(length, version, np.int32),
    finished=bool(completions.finished[slot]),
  )
