"""The endless stream of training prompts: item i is a pure function of the seed and i.

So the data cursor of a run is one integer, and a resumed run finds the same prompts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

_BLOCK = 1000  # items in which the rates of a mixture hold exactly, to a thousandth


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


class MixedStream:
  """Several streams at given rates, which hold in every block of 1,000 items.

  `members`: (rate, examples); rates are > 0 and add up to 1.
  """

  def __init__(self, members: Sequence[tuple[float, Sequence]], seed: int):
    self._streams = [PromptStream(e, seed + (k << 32)) for k, (_, e) in enumerate(members)]
    self._counts = _counts([rate for rate, _ in members])
    self._block = functools.lru_cache(maxsize=2)(lambda block: self._draw(block, seed))

  def _draw(self, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(member of each item of a block, index in that member's stream), each int64 [1000]."""
    member = np.repeat(np.arange(len(self._counts)), self._counts)
    member = np.random.default_rng([seed, block, len(self._counts)]).permutation(member)
    place = np.zeros(_BLOCK, np.int64)
    for k, count in enumerate(self._counts):
      place[member == k] = block * count + np.arange(count)
    return member, place

  def which(self, index: int) -> tuple[int, int]:
    """(member, index in its stream) of item `index`."""
    block, offset = divmod(index, _BLOCK)
    member, place = self._block(block)
    return int(member[offset]), int(place[offset])

  def __getitem__(self, index: int) -> Any:
    member, place = self.which(index)
    return self._streams[member][place]


def _counts(rates: Sequence[float]) -> list[int]:
  """Items of a block per member: rounded down, the rest to the largest remainders."""
  exact = np.array(rates) * _BLOCK + 1e-9
  counts = exact.astype(int)
  largest = np.argsort(counts - exact, kind="stable")
  counts[largest[: _BLOCK - counts.sum()]] += 1
  return counts.tolist()


def make_stream(members: Sequence[tuple[float, Sequence]], seed: int) -> PromptStream | MixedStream:
  """The stream of one task, or of several at rates."""
  return PromptStream(members[0][1], seed) if len(members) == 1 else MixedStream(members, seed)


def interleaved(members: Sequence[tuple[float, Sequence]]) -> list:
  """All examples once, at the members' rates as long as each has some; for evaluation."""
  if len(members) == 1:
    return list(members[0][1])
  mixed, total, items = MixedStream(members, 0), sum(len(e) for _, e in members), []
  index = 0
  while len(items) < total:
    member, place = mixed.which(index)
    index += 1
    if place < len(members[member][1]):
      items.append(members[member][1][place])
  return items
