r"""Finds the answer in a completion: the number or the text that it commits itself to.

An answer may be marked by <answer>...</answer>, by \boxed{...} or by "#### ..." (the first of these
kinds that occurs, its last occurrence). Pure functions of text, linear in its length.
"""

import fractions
import re
from collections.abc import Iterator

from offpolicy_rl.tasks import thoughts

_OPEN, _CLOSE = "<answer>", "</answer>"
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
# A sign only where it is no minus between two terms; "3rd" and "72km" count, "x2" does not.
_NUMBER = re.compile(
  r"(?<![\w.])(?:(?<!\d)(?<!\d )[-+])?\$?"
  r"(?:(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?|(\.\d+))"
  r"(?:[eE]([-+]?\d{1,2})(?!\d))?(?:\s*/\s*(\d+)(?![\d.]))?"
)
_LONGEST = 100  # characters of a number


def last_tagged(text: str) -> str | None:
  """What the last <answer>...</answer> holds."""
  end = text.rfind(_CLOSE)
  start = text.rfind(_OPEN, 0, max(end, 0))
  return text[start + len(_OPEN) : end].strip() if start >= 0 else None


def last_boxed(text: str) -> str | None:
  r"""What the last complete \boxed{...} holds; braces inside are matched."""
  at = end = len(text)
  while (at := text.rfind("\\boxed{", 0, at)) >= 0:
    start, depth = at + len("\\boxed{"), 1
    for i in range(start, end):
      depth += {"{": 1, "}": -1}.get(text[i], 0)
      if depth == 0:
        return text[start:i].strip()
    end = at  # never closed: what is behind it need not be read again
  return None


def given(completion: str) -> str | None:
  """What a completion gives as its answer, as a text: all that follows its thought, or what is
  tagged in there; None while the thought is open.
  """
  text = thoughts.removed(completion)
  if text is None:
    return None
  tagged = last_tagged(text)
  return (text if tagged is None else tagged).strip()


def marked(text: str) -> str | None:
  """The part of a completion that is marked as its answer; None when nothing is."""
  for found in (last_tagged(text), last_boxed(text)):
    if found is not None:
      return found
  _, mark, rest = text.rpartition("####")
  return rest.strip().partition("\n")[0] if mark else None


def numbers(text: str) -> list[fractions.Fraction]:
  r"""The numbers of a text, exactly: 1,680; -4; $8.75; 3/4; \frac{3}{4}; 2.5e3; 84% is 84.

  Those of more than 100 characters are left out.
  """
  return [_value(match) for match in _matches(text)]


def number(text: str) -> fractions.Fraction | None:
  """The number that a completion answers with; None when there is none.

  In a marked answer it must be the only one, so that listing candidates earns nothing; without a
  mark it is the last one of the text.
  """
  text = thoughts.removed(text)
  if text is None:
    return None
  answer = marked(text)
  found = None
  for match in _matches(text if answer is None else answer):
    if answer is not None and found is not None and _value(match) != _value(found):
      return None
    found = match
  return None if found is None else _value(found)


def _matches(text: str) -> Iterator[re.Match]:
  text = _FRACTION.sub(r" \1/\2 ", text.replace("−", "-").replace("\\$", "$").replace("{,}", ","))
  for match in _NUMBER.finditer(text):
    below = match[5]
    if len(match[0]) <= _LONGEST and not (below and int(below) == 0):
      yield match


def _value(match: re.Match) -> fractions.Fraction:
  whole, decimals, only_decimals, exponent, below = match.groups()
  value = fractions.Fraction((whole or "").replace(",", "") + (decimals or only_decimals or ""))
  value *= fractions.Fraction(10) ** int(exponent or 0) / int(below or 1)
  return -value if match[0].startswith("-") else value
