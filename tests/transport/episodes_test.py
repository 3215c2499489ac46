"""Episodes over the wire: they come back equal, and malformed ones are refused by field."""

import dataclasses
import math

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import codec
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.transport.codec_test import a_group, a_trajectory, check, same


def an_episode(**changes) -> types.Trajectory:
  """The policy, its environment, the policy."""
  return a_trajectory(
    logprobs=np.array([-0.5, 0.0, -30.0], np.float32),
    versions=np.array([2, types.NO_VERSION, 3], np.int32),
    turn_rewards=(0.25, 0.5),
    reward=0.75,
    ended=types.DONE,
    **changes,
  )


def test_episodes_come_back_equal():
  one_turn = a_trajectory(turn_rewards=(0.0,), ended=types.FAILED)
  group = a_group(an_episode(), one_turn, an_episode(candidates=None))
  message = pb.Group.FromString(codec.encode_group(group).SerializeToString())
  assert same(codec.decode_group(message), group)
  check(dataclasses.replace(group, trajectories=group.trajectories[:2]), episodes=True)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (lambda m: m.turns.pop(), r"group.turns: got '1 values', expected 2, as in lengths"),
    (lambda m: m.ended.pop(), r"group.ended: got '1 values', expected 2"),
    (lambda m: m.turn_rewards.pop(), r"group.turn_rewards: got '3 values', expected 4"),
    (lambda m: m.ended.__setitem__(0, "won"), r"group.ended: got 'won', expected one of done, "),
  ],
)
def test_malformed_episodes_are_refused(change, error):
  message = codec.encode_group(a_group(an_episode(), an_episode()))
  change(message)
  with pytest.raises(codec.WireError, match=error):
    codec.decode_group(message)


@pytest.mark.parametrize(
  ("trajectory", "episodes", "error"),
  [
    (an_episode(), False, r"ended: got 'done', expected '': not an episode"),
    (a_trajectory(), True, r"ended: got '', expected one of done, turns, tokens, failed"),
    (
      dataclasses.replace(an_episode(), turn_rewards=()),
      True,
      "versions, turn_rewards: got 'no turn of the policy'",
    ),
    (
      dataclasses.replace(an_episode(), versions=np.full(3, types.NO_VERSION, np.int32)),
      True,
      "versions, turn_rewards: got 'no turn of the policy'",
    ),
    (
      dataclasses.replace(an_episode(), logprobs=np.array([-0.5, -0.1, -3.0], np.float32)),
      True,
      "logprobs: got 'a number for what no policy sampled', expected 0 there",
    ),
    (
      dataclasses.replace(an_episode(), turn_rewards=(0.0, math.nan)),
      True,
      r"turn_rewards: got nan, expected at most 1e\+06 in size",
    ),
    (
      dataclasses.replace(an_episode(), versions=np.array([2, types.NO_VERSION, 9], np.int32)),
      True,
      r"versions: got 9, expected in \[-1, 3\]",
    ),
  ],
)
def test_episodes_that_do_not_answer_the_ticket_are_refused(trajectory, episodes, error):
  group = a_group(an_episode() if episodes else a_trajectory(), trajectory)
  with pytest.raises(codec.WireError, match=r"group.trajectories\[1\]." + error):
    check(group, episodes=episodes)
