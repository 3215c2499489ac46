"""The words of environments in a run, so that a replay needs none of them.

RUN/replies.jsonl has a line per group of episodes, in the order in which the learner took them:

    {"ticket": "train/3/1", "episodes": [{"tokens": [3, [30, 31], 4], "rewards": [0.0, 1.0],
     "ended": "done"}, ...]}

In `tokens` a number stands for so many tokens of the policy, a list for those of the environment.
An episode whose context went back has "rewinds", too: pairs of `types.Rewind`.
"""

import dataclasses
import itertools
import json
import os
import pathlib

import numpy as np

from offpolicy_rl import types

FILE = "replies.jsonl"


class RepliesError(ValueError):
  """A file of replies is damaged; names the line."""


def row(group: types.Group) -> dict:
  """The line of a group of episodes."""
  return {"ticket": group.ticket_id, "episodes": list(map(_episode, group.trajectories))}


def _episode(t: types.Trajectory) -> dict:
  starts = [0, *(np.flatnonzero(np.diff(t.sampled)) + 1).tolist()]
  runs = zip(starts, np.split(t.tokens, starts[1:]), strict=True)
  tokens = [run.size if t.sampled[start] else run.tolist() for start, run in runs]
  rewinds = {"rewinds": t.rewinds} if t.rewinds else {}
  return {"tokens": tokens, "rewards": t.turn_rewards, "ended": t.ended, **rewinds}


def replies_of(episode: dict) -> types.Replies:
  """Inverse of a line's episodes."""
  runs = [[types.BY_POLICY] * run if isinstance(run, int) else run for run in episode["tokens"]]
  tokens = np.array(list(itertools.chain(*runs)), np.int32)
  rewards, ended = tuple(map(float, episode["rewards"])), str(episode["ended"])
  rewinds = tuple(types.Rewind(int(at), int(to)) for at, to in episode.get("rewinds", ()))
  return types.Replies(tokens, rewards, ended, rewinds)


class Recording:
  """The file of a recorded run. Thread-safe."""

  def __init__(self, path: pathlib.Path):
    """Reads which line is where; RepliesError for one that is damaged or comes twice."""
    self._file, self._lines, start = path.open("rb"), {}, 0
    for number, line in enumerate(self._file, 1):
      if not line.endswith(b"\n"):  # cut by a kill: of a step that the schedule does not have
        break
      ticket_id = self._read(line, f"{path}, line {number}")[0]
      if ticket_id in self._lines:
        raise RepliesError(f"--replay: {path}, line {number}: {ticket_id} was there before")
      self._lines[ticket_id] = (start, len(line))
      start += len(line)

  def _read(self, line: bytes, where: str) -> tuple[str, tuple[types.Replies, ...]]:
    try:
      found = json.loads(line)
      return str(found["ticket"]), tuple(map(replies_of, found["episodes"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise RepliesError(f"--replay: {where}: no replies of environments: {error!r}") from None

  def add_to(self, ticket: types.Ticket) -> types.Ticket:
    """The ticket with its replies, if it was recorded with as many completions."""
    if ticket.ticket_id not in self._lines:
      return ticket
    start, length = self._lines[ticket.ticket_id]
    line = os.pread(self._file.fileno(), length, start)
    _, replies = self._read(line, ticket.ticket_id)
    if len(replies) != ticket.num_completions:
      return ticket
    return dataclasses.replace(ticket, replies=replies)


def beside(schedule: str) -> Recording | None:
  """The recording in the directory of a schedule; None if there is none, or `schedule` is ""."""
  path = pathlib.Path(schedule).parent / FILE
  return Recording(path) if schedule and path.is_file() else None
