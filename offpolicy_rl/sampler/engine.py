"""Continuous batching: which completion sits in which slot, and whose pages are whose.

Tickets wait; the prompt of a group is prefilled once, in pieces between the decoding of others; its
completions take slots as they get free, and share the prompt's pages. This file keeps the books;
the devices' work is in `generation`.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.model import attention, decoder, sharding
from offpolicy_rl.sampler import generation, sampling, stopping


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of an engine."""

  slots: int  # completions decoded side by side
  group_size: int  # completions of a prompt, as a rule
  max_prompt_tokens: int
  max_tokens: int  # of a completion
  page_tokens: int = 32
  cache_tokens: int = 0  # of all rows together; 0 = enough for full slots of the longest rows
  prefill_tokens: int = 128  # at a time, of one long prompt or of several short ones
  steps: int = 8  # tokens decoded before the slots are looked at

  @property
  def piece_tokens(self) -> int:
    """Of a prompt, prefilled at a time; its last token is left to the completions."""
    return max(1, min(self.prefill_tokens, self.max_prompt_tokens - 1))

  @property
  def prefill_rows(self) -> int:
    """Prompts prefilled at a time: never more than slots could want."""
    return max(1, min(self.prefill_tokens // self.piece_tokens, self.slots // self.group_size))

  @property
  def row_pages(self) -> int:
    """Of the longest prompt and completion."""
    return math.ceil((self.max_prompt_tokens + self.max_tokens) / self.page_tokens)

  @property
  def pages(self) -> int:
    """In the pool, page 0 included."""
    if self.cache_tokens:
      return 1 + self.cache_tokens // self.page_tokens
    shared = (self.max_prompt_tokens - 1) // self.page_tokens
    prompts = 2 * math.ceil(self.slots / self.group_size) + self.prefill_rows
    return 1 + self.slots * (self.row_pages - shared) + prompts * (shared + 1)


def computed_on(
  config: decoder.DecoderConfig, sizes: Sizes, mesh: jax.sharding.Mesh
) -> decoder.DecoderConfig:
  """With the form of attention that an engine on this mesh decodes with."""
  form = attention.best_for_decoding(
    mesh.devices.flat[0].platform,
    config,
    page_tokens=sizes.page_tokens,
    table_entries=sizes.slots * sizes.row_pages,
    shards=mesh.shape[sharding.RULES["kv_heads"]],
  )
  return dataclasses.replace(config, attention=form)


@dataclasses.dataclass(eq=False)
class _Prompt:
  """A prompt in the cache: all but its last token, which each completion sees for itself."""

  tokens: np.ndarray
  pages: list[int]
  filled: int = 0  # tokens
  users: int = 0  # completions that are not done

  @property
  def missing(self) -> int:
    """Tokens."""
    return self.tokens.size - 1 - self.filled


@dataclasses.dataclass(eq=False)
class _Group:
  """A ticket being answered."""

  ticket: types.Ticket
  done: dict[int, types.Trajectory] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class _Completion:
  group: _Group
  index: int  # in its group
  prompt: _Prompt
  pages: list[int] = dataclasses.field(default_factory=list)  # its own
  versions: list[int] = dataclasses.field(default_factory=list)  # of its tokens


class Engine:
  """Answers tickets, a few tokens of all slots per `step`."""

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
      mesh: that the parameters are laid out on; the cache is split like key and value heads. None
        = the first device.

    Raises:
      ValueError: the cache is too small for a single completion.
    """
    least = 2 * sizes.row_pages * sizes.page_tokens
    if sizes.cache_tokens and sizes.cache_tokens < least:
      raise ValueError(f"cache_tokens: got {sizes.cache_tokens}, expected at least {least}")
    self._mesh = mesh or sharding.make_mesh()
    self._config, self._sizes = computed_on(config, sizes, self._mesh), sizes
    self._seed, self._stops, self._truncation = seed, stops, truncation
    with jax.sharding.set_mesh(self._mesh):
      self._pool = generation.empty_pool(config, sizes.pages, sizes.page_tokens)
      self._slots = generation.empty(sizes.slots, sizes.max_tokens)
    self._tables = np.zeros((sizes.slots, sizes.row_pages), np.int32)
    self._pages = list(range(sizes.pages - 1, 0, -1))  # nobody's
    self._tickets: collections.deque[_Group] = collections.deque()
    self._filling: list[tuple[_Prompt, list[_Completion]]] = []
    self._ready: collections.deque[_Completion] = collections.deque()
    self._seated: dict[int, _Completion] = {}  # by slot, in the order in which they sat down

  @property
  def idle(self) -> bool:
    """Nothing is being answered."""
    return not (self._tickets or self._filling or self._ready or self._seated)

  @property
  def room(self) -> int:
    """Completions that would find a slot at once, were their prompts there."""
    waiting = sum(group.ticket.num_completions for group in self._tickets)
    filling = sum(len(completions) for _, completions in self._filling)
    return self._sizes.slots - len(self._seated) - len(self._ready) - filling - waiting

  @property
  def room_soon(self) -> int:
    """The same after the next step, as far as it is certain: the longest completions end in it."""
    last = self._sizes.max_tokens - self._sizes.steps
    return self.room + sum(len(c.versions) >= last for c in self._seated.values())

  @property
  def progress(self) -> dict[str, int]:
    """Of every ticket under way: id -> tokens of it that were prefilled and sampled so far."""
    found = {group.ticket.ticket_id: 0 for group in self._tickets}
    filling = (c for _, completions in self._filling for c in completions)
    for c in (*filling, *self._ready, *self._seated.values()):
      name = c.group.ticket.ticket_id
      if name not in found:
        found[name] = c.prompt.filled + sum(t.tokens.size for t in c.group.done.values())
      found[name] += len(c.versions)
    return found

  def add(self, tickets: list[types.Ticket]) -> None:
    """Answers these, too.

    Raises:
      ValueError: a prompt is too long.
    """
    for ticket in tickets:
      size = ticket.prompt_tokens.size
      if not 0 < size <= self._sizes.max_prompt_tokens:
        raise ValueError(
          f"{ticket.ticket_id}: prompt of {size} tokens, expected 1 to "
          f"{self._sizes.max_prompt_tokens}"
        )
    self._tickets.extend(map(_Group, tickets))

  def generate(
    self, params, version: int, tickets: list[types.Ticket]
  ) -> list[list[types.Trajectory]]:
    """All of these, unscored, in this order; nothing else may be under way."""
    self.add(tickets)
    found = {}
    while not self.idle:
      for ticket, trajectories in self.step(params, version):
        found[id(ticket)] = trajectories
    return [found[id(ticket)] for ticket in tickets]

  def step(self, params, version: int) -> list[tuple[types.Ticket, list[types.Trajectory]]]:
    """Prefills and decodes a little -> the groups that got complete, unscored."""
    with jax.sharding.set_mesh(self._mesh):
      self._prefill(params)
      self._seat()
      return self._decode(params, version) if self._seated else []

  def _decode(self, params, version: int):
    """A few tokens in every slot -> the groups that got complete."""
    self._reserve()
    before = {slot: len(completion.versions) for slot, completion in self._seated.items()}
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
    # Waits for the devices: on CPU they read the tables where they are, and we will change them.
    running, lengths = map(np.array, jax.device_get((self._slots.running, self._slots.lengths)))
    cut = self._cut(before, lengths, running)
    for slot, completion in self._seated.items():
      completion.versions += [version] * (int(lengths[slot]) - before[slot])
    return self._collect([slot for slot in self._seated if not running[slot]], cut)

  def _cut(self, before: dict[int, int], lengths, running) -> set[int]:
    """Ends completions in which a stop text appeared, changing both arrays -> their slots."""
    if not self._stops.texts:
      return set()
    tokens, cut = jax.device_get(self._slots.tokens), set()
    for slot, looked_at in before.items():
      length = self._stops.found(tokens[slot, : lengths[slot]].tolist(), looked_at)
      if length is not None:
        lengths[slot], running[slot] = length, False
        cut.add(slot)
    if cut:
      self._slots = generation.leave(self._slots, running)
    return cut

  def _prefill(self, params) -> None:
    """Pieces of prompts: one while others decode, else until somebody can."""
    sizes = self._sizes
    while self._wanted() > 0:
      self._begin()
      if not self._filling:
        return
      pieces = []
      for prompt, completions in self._filling:
        piece = prompt.tokens[prompt.filled : -1][: sizes.piece_tokens]
        pieces.append((prompt.pages, piece, prompt.filled))
        prompt.filled += piece.size
        if not prompt.missing:
          self._ready.extend(completions)
      self._write(params, pieces)
      self._filling = [item for item in self._filling if item[0].missing]
      if self._seated:
        return

  def _write(self, params, pieces: list[tuple[Sequence[int], np.ndarray, int]]) -> None:
    """Keys and values of (a row's pages, some of its tokens, place of the first); few rows."""
    sizes = self._sizes
    tokens = np.zeros((sizes.prefill_rows, sizes.piece_tokens), np.int32)
    tables = np.zeros((sizes.prefill_rows, sizes.row_pages), np.int32)
    start = np.zeros(sizes.prefill_rows, np.int32)
    for row, (pages, piece, first) in enumerate(pieces):
      tokens[row, : piece.size] = piece
      tables[row, : len(pages)] = pages
      start[row] = first
    self._pool = generation.prefill(self._config, params, self._pool, tables, tokens, start)

  def refresh(self, params) -> None:
    """Computes the keys and values of everything under way again, with other parameters."""
    with jax.sharding.set_mesh(self._mesh):
      self._refresh(params)

  def _refresh(self, params) -> None:
    made = jax.device_get(self._slots.tokens)
    prompts = {c.prompt for c in (*self._seated.values(), *self._ready)}
    prompts |= {prompt for prompt, _ in self._filling}
    self._write_all(params, [(p.pages, p.tokens[: p.filled], 0) for p in prompts])
    rows = []
    for slot, completion in self._seated.items():
      prompt, length = completion.prompt, len(completion.versions)
      row = np.concatenate([prompt.tokens, made[slot, :length]])[:-1]
      begin = self._shared(prompt) * self._sizes.page_tokens
      rows.append((self._tables[slot], row[begin:], begin))
    self._write_all(params, rows)

  def _write_all(self, params, rows: Iterable[tuple[Sequence[int], np.ndarray, int]]) -> None:
    """As `_write`, for rows of any number and length that do not depend on one another."""
    size, left = self._sizes.piece_tokens, collections.deque(row for row in rows if row[1].size)
    while left:
      now = [left.popleft() for _ in range(min(len(left), self._sizes.prefill_rows))]
      self._write(params, [(pages, tokens[:size], first) for pages, tokens, first in now])
      rest = ((pages, tokens[size:], first + size) for pages, tokens, first in now)
      left.extend(row for row in rest if row[1].size)

  def _wanted(self) -> int:
    """Slots for which no completion is ready."""
    return self._sizes.slots - len(self._seated) - len(self._ready)

  def _begin(self) -> None:
    """Gives the prompts of the next tickets their pages, as many as slots will want."""
    sizes = self._sizes
    coming = sum(len(completions) for _, completions in self._filling)
    while self._tickets and len(self._filling) < sizes.prefill_rows and coming < self._wanted():
      tokens = self._tickets[0].ticket.prompt_tokens
      needed = math.ceil((tokens.size - 1) / sizes.page_tokens)
      # What is left is enough for the completion that has sat longest, so that one always goes on.
      if len(self._pages) < needed + sizes.row_pages:
        return
      group = self._tickets.popleft()
      prompt = _Prompt(tokens, self._take(needed), users=group.ticket.num_completions)
      completions = [_Completion(group, i, prompt) for i in range(prompt.users)]
      if prompt.missing:
        self._filling.append((prompt, completions))
        coming += len(completions)
      else:
        self._ready.extend(completions)

  def _take(self, number: int) -> list[int]:
    """So many pages of nobody; there must be."""
    return [self._pages.pop() for _ in range(number)]

  def _shared(self, prompt: _Prompt) -> int:
    """Pages that completions read where they are: the full ones."""
    return (prompt.tokens.size - 1) // self._sizes.page_tokens

  def _seat(self) -> None:
    """Completions that are ready take the free slots."""
    sizes = self._sizes
    free = [slot for slot in range(sizes.slots) if slot not in self._seated]
    free = free[: min(len(self._ready), len(self._pages))]
    if not free:
      return
    numbers = np.zeros((4, sizes.slots), np.int32)  # token, position, page from, page to
    fresh, temperature = np.zeros(sizes.slots, bool), np.ones(sizes.slots, np.float32)
    keys = np.zeros((sizes.slots, 3), np.uint32)
    for slot in free:
      completion = self._ready.popleft()
      prompt, ticket = completion.prompt, completion.group.ticket
      shared = self._shared(prompt)
      completion.pages = self._take(1)
      self._tables[slot] = 0
      self._tables[slot, :shared] = prompt.pages[:shared]
      self._tables[slot, shared] = completion.pages[0]
      begun = prompt.pages[shared:]  # a page that is not full
      numbers[:, slot] = (
        prompt.tokens[-1],
        prompt.tokens.size - 1,
        *((begun[0], completion.pages[0]) if begun else (0, 0)),
      )
      fresh[slot], temperature[slot] = True, ticket.temperature
      keys[slot] = generation.key_numbers(ticket, completion.index)
      self._seated[slot] = completion
    token, position, page_from, page_to = numbers
    seats = generation.Seats(fresh, token, position, keys, temperature, page_from, page_to)
    self._slots, self._pool = generation.seat(self._slots, self._pool, seats, self._seed)

  def _reserve(self) -> None:
    """Pages for the next tokens; who sat down last begins again where there are none."""
    stays = np.ones(self._sizes.slots, bool)
    for slot in list(self._seated):
      while slot in self._seated and self._lacks_a_page(slot):
        if not self._pages:
          last = next(reversed(self._seated))
          self._ready.appendleft(self._stand_up(last))
          stays[last] = False
          continue
        completion = self._seated[slot]
        completion.pages += self._take(1)
        at = self._shared(completion.prompt) + len(completion.pages) - 1
        self._tables[slot, at] = completion.pages[-1]
    if not stays.all():
      self._slots = generation.leave(self._slots, stays)

  def _lacks_a_page(self, slot: int) -> bool:
    """For the tokens of the next decoding."""
    completion, sizes = self._seated[slot], self._sizes
    made = min(len(completion.versions) + sizes.steps, sizes.max_tokens)
    tokens = completion.prompt.tokens.size - 1 + made
    held = self._shared(completion.prompt) + len(completion.pages)
    return held * sizes.page_tokens < tokens

  def _stand_up(self, slot: int) -> _Completion:
    """Frees a slot and its pages; what was made there is forgotten."""
    completion = self._seated.pop(slot)
    self._pages += completion.pages
    completion.pages, completion.versions = [], []
    return completion

  def _collect(self, slots: list[int], cut: set[int]):
    """Takes what is complete out of these slots -> the groups that are, too."""
    if not slots:
      return []
    made = jax.device_get(self._slots._asdict() | {"keys": None})
    groups = []
    for slot in slots:
      versions = np.array(self._seated[slot].versions, np.int32)
      completion = self._stand_up(slot)
      group, prompt, length = completion.group, completion.prompt, versions.size
      group.done[completion.index] = types.Trajectory(
        tokens=made["tokens"][slot, :length].copy(),
        logprobs=made["logprobs"][slot, :length].copy(),
        versions=versions,
        finished=slot in cut or bool(made["finished"][slot]),
      )
      prompt.users -= 1
      if not prompt.users:
        self._pages += prompt.pages
      if len(group.done) == group.ticket.num_completions:
        in_order = [group.done[i] for i in range(len(group.done))]
        groups.append((group.ticket, in_order))
    return groups
