"""Pieces of prompts, replies and histories, laid out for `generation.prefill`."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from offpolicy_rl.sampler.sizing import Shape


class Piece(NamedTuple):
  """Some tokens of a row of the cache."""

  pages: Sequence[int]  # of the row
  tokens: np.ndarray  # int32 [T]
  first: int  # position of the first one in the row


def batches(rows: Iterable[Piece], shape: Shape) -> Iterator[list[Piece]]:
  """Cuts independent rows of any length; a row's earlier pieces come in earlier batches."""
  left = collections.deque(row for row in rows if row.tokens.size)
  while left:
    now = [left.popleft() for _ in range(min(len(left), shape.rows))]
    yield [row._replace(tokens=row.tokens[: shape.columns]) for row in now]
    rest = (Piece(p, tokens[shape.columns :], n + shape.columns) for p, tokens, n in now)
    left.extend(row for row in rest if row.tokens.size)


def arrays(pieces: Sequence[Piece], shape: Shape, row_pages: int) -> tuple[np.ndarray, ...]:
  """(tables, tokens, start) of `generation.prefill`: int32 [B, Z], [B, T], [B]."""
  tables = np.zeros((shape.rows, row_pages), np.int32)
  tokens = np.zeros(shape, np.int32)
  start = np.zeros(shape.rows, np.int32)
  for row, piece in enumerate(pieces):
    tables[row, : len(piece.pages)] = piece.pages
    tokens[row, : piece.tokens.size] = piece.tokens
    start[row] = piece.first
  return tables, tokens, start
