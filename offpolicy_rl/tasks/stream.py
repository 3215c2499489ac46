"""The endless stream of training prompts: item i is a pure function of the seed and i.

So the data cursor of a run is one integer, and a resumed run finds the same prompts.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from offpolicy_rl import types

BLOCK = 2048  # rows of a streamed source that are shuffled together
_MIXED = 1000  # items in which the rates of a mixture hold exactly, to a thousandth
_KEPT_BLOCKS = 4  # of a streamed source; prompts are asked for almost in order
_MOST_EMPTY = 1000  # blocks in a row without a usable prompt


class PromptStream:
  """Passes over `examples`, each pass in its own order."""

  def __init__(self, examples: Sequence, seed: int):
    if not examples:
      raise ValueError("examples: got none, expected at least one")
    self._examples = examples
    order = lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(examples))
    self._order = functools.lru_cache(maxsize=2)(order)

  def __getitem__(self, index: int) -> Any:
    epoch, place = divmod(index, len(self._examples))
    return self._examples[self._order(epoch)[place]]


class Streamed(NamedTuple):
  """A source that is too large to list."""

  # The rows of one pass, from this one on, in a fixed order. A source that knows its length goes on
  # counting in the next pass; from another there are none behind its last row.
  open: Callable[[int], Iterator]
  make: Callable[[list], list]  # rows -> the prompts of those that are usable

  def where(self, keep: Callable[[Any], bool]) -> "Streamed":
    """Leaves out the prompts for which `keep` is false."""
    return Streamed(self.open, lambda rows: [made for made in self.make(rows) if keep(made)])


class BlockStream:
  """Endless passes over a streamed source, shuffled within blocks of `BLOCK` rows.

  Item i is one of the prompts that row block i // BLOCK makes, so a resumed run only has to skip
  rows, whatever became of them. An unusable row's turn goes to another one of its block, a block
  without any to the next one.
  """

  def __init__(self, source: Streamed, seed: int, *, first_spare: int = types.FIRST_SPARE):
    """`first_spare`: items from here on are a stream of their own, from the first row again."""
    self._source, self._seed, self._first_spare = source, seed, first_spare
    self._passes = [_Passes(source.open), _Passes(source.open)]
    self._block = functools.lru_cache(maxsize=_KEPT_BLOCKS)(self._read_block)
    self._lock = threading.Lock()  # tickets are made in several threads

  def _read_block(self, lane: int, block: int) -> list:
    for number in range(block, block + _MOST_EMPTY):
      made = self._source.make(self._passes[lane].rows(number * BLOCK, BLOCK))
      if made:
        order = np.random.default_rng([self._seed, lane, block]).permutation(len(made))
        return [made[i] for i in order]
    raise ValueError(f"examples: got {_MOST_EMPTY * BLOCK} rows without a usable one")

  def __getitem__(self, index: int) -> Any:
    lane, index = (1, index - self._first_spare) if index >= self._first_spare else (0, index)
    block, offset = divmod(index, BLOCK)
    with self._lock:
      examples = self._block(lane, block)
    return examples[offset % len(examples)]


class _Passes:
  """A position in endless passes over a source; moving on is cheap, moving back opens it anew."""

  def __init__(self, opener: Callable[[int], Iterator]):
    self._open, self._length = opener, None  # rows of a pass or several; None = not known yet
    self._at, self._place = None, 0  # position, None = nowhere yet; that in its pass
    self._rows: Iterator = iter(())

  def rows(self, start: int, count: int) -> list:
    """Rows start ... start + count - 1."""
    if start != self._at:
      self._seek(start)
    found = []
    while len(found) < count:
      more = list(itertools.islice(self._rows, count - len(found)))
      found += more
      self._place += len(more)
      if len(found) < count:
        self._begin_pass()
    self._at = start + count
    return found

  def _seek(self, start: int) -> None:
    place = start % self._length if self._length else start
    self._rows, self._place = self._open(place), place
    first = next(self._rows, None)
    if first is not None:
      self._rows = itertools.chain([first], self._rows)
    elif self._length is None:  # beyond the first pass, or just at its end
      self._length = sum(1 for _ in self._open(0))
      self._require_rows()
      self._seek(start)

  def _begin_pass(self) -> None:
    self._length = self._place
    self._require_rows()
    self._rows, self._place = self._open(0), 0

  def _require_rows(self) -> None:
    if not self._length:
      raise ValueError("examples: got none, expected at least one")


class MixedStream:
  """Several streams at given rates, which hold in every block of 1,000 items.

  A rate below 1/1000 makes the blocks larger, so that each has an item of it. `members`: (rate,
  examples); rates are > 0 and add up to 1.
  """

  def __init__(self, members: Sequence[tuple[float, Sequence | Streamed]], seed: int):
    rates = [rate for rate, _ in members]
    self._size = max(_MIXED, math.ceil(1 / min(rates) - 1e-6))
    self._counts = _counts(rates, self._size)
    spares = [types.FIRST_SPARE // self._size * count for count in self._counts]
    self._streams = [
      _stream(examples, seed + (k << 32), first_spare=spare)
      for k, ((_, examples), spare) in enumerate(zip(members, spares, strict=True))
    ]
    self._block = functools.lru_cache(maxsize=2)(lambda block: self._draw(block, seed))

  def _draw(self, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(member of each item of a block, index in that member's stream), each int64 [size]."""
    member = np.repeat(np.arange(len(self._counts)), self._counts)
    member = np.random.default_rng([seed, block, len(self._counts)]).permutation(member)
    place = np.zeros(self._size, np.int64)
    for k, count in enumerate(self._counts):
      place[member == k] = block * count + np.arange(count)
    return member, place

  def which(self, index: int) -> tuple[int, int]:
    """(member, index in its stream) of item `index`."""
    block, offset = divmod(index, self._size)
    member, place = self._block(block)
    return int(member[offset]), int(place[offset])

  def __getitem__(self, index: int) -> Any:
    member, place = self.which(index)
    return self._streams[member][place]


def _counts(rates: Sequence[float], size: int) -> list[int]:
  """Items of a block per member: rounded down, the rest to the largest remainders."""
  exact = np.array(rates) * size + 1e-9
  counts = exact.astype(int)
  largest = np.argsort(counts - exact, kind="stable")
  counts[largest[: size - counts.sum()]] += 1
  return counts.tolist()


def _stream(examples: Sequence | Streamed, seed: int, *, first_spare: int = types.FIRST_SPARE):
  if isinstance(examples, Streamed):
    return BlockStream(examples, seed, first_spare=first_spare)
  return PromptStream(examples, seed)


def make_stream(
  members: Sequence[tuple[float, Sequence | Streamed]], seed: int
) -> PromptStream | BlockStream | MixedStream:
  """The stream of one task, or of several at rates."""
  return _stream(members[0][1], seed) if len(members) == 1 else MixedStream(members, seed)


def interleaved(members: Sequence[tuple[float, Sequence]]) -> list:
  """All examples once, at the members' rates as long as each has some; for evaluation."""
  some = [(rate, examples) for rate, examples in members if examples]
  if len(some) < 2:
    return [example for _, examples in some for example in examples]
  whole = sum(rate for rate, _ in some)
  members = [(rate / whole, examples) for rate, examples in some]
  mixed, total, items = MixedStream(members, 0), sum(len(e) for _, e in members), []
  index = 0
  while len(items) < total:
    member, place = mixed.which(index)
    index += 1
    if place < len(members[member][1]):
      items.append(members[member][1][place])
  return items
