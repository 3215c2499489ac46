"""Episodes of several turns as conversations: who wrote which tokens, and which call tools."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

# environments/tools.py reads these calls; here malformed ones count, too.
_MARKED = re.compile(
  r"<tool_call>(?:(?!<tool_call>).)*?</tool_call>|```tool_code\n(?:(?!```).)*```", re.DOTALL
)
_PYTHON = re.compile(r"\[\s*[A-Za-z_][\w.]*\(.*\)\s*\]", re.DOTALL)
_SPECIAL = re.compile(r"<[^<>\s]+>|")  # ends a turn, besides white space


class _Span(NamedTuple):
  policy: bool  # False = the environment wrote it
  first: int  # token
  end: int
  turn: int  # turns of the policy so far, this one included


def blocks(
  pieces: Sequence[str],
  versions: Sequence[int | None],
  rewards: Sequence[float | None],
  shown: Sequence[int],
) -> list[dict]:
  """Splits an episode by who wrote its tokens; [] if one wrote all of them.

  Args:
    pieces: texts of the tokens.
    versions: that sampled them; None = the environment wrote it.
    rewards: per turn of the policy; None = not to be told, () = not recorded.
    shown: ascending indices of the tokens that are shown.

  Returns:
    Per span, or rest of one behind tokens that are not shown: policy (False: the environment wrote
    it), turn (from 1) and its reward (None if unknown, or the environment's), continued
    (its first token is not shown), parts [[shown tokens, whether they call a tool], ...].
  """
  spans = _spans(versions)
  if len(spans) < 2:
    return []
  # Turns to which the environment answered nothing are one span.
  are_turns = len(rewards) in (0, spans[-1].turn)
  found = []
  for span in spans:
    known = span.policy and are_turns
    about = {
      "policy": span.policy,
      "turn": span.turn if known else None,
      "reward": rewards[span.turn - 1] if known and rewards else None,
    }
    calls = _calls(pieces[span.first : span.end]) if span.policy else []
    for part in _without_holes([i - span.first for i in shown if span.first <= i < span.end]):
      found.append(about | {"continued": part[0] > 0, "parts": _parts(part, calls)})
  return found


def _spans(versions: Sequence[int | None]) -> list[_Span]:
  found, first, turn = [], 0, 0
  for policy, same in itertools.groupby(version is not None for version in versions):
    end, turn = first + len(list(same)), turn + policy
    found.append(_Span(policy, first, end, turn))
    first = end
  return found


def _without_holes(numbers: Sequence[int]) -> list[list[int]]:
  """Splits ascending numbers where some are missing."""
  runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
  return [[number for _, number in run] for _, run in runs]


def _parts(tokens: Sequence[int], calls: Sequence[tuple[int, int]]) -> list[list]:
  call_of = {i: number for number, call in enumerate(calls) for i in range(*call)}
  runs = itertools.groupby(tokens, lambda i: call_of.get(i))
  return [[len(list(run)), call is not None] for call, run in runs]


def _calls(pieces: Sequence[str]) -> list[tuple[int, int]]:
  """The calls of tools in a turn: (first token, end)."""
  text = "".join(pieces)
  ends = list(itertools.accumulate(map(len, pieces)))
  found = [match.span() for match in _MARKED.finditer(text)]
  if found:
    return [_tokens_of(ends, *span) for span in found]
  size = len(pieces)
  while size and _SPECIAL.fullmatch(pieces[size - 1].strip()):
    size -= 1
  return [(0, size)] if _is_call("".join(pieces[:size])) else []


def _tokens_of(ends: Sequence[int], start: int, end: int) -> tuple[int, int]:
  """(first, end) of the tokens that have a character of the text from `start` to `end`."""
  first = sum(x <= start for x in ends)
  return first, 1 + sum(x < end for x in ends)


def _is_call(turn: str) -> bool:
  """Whether a turn is nothing but calls, in JSON or as a list in Python."""
  text = turn.strip().removeprefix("<|python_tag|>").strip()
  return bool(_PYTHON.fullmatch(text)) or (text.startswith("{") and _is_json(text))


def _is_json(text: str) -> bool:
  """Whether a text is objects with a "name", separated by ";"."""
  decoder = json.JSONDecoder()
  while text:
    try:
      call, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
      return False
    if not isinstance(call, dict) or "name" not in call:
      return False
    text = text[end:].strip().removeprefix(";").strip()
  return True
