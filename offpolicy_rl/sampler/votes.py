"""What completions say their answer is, and which answer most of them give."""

import collections
import fractions
import re
from collections.abc import Sequence

import numpy as np

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.+)")
_SAID = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?!\w)")
_AROUND = " \t\n.,:;!$*`'\""
_BOXED = "\\boxed{"


def final_answer(text: str, *, finished: bool) -> str | None:
  """The answer of a completion, in a form in which equal answers are equal texts.

  The last that is marked counts: <answer> tags, else \\boxed{}, else `####`, else "answer is". With
  no mark it is the last number, else the last line. Numbers are written as reduced fractions, other
  texts in lower case, without spaces and punctuation around them. None = no answer: nothing was
  said, or nothing marked before the completion was cut (`finished` = False).
  """
  marked = _marked(text)
  if marked is not None:
    numbers = _NUMBER.findall(marked)
    return _number(numbers[0]) if len(numbers) == 1 else _plain(marked)
  if not finished:
    return None
  numbers = _NUMBER.findall(text)
  return _number(numbers[-1]) if numbers else _plain((text.strip().splitlines() or [""])[-1])


def _marked(text: str) -> str | None:
  tagged = _TAGGED.findall(text)
  if tagged:
    return tagged[-1]
  if _BOXED in text:
    return _in_braces(text[text.rindex(_BOXED) + len(_BOXED) :])
  said = _HASHES.findall(text) or _SAID.findall(text)
  return said[-1] if said else None


def _in_braces(text: str) -> str:
  """Up to the brace that closes one opened before `text`."""
  depth = 1
  for i, character in enumerate(text):
    depth += {"{": 1, "}": -1}.get(character, 0)
    if not depth:
      return text[:i]
  return text


def _number(text: str) -> str:
  try:
    return str(fractions.Fraction(text.replace(",", "")))
  except (ValueError, ZeroDivisionError):  # thousands of digits, or x/0
    return text


def _plain(text: str) -> str | None:
  return " ".join(text.casefold().split()).strip(_AROUND) or None


def vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
  """Probability that the answer given most often is right, in [0, 1].

  Completions without an answer have no vote; when nobody has one the vote is lost. A tie is decided
  by lot among the answers with most votes, which counts here with its expected value, so that no
  order matters. Completions of one answer that the verifier judged differently count by their
  share.
  """
  ballots = collections.defaultdict(list)
  for answer, right in zip(answers, correct, strict=True):
    if answer is not None:
      ballots[answer].append(right)
  if not ballots:
    return 0.0
  most = max(map(len, ballots.values()))
  return float(np.mean([np.mean(b) for b in ballots.values() if len(b) == most]))


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
  """maj@k (self-consistency, Wang et al., arXiv 2203.11171): a vote among k completions.

  The mean over the n // k disjoint sets of k consecutive ones among n: unbiased, because the
  samples of a problem are exchangeable.
  """
  if not 1 <= k <= len(answers):
    raise ValueError(f"k: {k}, expected 1 to the {len(answers)} samples")
  starts = range(0, len(answers) - k + 1, k)
  return float(np.mean([vote(answers[i : i + k], correct[i : i + k]) for i in starts]))
