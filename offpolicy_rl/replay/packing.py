"""Lays out prompts and completions in the rows that the model sees.

  padded   one completion per row, behind its prompt
  packed   as many completions per row as fit, each behind its own copy of the prompt
  shared   like packed, but completions of a group in one row share one copy of their prompt

The results are the same, the work is not. `Limits` bounds rows and columns; actual sizes are
rounded up to a fraction of that, because every new shape is compiled once.
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from offpolicy_rl import types

PADDED, PACKED, SHARED = LAYOUTS = ("padded", "packed", "shared")


class Completion(NamedTuple):
  """Tokens to lay out."""

  group: int  # completions of one group have the same prompt
  prompt: np.ndarray  # int32 [P]
  tokens: np.ndarray  # int32 [M]
  candidates: np.ndarray | None = None  # int32 [M, I], of all completions or of none
  rewinds: Sequence[types.Rewind] = ()


@dataclasses.dataclass(frozen=True)
class Limits:
  """The largest sizes, from which the compiled shapes of a step follow."""

  layout: str
  max_prompt: int  # tokens
  max_completion: int  # tokens
  columns: int  # of a row
  shards: int = 1  # rows are a multiple of this
  buckets: int = 1  # sizes are rounded up to multiples of (largest / buckets)

  @property
  def per_row(self) -> int:
    """Completions that fit into one row whatever their lengths."""
    prompts = self.max_prompt if self.layout == SHARED else 0
    return (self.columns - prompts) // (self.max_prompt + self.max_completion - prompts)

  @property
  def scored(self) -> int:
    """Largest number of scored tokens per row."""
    return self.per_row * self.max_completion

  def rounded(self, size: int, largest: int) -> int:
    """`size`, rounded up to one of `buckets` sizes."""
    grid = -(-largest // self.buckets)
    return min(largest, -(-size // grid) * grid)


class _Row:
  def __init__(self):
    self.columns = self.scored = 0
    self.copies: dict = {}  # copy of a prompt -> numbers of the completions behind it

  def cost(self, copy, completion: Completion) -> int:  # columns
    return completion.tokens.size + (0 if copy in self.copies else completion.prompt.size)

  def add(self, copy, number: int, completion: Completion) -> None:
    self.columns += self.cost(copy, completion)
    self.scored += completion.tokens.size
    self.copies.setdefault(copy, []).append(number)


def row_columns(layout: str, max_prompt: int, max_completion: int, group_size: int) -> int:
  """Default columns of a row: room for one completion, or for one group that shares a prompt."""
  together = group_size if layout == SHARED else 1
  return max_prompt + together * max_completion


def lay_out(
  parts: Sequence[Sequence[Completion]], limits: Limits
) -> tuple[types.PackedRows, np.ndarray]:
  """Equally many completions per part -> rows [A, B, ...] and places [A, N, M] of their tokens.

  ValueError if a prompt or completion is longer than the limits.
  """
  for c in itertools.chain(*parts):
    if c.prompt.size > limits.max_prompt or c.tokens.size > limits.max_completion:
      raise ValueError(
        f"group {c.group}: {c.prompt.size} + {c.tokens.size} tokens, the batch has room for "
        f"{limits.max_prompt} + {limits.max_completion}"
      )
  filled = [_rows(completions, limits) for completions in parts]
  most = max(_most_rows(completions, limits) for completions in parts)
  all_rows = list(itertools.chain(*filled))
  rounded = limits.rounded(max(map(len, filled)), most)
  sizes = (
    -(-rounded // limits.shards) * limits.shards,
    limits.rounded(max(row.columns for row in all_rows), limits.columns),
    limits.rounded(max(row.scored for row in all_rows), limits.scored),
  )
  written = [
    _written(rows, completions, sizes, limits.max_completion)
    for rows, completions in zip(filled, parts, strict=True)
  ]
  rows, places = zip(*written, strict=True)
  stacked = (None if x[0] is None else np.stack(x) for x in zip(*rows, strict=True))
  return types.PackedRows(*stacked), np.stack(places)


def context(size: int, rewinds: Sequence[types.Rewind]) -> tuple[np.ndarray, np.ndarray]:
  """The context of each token of a completion, int32 [size] each.

  Returns:
    Its position: earlier tokens of the completion that it sees. Its end: the index of the first
    later token that does not see it; `size` if there is none.
  """
  positions, ends = np.arange(size, dtype=np.int32), np.full(size, size, np.int32)
  for at, to in rewinds:
    positions[at:] -= positions[at] - positions[to]
    ends[to:at] = np.minimum(ends[to:at], at)
  return positions, ends


def _rows(completions, limits: Limits) -> list[_Row]:
  if limits.layout == PADDED:
    return _in_order(completions, limits)
  rows = _filled(completions, limits)
  # Where gaps were filled badly, whole groups in order still fit.
  return rows if len(rows) <= _most_rows(completions, limits) else _in_order(completions, limits)


def _copy(limits: Limits, number: int, completion: Completion) -> tuple[int, int]:
  """The copy of its prompt that a completion lies behind."""
  return (completion.group, 0 if limits.layout == SHARED else number)


def _most_rows(completions, limits: Limits) -> int:
  """Rows needed when every completion has the largest length."""
  if limits.layout != SHARED:
    return -(-len(completions) // limits.per_row)
  sizes = np.unique([c.group for c in completions], return_counts=True)[1]
  return int(sum(-(-sizes // limits.per_row)))


def _filled(completions, limits: Limits) -> list[_Row]:
  """Rows filled with the longest first, each in the first row with room (first-fit decreasing)."""
  copies = [_copy(limits, number, c) for number, c in enumerate(completions)]
  together = collections.Counter()  # tokens behind each copy
  for copy, c in zip(copies, completions, strict=True):
    together[copy] += c.tokens.size
  rows: list[_Row] = []
  last: dict = {}  # copy -> the row that it is in
  for number in sorted(range(len(copies)), key=lambda n: (-together[copies[n]], n)):
    copy, c = copies[number], completions[number]

    def has_room(row, copy=copy, c=c) -> bool:
      scored = row.scored + c.tokens.size
      return row.columns + row.cost(copy, c) <= limits.columns and scored <= limits.scored

    likely = [last[copy]] if copy in last else []
    row = next(filter(has_room, likely + rows), None)
    if row is None:
      rows.append(row := _Row())
    row.add(copy, number, c)
    last[copy] = row
  return rows


def _in_order(completions, limits: Limits) -> list[_Row]:
  """Rows of `per_row` completions of one group."""
  rows: list[_Row] = []
  for number, c in enumerate(completions):
    copy = _copy(limits, number, c)
    if not rows or len(rows[-1].copies.get(copy, range(limits.per_row))) == limits.per_row:
      rows.append(_Row())
    rows[-1].add(copy, number, c)
  return rows


def _written(rows, completions, sizes, max_completion: int) -> tuple[types.PackedRows, np.ndarray]:
  count, width, scored = sizes  # rows, columns, scored tokens per row
  wide = [np.zeros((count, width), np.int32) for _ in range(3)]
  wide.append(np.full((count, width), width, np.int32))
  packed = types.PackedRows(*wide, *(np.zeros((count, scored), np.int32) for _ in range(2)))
  places = np.zeros((len(completions), max_completion), np.int32)
  for r, row in enumerate(rows):
    at = score = 0
    for segment, numbers in enumerate(row.copies.values(), 1):
      prompt = completions[numbers[0]].prompt
      trunk = slice(at, at + prompt.size)
      packed.tokens[r, trunk] = prompt
      packed.positions[r, trunk] = np.arange(prompt.size)
      packed.segments[r, trunk] = segment
      at = trunk.stop
      for number in numbers:
        tokens = completions[number].tokens
        behind, ends = context(tokens.size, completions[number].rewinds)
        columns, scored_at = slice(at, at + tokens.size), slice(score, score + tokens.size)
        packed.tokens[r, columns] = packed.targets[r, scored_at] = tokens
        packed.positions[r, columns] = prompt.size + behind
        packed.segments[r, columns], packed.ends[r, columns] = segment, at + ends
        packed.sources[r, scored_at] = np.arange(at - 1, columns.stop - 1)
        packed.sources[r, scored_at.start] = trunk.stop - 1  # the prompt's last token
        places[number, : tokens.size] = r * scored + np.arange(score, scored_at.stop)
        at, score = columns.stop, scored_at.stop
      packed.ends[r, trunk] = at
  return packed._replace(candidates=_candidates(completions, places, sizes)), places


def _candidates(completions, places, sizes) -> np.ndarray | None:
  if completions[0].candidates is None:
    return None
  count, _, scored = sizes
  chosen = np.zeros((count * scored, completions[0].candidates.shape[1]), np.int32)
  for completion, where in zip(completions, places, strict=True):
    chosen[where[: completion.tokens.size]] = completion.candidates
  return chosen.reshape(count, scored, -1)
