"""Lists of another length for each completion of a message: turns, rewinds, parts of a rubric."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport.bounds import refuse as _refuse


def encode(rows: Sequence[types.Trajectory], message: pb.Group) -> None:
  """Adds the turns of episodes and the scores of a rubric to a message."""
  if any(t.ended for t in rows):
    message.turns.extend(len(t.turn_rewards) for t in rows)
    message.turn_rewards.extend(itertools.chain(*(t.turn_rewards for t in rows)))
    message.ended.extend(t.ended for t in rows)
    message.seconds.extend(itertools.chain(*(t.seconds or () for t in rows)))
  if any(t.rewinds for t in rows):
    message.rewind_counts.extend(len(t.rewinds) for t in rows)
    message.rewinds.extend(itertools.chain(*itertools.chain(*(t.rewinds for t in rows))))
  if any(t.parts for t in rows):
    message.part_counts.extend(len(t.parts) for t in rows)
    message.part_scores.extend(itertools.chain(*(t.parts for t in rows)))


def check_ended(ended: str, field: str) -> None:
  """Raises WireError unless an episode can end like this."""
  if ended not in types.EPISODE_ENDS:
    _refuse(field, ended, f"one of {', '.join(types.EPISODE_ENDS)}")


def episodes(message: pb.Group) -> list[tuple]:
  """(turn_rewards, ended, seconds) of each completion; ((), "", None) if it is no episode."""
  count = len(message.lengths)
  if not (message.turns or message.turn_rewards or message.ended):
    return [((), "", None)] * count
  for name in ("turns", "ended"):
    if len(getattr(message, name)) != count:
      _refuse(f"group.{name}", f"{len(getattr(message, name))} values", f"{count}, as in lengths")
  for ended in message.ended:
    check_ended(ended, "group.ended")
  rewards = iter(message.turn_rewards)
  if sum(message.turns) != len(message.turn_rewards):
    _refuse("group.turn_rewards", f"{len(message.turn_rewards)} values", f"{sum(message.turns)}")
  seconds: list = [None] * count
  if message.seconds:
    if len(message.seconds) != 3 * count or not all(0 <= x < math.inf for x in message.seconds):
      _refuse(
        "group.seconds", tuple(message.seconds), f"{3 * count} numbers of at least 0, or none"
      )
    seconds = [types.Seconds(*three) for three in itertools.batched(message.seconds, 3)]
  return [
    (tuple(itertools.islice(rewards, turns)), *rest)
    for turns, *rest in zip(message.turns, message.ended, seconds, strict=True)
  ]


def rewinds(message: pb.Group) -> list[tuple[types.Rewind, ...]]:
  """Where the context of each completion goes back; () where it does not."""
  counts, pairs = message.rewind_counts, list(itertools.batched(message.rewinds, 2))
  if not (counts or pairs):
    return [()] * len(message.lengths)
  if len(counts) != len(message.lengths):
    got = f"{len(counts)} values"
    _refuse("group.rewind_counts", got, f"{len(message.lengths)}, as in lengths")
  if 2 * sum(counts) != len(message.rewinds):
    _refuse("group.rewinds", f"{len(message.rewinds)} numbers", f"{2 * sum(counts)}")
  rest = iter(pairs)
  return [tuple(map(types.Rewind._make, itertools.islice(rest, number))) for number in counts]


def check_rewinds(rewinds: Sequence[types.Rewind], by_policy: np.ndarray, field: str) -> None:
  """Raises WireError unless a context can go back like this.

  Args:
    by_policy: bool [M], the tokens of the episode that the policy sampled.
  """
  seen, last = np.ones(by_policy.size, bool), 0
  for at, to in rewinds:
    if not (max(to, last) < at < seen.size) or by_policy[at]:
      _refuse(field, (at, to), f"at above {last}, below {seen.size} and not sampled; to below it")
    if not seen[to]:
      _refuse(field, (at, to), f"to: a token that those before {at} see")
    seen[to:at], last = False, at


def parts(message: pb.Group) -> list[tuple[float, ...]]:
  """Scores of a rubric's parts of each completion; () where there are none."""
  count, counts = len(message.lengths), message.part_counts
  if not (counts or message.part_scores):
    return [()] * count
  if len(counts) != count:
    _refuse("group.part_counts", f"{len(counts)} values", f"{count}, as in lengths")
  if sum(counts) != len(message.part_scores):
    _refuse("group.part_scores", f"{len(message.part_scores)} values", f"{sum(counts)}")
  if bad := [x for x in message.part_scores if not abs(x) <= types.MAX_VERDICT]:
    _refuse("group.part_scores", bad[0], f"at most {types.MAX_VERDICT:g} in size")
  scores = iter(message.part_scores)
  return [tuple(itertools.islice(scores, number)) for number in counts]
