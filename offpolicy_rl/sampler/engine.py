"""Continuous batching: slots and pages of completions.

Tickets wait in a queue. A group's prompt is prefilled once, in pieces between decoding; its
completions start as slots become free, and share the prompt's pages. A completion that waits for
its environment keeps its pages, not its slot. This file only counts; the devices' work is in
`generation`.
"""

import collections
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.environments.episodes import World
from offpolicy_rl.model import decoder, sharding
from offpolicy_rl.sampler import generation, in_progress, prefilling, sampling, sizing, stopping
from offpolicy_rl.sampler.in_progress import Completion, Finished, Group
from offpolicy_rl.sampler.prefilling import Piece

_REPLY_SECONDS = 0.05  # an engine whose completions all wait looks this often for their replies


class Engine:
  """Answers tickets; each `step` decodes a few tokens in all slots."""

  def __init__(
    self,
    config: decoder.DecoderConfig,
    sizes: sizing.Sizes,
    *,
    stops: stopping.Stops,
    seed: int,
    truncation: sampling.Truncation = sampling.NONE,
    mesh: jax.sharding.Mesh | None = None,
    episodes: World | None = None,
  ):
    """Allocates the cache.

    Args:
      mesh: of the parameters; the cache is split like key and value heads. None = the first device.
      episodes: play completions, turn by turn; None = every completion has one turn.

    Raises:
      ValueError: the cache is too small for a single completion.
    """
    least = 2 * sizes.row_pages * sizes.page_tokens
    if sizes.cache_tokens and sizes.cache_tokens < least:
      raise ValueError(f"cache_tokens: got {sizes.cache_tokens}, expected at least {least}")
    self._mesh = mesh or sharding.make_mesh()
    self._config, self._sizes = sizing.with_attention(config, sizes, self._mesh), sizes
    self._seed, self._stops, self._truncation = seed, stops, truncation
    self._episodes = episodes
    with jax.sharding.set_mesh(self._mesh):
      self._pool = generation.empty_pool(config, sizes.pages, sizes.page_tokens)
      self._slots = generation.empty(sizes.slots, sizes.max_tokens, sizes.candidates)
    self._tables = np.zeros((sizes.slots, sizes.row_pages), np.int32)
    self._pages = list(range(sizes.pages - 1, 0, -1))  # free ones
    self._tickets: collections.deque[types.Ticket] = collections.deque()
    # From a ticket on: filling, ready, running; after a turn waiting, answered, resuming, ready.
    self._filling: list[Group] = []  # prompts that are being prefilled
    self._ready: collections.deque[Completion] = collections.deque()
    self._running: dict[int, Completion] = {}  # by slot, in the order in which they started
    self._waiting: dict[Any, Completion] = {}  # for their environments
    self._answered: collections.deque[Completion] = collections.deque()  # that wait for pages
    self._resuming: list[Completion] = []  # whose replies are being prefilled
    self._started: dict[str, float] = {}  # ticket id -> when its first completion got a slot
    self.busy = 0  # slots in which the last step decoded

  @property
  def idle(self) -> bool:
    return not (self._tickets or self._filling or next(self._completions(), None))

  @property
  def room(self) -> int:
    """Completions that would get a slot at once if their prompts were prefilled."""
    tickets = [*self._tickets, *(group.ticket for group in self._filling)]
    return self._to_begin() - sum(ticket.num_completions for ticket in tickets)

  @property
  def room_soon(self) -> int:
    """Certain room after the next step, in which completions of full length end."""
    last = self._sizes.max_tokens - self._sizes.steps
    alone = (c for c in self._running.values() if c.episode is None)  # nobody may continue them
    return self.room + sum(len(c.versions) >= last for c in alone)

  @property
  def progress(self) -> dict[str, int]:
    """Ticket id -> tokens prefilled and sampled so far, for every ticket in progress."""
    tokens = {ticket.ticket_id: 0 for ticket in self._tickets}
    for group in self._groups():
      sampled = sum(trajectory.tokens.size for trajectory in group.done.values())
      tokens[group.ticket.ticket_id] = group.cached + sampled
    for completion in self._completions():
      sampled = completion.earlier + len(completion.versions)
      tokens[completion.group.ticket.ticket_id] += sampled
    return tokens

  def pop_started(self, ticket_id: str) -> float | None:
    """The time (`time.monotonic`) at which a ticket's first completion got a slot; told once."""
    return self._started.pop(ticket_id, None)

  def _completions(self) -> Iterator[Completion]:
    """Those whose prompts are prefilled."""
    yield from self._running.values()
    yield from self._ready
    yield from self._waiting.values()
    yield from self._answered
    yield from self._resuming

  def _groups(self) -> set[Group]:
    """Those whose prompts have pages."""
    begun = {completion.group for completion in self._completions()}
    return begun | set(self._filling)

  def add(self, tickets: list[types.Ticket]) -> None:
    """Queues tickets; ValueError if a prompt is too long."""
    for ticket in tickets:
      size = ticket.prompt_tokens.size
      if not 0 < size <= self._sizes.max_prompt_tokens:
        raise ValueError(
          f"{ticket.ticket_id}: prompt of {size} tokens, expected 1 to "
          f"{self._sizes.max_prompt_tokens}"
        )
    self._tickets.extend(tickets)

  def generate(
    self, params: dict, version: int, tickets: list[types.Ticket]
  ) -> list[list[types.Trajectory]]:
    """The unscored groups of tickets, in order; nothing else may be in progress."""
    self.add(tickets)
    answers = {}
    while not self.idle:
      for ticket, trajectories in self.step(params, version):
        answers[id(ticket)] = trajectories
    self._started.clear()
    return [answers[id(ticket)] for ticket in tickets]

  def step(self, params: dict, version: int) -> list[Finished]:
    """Prefills and decodes a little; returns the complete groups, unscored."""
    with jax.sharding.set_mesh(self._mesh):
      complete = self._hear()
      self._prefill(params)
      self._start()
      self.busy = len(self._running)
      return complete + (self._decode(params, version) if self._running else [])

  def _hear(self) -> list[Finished]:
    """Takes the replies of environments; returns the groups that these complete."""
    if self._episodes is None or not self._waiting:
      return []
    complete = []
    busy = len(self._waiting) < sum(1 for _ in self._completions()) or self._filling
    for episode, reply in self._episodes.replies(0 if busy else _REPLY_SECONDS):
      completion = self._waiting.pop(episode)
      completion.spend("world")
      completion.limit = reply.limit
      if reply.ended:
        self._pages += completion.pages
        done = in_progress.trajectory(completion, episode.rewards, reply.ended)
        complete += self._done(completion, done)
      elif reply.tokens.size:
        if reply.to is not None:
          completion.go_back(reply.to)
        recorded = self._recorded(completion.group.ticket)
        completion.spans.append(in_progress.environment_span(reply.tokens, recorded))
        _queue(completion, self._answered)
      else:
        _queue(completion, self._ready)
    return complete

  def _done(self, completion: Completion, trajectory: types.Trajectory) -> list[Finished]:
    """Keeps a completion that is over; returns its group if that is complete."""
    group = completion.group
    group.done[completion.index] = trajectory
    if not group.is_complete:
      return []
    self._pages += group.pages
    return [(group.ticket, group.trajectories)]

  def _decode(self, params, version: int):
    self._reserve()
    before = {slot: len(completion.versions) for slot, completion in self._running.items()}
    self._slots, self._pool = generation.decode(
      self._config,
      params,
      self._slots,
      self._pool,
      self._tables,
      steps=self._sizes.steps,
      ends=self._stops.tokens,
      truncation=self._truncation,
    )
    # Waits for the devices: on CPU they read the tables in place, and these will change.
    running, lengths = map(np.array, jax.device_get((self._slots.running, self._slots.lengths)))
    cut = self._cut(before, lengths, running)
    for slot, completion in self._running.items():
      completion.versions += [version] * (int(lengths[slot]) - before[slot])
    return self._collect([slot for slot in self._running if not running[slot]], cut)

  def _cut(self, before: dict[int, int], lengths, running) -> set[int]:
    """Ends completions at a stop text, also in `lengths` and `running`; returns their slots."""
    if not self._stops.texts:
      return set()
    tokens, cut = jax.device_get(self._slots.tokens), set()
    for slot, looked_at in before.items():
      length = self._stops.length(tokens[slot, : lengths[slot]].tolist(), looked_at)
      if length is not None:
        lengths[slot], running[slot] = length, False
        cut.add(slot)
    if cut:
      self._slots = generation.stop(self._slots, running)
    return cut

  def _prefill(self, params) -> None:
    """Prefills replies for the free slots; and prompts, a piece of each while others decode."""
    self._resume()
    # Those that wait for pages may wait for the ends of just these episodes.
    while self._resuming and self._can_start < self._sizes.slots - len(self._running):
      shape = self._sizes.reply_shape(self._resuming[0].missing)
      alike = [x for x in self._resuming if self._sizes.reply_shape(x.missing) == shape]
      self._write_next(params, alike[: shape.rows], shape)
      for completion in (x for x in alike if not x.missing):
        self._resuming.remove(completion)
        _queue(completion, self._ready)
    while self._to_begin() > 0:
      self._begin()
      if not self._filling:
        return
      shape = self._sizes.prompt_shape
      self._write_next(params, self._filling[: shape.rows], shape)
      for group in (x for x in self._filling if not x.missing):
        self._filled(group)
      self._filling = [group for group in self._filling if group.missing]
      if self._running:
        return

  @property
  def _can_start(self) -> int:
    return sum(bool(completion.pages) for completion in self._ready)

  def _write_next(self, params, rows: Sequence[Group | Completion], shape: sizing.Shape) -> None:
    """Prefills the next piece of each row."""
    pieces = []
    for row in rows:
      tokens = row.tokens[row.cached : -1][: shape.columns]
      pieces.append(Piece(self._table(row), tokens, row.cached))
      row.cached += tokens.size
    self._write(params, pieces, shape)

  def _write(self, params, pieces: Sequence[Piece], shape: sizing.Shape) -> None:
    arrays = prefilling.arrays(pieces, shape, self._sizes.row_pages)
    self._pool = generation.prefill(self._config, params, self._pool, *arrays)

  def _table(self, row: Group | Completion) -> Sequence[int]:
    return row.pages if isinstance(row, Group) else row.table(self._sizes.page_tokens)

  def _filled(self, group: Group) -> None:
    """Lets the completions of a prefilled prompt start; episodes begin first."""
    for index in range(group.ticket.num_completions):
      completion = Completion(group, index, limit=self._sizes.max_tokens)
      if self._episodes is not None:
        completion.episode = self._episodes.begin(group.ticket, index)
      if completion.episode is None:
        self._ready.append(completion)
      else:
        self._waiting[completion.episode] = completion

  def refresh(self, params: dict) -> None:
    """Recomputes the keys and values of everything in progress with other parameters."""
    sampled, rows = jax.device_get(self._slots.tokens), []
    slots = {completion: slot for slot, completion in self._running.items()}
    for completion in self._completions():
      tokens = completion.tokens[: completion.cached]
      if completion in slots:
        now = sampled[slots[completion], : len(completion.versions)]
        tokens = np.concatenate([completion.tokens, now])[:-1]
      begin = completion.group.shared(self._sizes.page_tokens) * self._sizes.page_tokens
      if completion.pages:
        rows.append(Piece(self._table(completion), tokens[begin:], begin))
    prompts = [Piece(group.pages, group.tokens[: group.cached], 0) for group in self._groups()]
    shape = self._sizes.prompt_shape
    with jax.sharding.set_mesh(self._mesh):
      for pieces in (*prefilling.batches(prompts, shape), *prefilling.batches(rows, shape)):
        self._write(params, pieces, shape)

  def _to_begin(self) -> int:
    """Completions that may begin: those that wait need no slot, but all together have a limit."""
    begun = sum(1 for _ in self._completions())
    return min(self._sizes.slots + len(self._waiting), self._sizes.most) - begun

  def _resume(self) -> None:
    """Lets the prefilling of replies begin, as far as there are pages."""
    sizes = self._sizes
    while self._answered and self._fits(self._answered[0], self._spare()):
      completion = self._answered.popleft()
      if not completion.pages:  # its first turn: what no shared page holds is computed again
        completion.cached = completion.group.shared(sizes.page_tokens) * sizes.page_tokens
      needed = math.ceil(completion.size / sizes.page_tokens) - len(self._table(completion))
      completion.pages += self._take(max(0, needed))
      self._resuming.append(completion)

  def _begin(self) -> None:
    """Lets the prefilling of prompts begin, as far as there are pages."""
    sizes, rows = self._sizes, self._sizes.prompt_shape.rows
    coming = sum(group.ticket.num_completions for group in self._filling)
    while self._tickets and len(self._filling) < rows and coming < self._to_begin():
      needed = math.ceil((self._tickets[0].prompt_tokens.size - 1) / sizes.page_tokens)
      # Leaves enough for the completion that started first, so that one always goes on.
      if self._spare() < needed + sizes.row_pages:
        return
      ticket = self._tickets.popleft()
      group = Group(ticket, self._take(needed))
      if group.missing:
        self._filling.append(group)
        coming += ticket.num_completions
      else:
        self._filled(group)

  def _take(self, number: int) -> list[int]:
    return [self._pages.pop() for _ in range(number)]

  def _set_aside(self, completion: Completion) -> int:
    """Pages that are kept for a completion from its first one on."""
    if self._episodes is None:
      return 1  # when no more are free, `_reserve` lets it start over
    # An episode can't start over, so all that it can need.
    return self._sizes.row_pages - completion.group.shared(self._sizes.page_tokens)

  def _spare(self) -> int:
    """Free pages that are not set aside."""
    holders = (completion for completion in self._completions() if completion.pages)
    owed = sum(max(0, self._set_aside(holder) - len(holder.pages)) for holder in holders)
    return len(self._pages) - owed

  def _fits(self, completion: Completion, spare: int) -> bool:
    return bool(completion.pages) or spare >= self._set_aside(completion)

  def _start(self) -> None:
    sizes, now = self._sizes, time.monotonic()
    free = [slot for slot in reversed(range(sizes.slots)) if slot not in self._running]
    starts, spare = generation.no_starts(sizes.slots), self._spare()
    while free and self._ready and self._fits(self._ready[0], spare):
      slot, completion = free.pop(), self._ready.popleft()
      completion.spend("queue")
      group = completion.group
      if not completion.pages:
        completion.pages = self._take(1)
        spare -= self._set_aside(completion)
        for partial in group.pages[group.shared(sizes.page_tokens) :]:  # one that is not full
          starts.page_from[slot], starts.page_to[slot] = partial, completion.pages[0]
      table = self._table(completion)
      self._tables[slot] = 0
      self._tables[slot, : len(table)] = table
      starts.fresh[slot], starts.temperature[slot] = True, group.ticket.temperature
      starts.token[slot], starts.position[slot] = completion.tokens[-1], completion.size - 1
      starts.limit[slot] = completion.limit
      starts.keys[slot] = generation.key_numbers(group.ticket, completion.index, completion.turn)
      self._running[slot] = completion
      self._started.setdefault(group.ticket.ticket_id, now)
    if starts.fresh.any():
      self._slots, self._pool = generation.start(self._slots, self._pool, starts, self._seed)

  def _reserve(self) -> None:
    """Takes pages for the next tokens; if none is free, the newest completion starts over."""
    stays = np.ones(self._sizes.slots, bool)
    for slot in list(self._running):
      while slot in self._running and self._needs_page(slot):
        if not self._pages:
          last = next(reversed(self._running))
          self._ready.appendleft(self._free(last))
          stays[last] = False
          continue
        completion = self._running[slot]
        completion.pages += self._take(1)
        column = len(self._table(completion)) - 1
        self._tables[slot, column] = completion.pages[-1]
    if not stays.all():
      self._slots = generation.stop(self._slots, stays)

  def _needs_page(self, slot: int) -> bool:
    completion, sizes = self._running[slot], self._sizes
    sampled = min(len(completion.versions) + sizes.steps, completion.limit)
    pages = len(self._table(completion))
    return pages * sizes.page_tokens < completion.size - 1 + sampled

  def _free(self, slot: int) -> Completion:
    """Frees a slot and its pages; the completion in it loses its tokens."""
    completion = self._running.pop(slot)
    self._pages += completion.pages
    completion.pages, completion.versions = [], []
    return completion

  def _collect(self, slots: list[int], cut: set[int]) -> list[Finished]:
    """Takes completions whose turn ended out of their slots; returns the complete groups."""
    if not slots:
      return []
    state = jax.device_get(self._slots._asdict() | {"keys": None, "candidates": None})
    complete = []
    for slot in slots:
      completion = self._running[slot]
      length = len(completion.versions)
      span = types.Span(
        tokens=state["tokens"][slot, :length].copy(),
        logprobs=state["logprobs"][slot, :length].copy(),
        versions=np.array(completion.versions, np.int32),
        candidates=self._candidates(slot, completion.group.ticket, length),
        cut=not (slot in cut or state["finished"][slot]),
      )
      if completion.episode is None:
        self._free(slot)
        complete += self._done(
          completion, types.Trajectory(*span[:3], not span.cut, candidates=span[3])
        )
      else:
        del self._running[slot]
        completion.spend("model")
        self._wait(completion, completion.episode, span)
    return complete

  def _wait(self, completion: Completion, episode: Any, span: types.Span) -> None:
    """Gives the policy's turn to its environment; the completion keeps its pages."""
    assert self._episodes is not None, "it began there"
    completion.spans.append(span)
    completion.versions, completion.turn = [], completion.turn + 1
    completion.cached = completion.size - 1  # the last token was not computed
    self._waiting[episode] = completion
    self._episodes.act(episode, span)

  def _recorded(self, ticket: types.Ticket) -> int:
    """Candidates recorded with each token; evaluation needs none."""
    return 0 if ticket.kind == types.EVAL else self._sizes.candidates

  def _candidates(self, slot: int, ticket: types.Ticket, length: int) -> types.Candidates | None:
    """Those of a slot's first tokens."""
    if not self._recorded(ticket):
      return None
    recorded = jax.device_get(generation.candidates_of(self._slots, slot))
    return jax.tree.map(lambda x: x[:length].copy(), recorded)


def _queue(completion: Completion, queue: collections.deque[Completion]) -> None:
  """Puts one that has begun behind the others that have: they wait for no pages."""
  begun = sum(bool(other.pages) for other in queue)
  queue.insert(begun if completion.pages else len(queue), completion)
