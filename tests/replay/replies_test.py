"""What environments said: written by group, read by ticket; damage is named by line."""

import dataclasses
import json

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import replies


def episode(seed: int) -> types.Trajectory:
  draw = np.random.default_rng(seed)
  size = int(draw.integers(1, 30))
  sampled = np.append(draw.random(size) < 0.5, True)
  return types.Trajectory(
    draw.integers(0, 9, size + 1, np.int32),
    np.zeros(size + 1, np.float32),
    np.where(sampled, 3, types.NO_VERSION).astype(np.int32),
    True,
    turn_rewards=tuple(draw.random(int(draw.integers(1, 4)), np.float32).tolist()),
    ended=types.EPISODE_ENDS[int(draw.integers(len(types.EPISODE_ENDS)))],
  )


def group(name: str, seed: int) -> types.Group:
  return types.Group(name, tuple(episode(seed * 10 + i) for i in range(3)))


def ticket(name: str, count=3) -> types.Ticket:
  return types.Ticket(name, types.TRAIN, 0, 0, np.array([1], np.int32), "", 0, 9, count, 1.0)


GROUPS = [group(f"train/{i}/0", i) for i in range(20)]


@pytest.fixture
def path(tmp_path):
  file = tmp_path / replies.FILE
  file.write_text("".join(json.dumps(replies.row(g)) + "\n" for g in GROUPS))
  return file


def test_what_is_written_comes_back(path):
  recording = replies.beside(str(path.with_name("lag_schedule.jsonl")))
  for made in reversed(GROUPS):
    found = recording.add_to(ticket(made.ticket_id))
    assert dataclasses.replace(found, replies=()) == ticket(made.ticket_id)
    for said, t in zip(found.replies, made.trajectories, strict=True):
      np.testing.assert_array_equal(said.tokens, np.where(t.sampled, types.BY_POLICY, t.tokens))
      assert (said.rewards, said.ended) == (t.turn_rewards, t.ended)


def test_tickets_that_were_not_recorded_have_none(path, tmp_path):
  recording = replies.Recording(path)
  assert recording.add_to(ticket("train/20/0")).replies == ()
  assert recording.add_to(ticket("train/2/0", count=4)).replies == ()
  assert replies.beside("") is None and replies.beside(str(tmp_path / "elsewhere" / "x")) is None


def test_a_line_that_a_kill_cut_does_not_count(path):
  path.write_bytes(path.read_bytes()[:-5])
  recording = replies.Recording(path)
  assert recording.add_to(ticket("train/19/0")).replies == ()
  assert len(recording.add_to(ticket("train/18/0")).replies) == 3


@pytest.mark.parametrize(
  ("line", "error"),
  [
    ("{", "line 21: no replies of environments"),
    ('{"ticket": "train/20/0"}', "line 21: no replies of environments: KeyError"),
    ('{"ticket": "t", "episodes": [{"tokens": [2.5], "rewards": [], "ended": ""}]}', "line 21"),
    (json.dumps(replies.row(GROUPS[3])), "line 21: train/3/0 was there before"),
  ],
)
def test_damage_is_named(path, line, error):
  with path.open("a") as file:
    file.write(line + "\n")
  with pytest.raises(replies.RepliesError, match=error):
    replies.Recording(path)
