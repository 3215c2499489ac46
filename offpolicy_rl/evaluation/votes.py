"""Final answers of completions, and majority votes among them."""

import collections
import re
from collections.abc import Sequence

import numpy as np

from offpolicy_rl.tasks import extraction, forms, latex, numerals, thoughts

_AROUND_FORMULAS = ' \t\n.,:;!$`"'
_AROUND_WORDS = _AROUND_FORMULAS + "*'"
_UNMARKED = str.maketrans("", "", "‹›")
_NUMBER = re.compile(r"-?\d+(?:/\d+)?")
_SPACE_BESIDE_SIGNS = re.compile(r"(?<=[^\w\s])\s+|\s+(?=[^\w\s\\])")


def final_answer(text: str, *, finished: bool = True) -> str | None:
  r"""The answer of a completion, as a text that is equal for equal answers.

  Two completions vote together if their texts are equal. If both answer with a number
  (`extraction.number`), they are equal when the verifier `numeric` accepts them as equal: the text
  is the reduced fraction. Otherwise it is the marked text in the spelling of `forms.canonical` (1,
  2 and \{2, 1\} are equal, as for `math_verify`; expressions only as written), or else the last
  line; in lower case, without meaningless spaces and punctuation. A number and a text never vote
  together: (-\infty, 3) and 2\sqrt{3} are texts.

  None = no answer: the completion is empty, was cut, or ends in a thought.
  """
  answer = thoughts.removed(text) if finished else None
  if answer is None:
    return None
  number = extraction.number(answer)
  if number is not None:
    return str(number)
  marked = extraction.marked_answer(answer)
  if marked is not None:
    return _plain(marked, forms.canonical(forms.parse(marked)), around=_AROUND_FORMULAS)
  last = (answer.strip().splitlines() or [""])[-1]
  normal = latex.normal(last) if len(last) <= numerals.LONGEST else last
  return _plain(last, normal.casefold(), around=_AROUND_WORDS)


def _plain(marked: str, text: str, *, around: str) -> str | None:
  text = _SPACE_BESIDE_SIGNS.sub("", " ".join(text.translate(_UNMARKED).split()))
  bare = text.strip(around)
  # 5! without its sign would look like the number 5.
  return (marked.strip() if _NUMBER.fullmatch(bare) else bare) or None


def vote(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
  """Probability that the most frequent answer is right, in [0, 1].

  Completions without an answer have no vote; without any vote the result is 0. A tie is decided by
  lot among the answers with most votes, which counts here with its expected value, so that the
  order does not matter. Completions of one answer that the verifier judged differently count by
  their share.
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

  The mean over the n // k disjoint sets of k consecutive ones among n; unbiased, because the
  samples of a problem are exchangeable.
  """
  if not 1 <= k <= len(answers):
    raise ValueError(f"k: {k}, expected 1 to the {len(answers)} samples")
  starts = range(0, len(answers) - k + 1, k)
  return float(np.mean([vote(answers[i : i + k], correct[i : i + k]) for i in starts]))
