"""Texts that end a completion when they appear in it.

Each is searched twice: in the text without special tokens (`decode`), and in the text that shows
them by name (`decode_special`). So a special token may be part of a stop text, or between its
letters.
"""

import bisect
from collections.abc import Callable, Sequence

Read = Callable[[Sequence[int]], str]  # token ids -> text


def first(text: str, parts: Sequence[str]) -> int | None:
  """Position of the first of these parts; None if none appears."""
  return min((text.find(part) for part in parts if part in text), default=None)


def before(tokens: Sequence[int], parts: Sequence[str], decode: Read, decode_special: Read) -> str:
  """Text of the tokens before the first of these parts, without special tokens."""
  plain = decode(tokens)
  if not parts:
    return plain
  at = first(plain, parts)
  if at is not None:
    return plain[:at]
  at = first(decode_special(tokens), parts)
  if at is None:
    return plain
  length = lambda count: len(decode_special(tokens[:count]))
  # A character in bytes may be longer before its last one has come: a sign for each.
  complete = lambda count: min(map(length, range(count, min(count + 4, len(tokens) + 1))))
  count = bisect.bisect_right(range(1, len(tokens) + 1), at, key=complete)  # tokens before the part
  text, more = decode(tokens[:count]), decode(tokens[: count + 1])
  return text + more[len(text) :][: at - length(count)]  # it may begin within a token
