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
  # Some of the letters before `at` are names, so it is no place in `plain`: count tokens instead.
  count = _tokens_within(at, tokens, decode_special)
  text, with_next = decode(tokens[:count]), decode(tokens[: count + 1])
  of_next = at - len(decode_special(tokens[:count]))  # letters of the next token before the part
  return text + with_next[len(text) :][:of_next]


def _tokens_within(length: int, tokens: Sequence[int], decode: Read) -> int:
  """Number of tokens whose text is not longer than `length`, characters in bytes complete."""

  def complete(count: int) -> int:
    # A character of up to four tokens may be shown as several until the last of these has come.
    counts = range(count, min(count + 4, len(tokens) + 1))
    return min(len(decode(tokens[:end])) for end in counts)

  return bisect.bisect_right(range(1, len(tokens) + 1), length, key=complete)
