"""Texts that end a completion when they appear in it.

Each is looked for twice: in what the tokens say without special tokens (`decode`), and with these
by name (`spell`), so that a special token may be a part of such a text, or between its letters.
"""

import bisect
from collections.abc import Callable, Sequence

Read = Callable[[Sequence[int]], str]  # token ids -> text


def first(text: str, parts: Sequence[str]) -> int | None:
  """Where the first of these parts begins; None when none appears."""
  return min((text.find(part) for part in parts if part in text), default=None)


def before(tokens: Sequence[int], parts: Sequence[str], *, decode: Read, spell: Read) -> str:
  """What the tokens say before the first of these parts, special tokens left out."""
  plain = decode(tokens)
  if not parts:
    return plain
  at = first(plain, parts)
  if at is not None:
    return plain[:at]
  at = first(spell(tokens), parts)
  if at is None:
    return plain
  spelled = lambda number: len(spell(tokens[:number]))
  whole = bisect.bisect_right(range(1, len(tokens) + 1), at, key=spelled)  # tokens before the part
  text, more = decode(tokens[:whole]), decode(tokens[: whole + 1])
  return text + more[len(text) :][: at - spelled(whole)]  # it may begin within a token
