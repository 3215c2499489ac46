"""Continuous batching: slots and pages of completions.

Tickets wait in a queue. A group's prompt is prefilled once, in pieces between decoding; its
completions start as slots become free, and share the prompt's pages. This file only counts; the
devices' work is in `generation`.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.model import attention, decoder, sharding
from offpolicy_rl.sampler import generation, sampling, stopping


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of an engine."""

  slots: int  # completions decoded side by side
  group_size: int  # completions of most prompts
  max_prompt_tokens: int
  max_tokens: int  # of a completion
  page_tokens: int = 32
  cache_tokens: int = 0  # of all rows together; 0 = enough for full slots of the longest rows
  prefill_tokens: int = 128  # at a time, of one long prompt or of several short ones
  steps: int = 8  # tokens decoded per dispatch
  candidates: int = 0  # recorded with every token of training

  @property
  def piece_tokens(self) -> int:
    """Tokens of a prompt prefilled at a time; the last one is left to the completions."""
    return max(1, min(self.prefill_tokens, self.max_prompt_tokens - 1))

  @property
  def prefill_rows(self) -> int:
    """Prompts prefilled at a time, no more than the slots can use."""
    return max(1, min(self.prefill_tokens // self.piece_tokens, self.slots // self.group_size))

  @property
  def row_pages(self) -> int:
    return math.ceil((self.max_prompt_tokens + self.max_tokens) / self.page_tokens)

  @property
  def pages(self) -> int:
    """Pages in the pool, page 0 included."""
    if self.cache_tokens:
      return 1 + self.cache_tokens // self.page_tokens
    shared = (self.max_prompt_tokens - 1) // self.page_tokens
    prompts = 2 * math.ceil(self.slots / self.group_size) + self.prefill_rows
    return 1 + self.slots * (self.row_pages - shared) + prompts * (shared + 1)


def with_attention(
  config: decoder.DecoderConfig, sizes: Sizes, mesh: jax.sharding.Mesh
) -> decoder.DecoderConfig:
  """The model with the attention kernel with which an engine on this mesh decodes."""
  kernel = attention.decoding_kernel(
    mesh.devices.flat[0].platform,
    config,
    page_tokens=sizes.page_tokens,
    table_entries=sizes.slots * sizes.row_pages,
    shards=mesh.shape[sharding.RULES["kv_heads"]],
  )
  return dataclasses.replace(config, attention=kernel)


@dataclasses.dataclass(eq=False)
class _Group:
  """A ticket in progress; its prompt is in the cache, except for the last token."""

  ticket: types.Ticket
  pages: list[int]  # of the prompt
  prefilled: int = 0  # tokens
  done: dict[int, types.Trajectory] = dataclasses.field(default_factory=dict)  # by index

  @property
  def tokens(self) -> np.ndarray:
    return self.ticket.prompt_tokens

  @property
  def missing(self) -> int:
    return self.tokens.size - 1 - self.prefilled


@dataclasses.dataclass(eq=False)
class _Completion:
  group: _Group
  index: int  # in its group
  pages: list[int] = dataclasses.field(default_factory=list)  # besides those of the prompt
  versions: list[int] = dataclasses.field(default_factory=list)  # of its tokens


class Engine:
  """Answers tickets; each `step` decodes a few tokens in all slots."""

  def __init__(
    self,
    config: decoder.DecoderConfig,
    sizes: Sizes,
    *,
    stops: stopping.Stops,
    seed: int,
    truncation: sampling.Truncation = sampling.NONE,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Allocates the cache.

    Args:
      mesh: of the parameters; the cache is split like key and value heads. None = the first device.

    Raises:
      ValueError: the cache is too small for a single completion.
    """
    least = 2 * sizes.row_pages * sizes.page_tokens
    if sizes.cache_tokens and sizes.cache_tokens < least:
      raise ValueError(f"cache_tokens: got {sizes.cache_tokens}, expected at least {least}")
    self._mesh = mesh or sharding.make_mesh()
    self._config, self._sizes = with_attention(config, sizes, self._mesh), sizes
    self._seed, self._stops, self._truncation = seed, stops, truncation
    with jax.sharding.set_mesh(self._mesh):
      self._pool = generation.empty_pool(config, sizes.pages, sizes.page_tokens)
      self._slots = generation.empty(sizes.slots, sizes.max_tokens, sizes.candidates)
    self._tables = np.zeros((sizes.slots, sizes.row_pages), np.int32)
    self._pages = list(range(sizes.pages - 1, 0, -1))  # free ones
    self._tickets: collections.deque[types.Ticket] = collections.deque()
    self._filling: list[_Group] = []  # their prompts are being prefilled
    self._ready: collections.deque[_Completion] = collections.deque()
    self._running: dict[int, _Completion] = {}  # by slot, in the order in which they started
    self._started: dict[str, float] = {}  # ticket id -> when its first completion got a slot

  @property
  def idle(self) -> bool:
    return not (self._tickets or self._filling or self._ready or self._running)

  @property
  def room(self) -> int:
    """Completions that would get a slot at once if their prompts were prefilled."""
    waiting = [*self._tickets, *(group.ticket for group in self._filling)]
    return self._wanted() - sum(ticket.num_completions for ticket in waiting)

  @property
  def room_soon(self) -> int:
    """Certain room after the next step, in which completions of full length end."""
    last = self._sizes.max_tokens - self._sizes.steps
    return self.room + sum(len(c.versions) >= last for c in self._running.values())

  @property
  def progress(self) -> dict[str, int]:
    """Ticket id -> tokens prefilled and sampled so far, for every ticket in progress."""
    tokens = {ticket.ticket_id: 0 for ticket in self._tickets}
    for group in self._groups():
      sampled = sum(trajectory.tokens.size for trajectory in group.done.values())
      tokens[group.ticket.ticket_id] = group.prefilled + sampled
    for completion in self._running.values():
      tokens[completion.group.ticket.ticket_id] += len(completion.versions)
    return tokens

  def pop_started(self, ticket_id: str) -> float | None:
    """The time (`time.monotonic`) at which a ticket's first completion got a slot; told once."""
    return self._started.pop(ticket_id, None)

  def _groups(self) -> set[_Group]:  # those whose prompts have pages
    begun = (completion.group for completion in (*self._running.values(), *self._ready))
    return {*begun, *self._filling}

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

  def step(self, params: dict, version: int) -> list[tuple[types.Ticket, list[types.Trajectory]]]:
    """Prefills and decodes a little; returns the complete groups, unscored."""
    with jax.sharding.set_mesh(self._mesh):
      self._prefill(params)
      self._start()
      return self._decode(params, version) if self._running else []

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
    """Prefills pieces of prompts: one each while others decode, else until one is complete."""
    while self._wanted() > 0:
      self._begin()
      if not self._filling:
        return
      pieces = []
      for group in self._filling:
        piece = group.tokens[group.prefilled : -1][: self._sizes.piece_tokens]
        pieces.append((group.pages, piece, group.prefilled))
        group.prefilled += piece.size
        if not group.missing:
          self._ready.extend(_completions(group))
      self._write(params, pieces)
      self._filling = [group for group in self._filling if group.missing]
      if self._running:
        return

  def _write(self, params, pieces: Sequence[tuple[Sequence[int], np.ndarray, int]]) -> None:
    """Computes keys and values of a few rows: (pages, some tokens, position of the first)."""
    sizes = self._sizes
    tokens = np.zeros((sizes.prefill_rows, sizes.piece_tokens), np.int32)
    tables = np.zeros((sizes.prefill_rows, sizes.row_pages), np.int32)
    start = np.zeros(sizes.prefill_rows, np.int32)
    for row, (pages, piece, first) in enumerate(pieces):
      tokens[row, : piece.size] = piece
      tables[row, : len(pages)] = pages
      start[row] = first
    self._pool = generation.prefill(self._config, params, self._pool, tables, tokens, start)

  def refresh(self, params: dict) -> None:
    """Recomputes the keys and values of everything in progress with other parameters."""
    sampled, rows = jax.device_get(self._slots.tokens), []
    for slot, completion in self._running.items():
      group, length = completion.group, len(completion.versions)
      row = np.concatenate([group.tokens, sampled[slot, :length]])[:-1]
      begin = self._shared(group) * self._sizes.page_tokens
      rows.append((self._tables[slot], row[begin:], begin))
    prompts = [(group.pages, group.tokens[: group.prefilled], 0) for group in self._groups()]
    with jax.sharding.set_mesh(self._mesh):
      self._write_all(params, prompts)
      self._write_all(params, rows)

  def _write_all(self, params, rows: Iterable[tuple[Sequence[int], np.ndarray, int]]) -> None:
    """`_write` for any number of independent rows of any length."""
    size, left = self._sizes.piece_tokens, collections.deque(row for row in rows if row[1].size)
    while left:
      now = [left.popleft() for _ in range(min(len(left), self._sizes.prefill_rows))]
      self._write(params, [(pages, tokens[:size], first) for pages, tokens, first in now])
      rest = ((pages, tokens[size:], first + size) for pages, tokens, first in now)
      left.extend(row for row in rest if row[1].size)

  def _wanted(self) -> int:  # slots for which no completion is ready
    return self._sizes.slots - len(self._running) - len(self._ready)

  def _begin(self) -> None:
    sizes = self._sizes
    coming = sum(group.ticket.num_completions for group in self._filling)
    while self._tickets and len(self._filling) < sizes.prefill_rows and coming < self._wanted():
      needed = math.ceil((self._tickets[0].prompt_tokens.size - 1) / sizes.page_tokens)
      # Leaves enough for the completion that started first, so that one always goes on.
      if len(self._pages) < needed + sizes.row_pages:
        return
      ticket = self._tickets.popleft()
      group = _Group(ticket, self._take(needed))
      if group.missing:
        self._filling.append(group)
        coming += ticket.num_completions
      else:
        self._ready.extend(_completions(group))

  def _take(self, number: int) -> list[int]:
    return [self._pages.pop() for _ in range(number)]

  def _shared(self, group: _Group) -> int:
    """Number of full pages of the prompt, which completions read in place."""
    return (group.tokens.size - 1) // self._sizes.page_tokens

  def _start(self) -> None:
    sizes = self._sizes
    free = [slot for slot in range(sizes.slots) if slot not in self._running]
    free = free[: min(len(self._ready), len(self._pages))]
    if not free:
      return
    numbers = np.zeros((4, sizes.slots), np.int32)  # token, position, page from, page to
    fresh, temperature = np.zeros(sizes.slots, bool), np.ones(sizes.slots, np.float32)
    now = time.monotonic()
    keys = np.zeros((sizes.slots, 3), np.uint32)
    for slot in free:
      completion = self._ready.popleft()
      group, shared = completion.group, self._shared(completion.group)
      completion.pages = self._take(1)
      self._tables[slot] = 0
      self._tables[slot, :shared] = group.pages[:shared]
      self._tables[slot, shared] = completion.pages[0]
      partial = group.pages[shared:]  # a page that is not full
      copied = (partial[0], completion.pages[0]) if partial else (0, 0)
      numbers[:, slot] = (group.tokens[-1], group.tokens.size - 1, *copied)
      fresh[slot], temperature[slot] = True, group.ticket.temperature
      keys[slot] = generation.key_numbers(group.ticket, completion.index)
      self._running[slot] = completion
      self._started.setdefault(group.ticket.ticket_id, now)
    token, position, page_from, page_to = numbers
    starts = generation.Starts(fresh, token, position, keys, temperature, page_from, page_to)
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
        column = self._shared(completion.group) + len(completion.pages) - 1
        self._tables[slot, column] = completion.pages[-1]
    if not stays.all():
      self._slots = generation.stop(self._slots, stays)

  def _needs_page(self, slot: int) -> bool:
    completion, sizes = self._running[slot], self._sizes
    sampled = min(len(completion.versions) + sizes.steps, sizes.max_tokens)
    pages = self._shared(completion.group) + len(completion.pages)
    return pages * sizes.page_tokens < completion.group.tokens.size - 1 + sampled

  def _free(self, slot: int) -> _Completion:
    """Frees a slot and its pages; the completion in it loses its tokens."""
    completion = self._running.pop(slot)
    self._pages += completion.pages
    completion.pages, completion.versions = [], []
    return completion

  def _collect(self, slots: list[int], cut: set[int]):
    """Takes ended completions out of their slots; returns the complete groups."""
    if not slots:
      return []
    state = jax.device_get(self._slots._asdict() | {"keys": None, "candidates": None})
    complete = []
    for slot in slots:
      versions = np.array(self._running[slot].versions, np.int32)
      completion = self._free(slot)
      group, length = completion.group, versions.size
      group.done[completion.index] = types.Trajectory(
        tokens=state["tokens"][slot, :length].copy(),
        logprobs=state["logprobs"][slot, :length].copy(),
        versions=versions,
        finished=slot in cut or bool(state["finished"][slot]),
        candidates=self._candidates(slot, group.ticket, length),
      )
      if len(group.done) == group.ticket.num_completions:
        self._pages += group.pages
        complete.append((group.ticket, [group.done[i] for i in range(len(group.done))]))
    return complete

  def _candidates(self, slot: int, ticket: types.Ticket, length: int) -> types.Candidates | None:
    """Those of a slot's first tokens; evaluation needs none."""
    if not self._sizes.candidates or ticket.kind == types.EVAL:
      return None
    recorded = jax.device_get(generation.candidates_of(self._slots, slot))
    return jax.tree.map(lambda x: x[:length].copy(), recorded)


def _completions(group: _Group) -> list[_Completion]:
  return [_Completion(group, i) for i in range(group.ticket.num_completions)]
