"""Replaces groups without signal by groups of other prompts (learner.max_refills).

When all completions of a group have the same verdict, none is better than another: DAPO's
dynamic sampling (arXiv 2503.14476) leaves such groups out and samples more. Here each group of a
step has its own spare prompts, so its replacement depends on its content only: the order in which
samplers answer changes nothing, and a resumed run finds the same replacements.
"""

import collections
import math
from collections.abc import Callable

from offpolicy_rl import types


def has_signal(group: types.Group) -> bool:
  """Whether the verdicts on its completions differ; shaping for format and length is ignored."""
  verdicts = [t.verdict for t in group.trajectories]
  return min(verdicts) != max(verdicts)


class DynamicSampling:
  """Replaces finished groups without signal by other tickets, and counts them."""

  def __init__(self, next_ticket: Callable[[types.Ticket], types.Ticket | None]):
    """`next_ticket(ticket)`: its replacement; None when its spares are used up."""
    self._next_ticket = next_ticket
    self._left_out = collections.defaultdict(list)  # step -> groups

  def __call__(self, finished: types.FinishedGroup) -> types.Ticket | None:
    """The replacement of a group without signal; None = the group stays."""
    ticket = finished.ticket
    if ticket.kind != types.TRAIN or has_signal(finished.group):
      return None
    replacement = self._next_ticket(ticket)
    if replacement is not None:
      self._left_out[ticket.step].append(_summary(finished.group))
    return replacement

  def metrics(self, step: int) -> dict:
    """filtered/...: the groups replaced in `step`; call it once all its groups are there.

    reward: the mean of their verdicts.

    by_length: groups by the mean length of their completions in tokens, rounded up to a power of 2.
    """
    left_out = self._left_out.pop(step, [])
    lengths = collections.Counter(length for _, length in left_out)
    return {
      "filtered/groups": len(left_out),
      # Exactly rounded, so that the order of arrival does not change the last bit.
      "filtered/reward": math.fsum(reward for reward, _ in left_out) / max(len(left_out), 1),
      "filtered/by_length": {str(length): lengths[length] for length in sorted(lengths)},
    }


def _summary(group: types.Group) -> tuple[float, int]:
  """(verdict of all, mean length as a power of 2)."""
  rows = group.trajectories
  mean = sum(t.tokens.size for t in rows) / len(rows)
  return rows[0].verdict, 1 << math.ceil(math.log2(mean))
