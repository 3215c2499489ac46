"""A small lossless vocabulary: characters, plus the phrases that a task's prompts repeat."""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence

PAD, EOS, UNKNOWN = 0, 1, 2
_SPECIAL = ("<pad>", "<eos>", "<unk>")
_CHARACTERS = tuple(chr(c) for c in range(32, 127)) + ("\n",)
_MULTIPLE = 16  # sizes are rounded up with unused ids, so that a mesh can split the embedding


class Vocabulary:
  """Text <-> token ids."""

  eos = EOS

  def __init__(self, phrases: tuple[str, ...] = ()):
    """`phrases`: texts that become one token each, the longest match first."""
    used = _SPECIAL + _CHARACTERS + phrases
    self.pieces = used + ("",) * (-len(used) % _MULTIPLE)
    self._ids = {piece: i for i, piece in enumerate(used) if i >= len(_SPECIAL)}
    longest_first = sorted(phrases, key=len, reverse=True)
    self._split = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

  @property
  def size(self) -> int:
    """Number of token ids."""
    return len(self.pieces)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of all pieces: equal on both sides of the wire or the sampler is refused."""
    return hashlib.sha256("\0".join(self.pieces).encode()).hexdigest()[:16]

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; a character outside printable ASCII becomes UNKNOWN."""
    return [self._ids.get(piece, UNKNOWN) for piece in self._split.findall(text)]

  prompt = encode  # questions are prompts as they are

  def stops(self, texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(ids of those that are special tokens, the others): `eos` is the only one."""
    return (), tuple(texts)

  def texts(self, ids: Iterable[int]) -> list[str]:
    """What each token says; special ones by name."""
    return [self.pieces[i] for i in ids]

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end-of-sequence token."""
    pieces = []
    for i in ids:
      if i == EOS:
        break
      pieces.append(self.pieces[i] if i >= len(_SPECIAL) else "")
    return "".join(pieces)
