"""Shaped rewards: additions to the verifier's verdict in training. Evaluation never sees them.

DAPO's soft penalty of overlong completions is part of the objective, because it needs only tokens:
objective.overlong_cache (losses/advantages.py).
"""

import dataclasses
from collections.abc import Sequence

ZERO, MEAN = "zero", "mean"


@dataclasses.dataclass(frozen=True)
class Shaping:
  """Additions to the verdict; none by default."""

  format_reward: float = 0.0  # to a completion in which the format's pattern was found
  length_weight: float = 0.0  # times Kimi's length reward
  failed: str = ZERO  # reward of a completion whose verifier failed; or MEAN of the others


NONE = Shaping()


def length_rewards(correct: Sequence[bool], lengths: Sequence[int]) -> list[float]:
  """Shorter is better, within a group: Kimi k1.5 (arXiv 2501.12599), section 2.3.3.

  l = 1/2 - (length - shortest) / (longest - shortest); l if correct, min(0, l) if not; 0 for all
  when all are equally long. In [-1/2, 1/2]; lengths in tokens.
  """
  low, high = min(lengths), max(lengths)
  if low == high:
    return [0.0] * len(lengths)
  relative = [0.5 - (length - low) / (high - low) for length in lengths]
  return [x if good else min(0.0, x) for x, good in zip(relative, correct, strict=True)]


def rewards(judgements: Sequence, lengths: Sequence[int], shaping: Shaping) -> list[float]:
  """r = verdict + format_reward * [well formed] + length_weight * length reward, per completion.

  A completion whose verifier failed gets nothing added: 0, or the mean of the others.

  Args:
    judgements: scoring.Judgement of each completion of one group.
    lengths: tokens of each.
  """
  by_length = length_rewards([j.reward == 1.0 for j in judgements], lengths)
  shaped = [
    j.reward + shaping.format_reward * j.well_formed + shaping.length_weight * extra
    for j, extra in zip(judgements, by_length, strict=True)
  ]
  judged = [r for r, j in zip(shaped, judgements, strict=True) if not j.failed]
  stand_in = sum(judged) / len(judged) if judged and shaping.failed == MEAN else 0.0
  return [stand_in if j.failed else r for r, j in zip(shaped, judgements, strict=True)]
