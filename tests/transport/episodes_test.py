"""Episodes over the wire: they come back equal, and malformed ones are refused by field."""

import dataclasses
import math

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import codec, uneven
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.transport.codec_test import a_group, a_ticket, a_trajectory, check, same


def an_episode(**changes) -> types.Trajectory:
  """The policy, its environment, the policy."""
  return a_trajectory(
    logprobs=np.array([-0.5, 0.0, -30.0], np.float32),
    versions=np.array([2, types.NO_VERSION, 3], np.int32),
    turn_rewards=(0.25, 0.5),
    reward=0.75,
    ended=types.DONE,
    seconds=types.Seconds(0.5, 0.25, 2.0),
    **dict(rewinds=(types.Rewind(1, 0),)) | changes,
  )


def test_episodes_come_back_equal():
  one_turn = a_trajectory(
    turn_rewards=(0.0,), ended=types.FAILED, seconds=types.Seconds(0.0, 0.0, 1.0)
  )
  stays = an_episode(candidates=None, rewinds=())
  group = a_group(an_episode(), one_turn, stays)
  message = pb.Group.FromString(codec.encode_group(group).SerializeToString())
  assert same(codec.decode_group(message), group)
  check(dataclasses.replace(group, trajectories=group.trajectories[:2]), episodes=True)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (lambda m: m.turns.pop(), r"group.turns: got '1 values', expected 2, as in lengths"),
    (lambda m: m.ended.pop(), r"group.ended: got '1 values', expected 2"),
    (lambda m: m.turn_rewards.pop(), r"group.turn_rewards: got '3 values', expected 4"),
    (
      lambda m: m.seconds.pop(),
      r"group.seconds: got \(0.5, .*\), expected 6 numbers of at least 0",
    ),
    (lambda m: m.seconds.__setitem__(1, math.nan), r"group.seconds: got \(0.5, nan, "),
    (lambda m: m.ended.__setitem__(0, "won"), r"group.ended: got 'won', expected one of done, "),
    (lambda m: m.rewind_counts.pop(), r"group.rewind_counts: got '1 values', expected 2"),
    (lambda m: m.rewinds.pop(), r"group.rewinds: got '3 numbers', expected 4"),
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
    (a_trajectory(), True, r"ended: got '', expected one of done, turns, tokens, time, failed"),
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


@pytest.mark.parametrize(
  ("rewinds", "error"),
  [
    ([(2, 0)], r"got \(2, 0\), expected at above 0, below 5 and not sampled"),
    ([(5, 0)], r"got \(5, 0\), expected at above 0, below 5"),
    ([(1, 1)], r"got \(1, 1\), expected at above 0, below 5"),
    ([(3, 2), (1, 0)], r"got \(1, 0\), expected at above 3"),
    ([(1, 0), (3, 0)], r"got \(3, 0\), expected to: a token that those before 3 see"),
    ([(1, 0), (3, 1)], ""),
    ([(1, 0), (3, 2)], ""),
  ],
)
def test_contexts_go_back_to_what_they_have(rewinds, error):
  by_policy = np.array([True, False, True, False, True])
  pairs = [types.Rewind(*pair) for pair in rewinds]
  if not error:
    uneven.check_rewinds(pairs, by_policy, "rewinds")
    return
  with pytest.raises(codec.WireError, match=f"rewinds: {error}"):
    uneven.check_rewinds(pairs, by_policy, "rewinds")


def a_replay(**changes) -> types.Ticket:
  rewinds = (types.Rewind(1, 0),)
  said = types.Replies(np.array([-1, 7, 9, -1], np.int32), (0.25, 0.5), types.DONE, rewinds)
  one_turn = types.Replies(np.array([-1], np.int32), (0.0,), types.FAILED)
  return a_ticket(replies=(said, one_turn), **changes)


def test_what_was_recorded_comes_back_equal():
  message = pb.Ticket.FromString(codec.encode_ticket(a_replay()).SerializeToString())
  assert same(codec.decode_ticket(message), a_replay())
  limits = dict(max_prompt_tokens=4, max_completions=2)
  codec.check_ticket(a_replay(), vocab_size=10, **limits)
  with pytest.raises(codec.WireError, match=r"replies\[0\].tokens: got 9, expected token ids in"):
    codec.check_ticket(a_replay(), vocab_size=9, **limits)


def test_a_ticket_names_an_environment_of_the_run():
  asked = a_ticket(environment="a:World")
  assert codec.decode_ticket(codec.encode_ticket(asked)).environment == "a:World"
  limits = dict(vocab_size=10, max_prompt_tokens=4, max_completions=2)
  codec.check_ticket(asked, **limits, environments={"a:World": "key"})
  with pytest.raises(codec.WireError, match="environment: got 'a:World', expected .* b:World"):
    codec.check_ticket(asked, **limits, environments={"b:World": "key"})


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (lambda m: m.replies.pop(), r"ticket.replies: got 1, expected 0 or 2"),
    (lambda m: m.replies[1].ClearField("rewards"), r"replies\[1\].rewards: got \(\), expected"),
    (lambda m: m.replies[0].rewards.append(math.nan), r"rewards: got \(0.25, 0.5, nan\), expected"),
    (lambda m: setattr(m.replies[1], "ended", ""), r"replies\[1\].ended: got '', expected one of"),
    (lambda m: said(m, [-1, 7]), r"replies\[0\].tokens: got \[7\], expected token ids or -1, with"),
    (lambda m: said(m, [-2, -1]), r"replies\[0\].tokens"),
    (lambda m: said(m, []), r"replies\[0\].tokens: got \[\], expected"),
    (lambda m: m.replies[0].rewinds.append(2), r"replies\[0\].rewinds: got '3 numbers', expected"),
    (lambda m: m.replies[0].rewinds.extend([2, 0]), r"rewinds: got \(2, 0\), expected to: a token"),
  ],
)
def test_malformed_recordings_are_refused(change, error):
  message = codec.encode_ticket(a_replay())
  change(message)
  with pytest.raises(codec.WireError, match=error):
    codec.decode_ticket(message)


def said(message: pb.Ticket, tokens: list[int]) -> None:
  message.replies[0].tokens.CopyFrom(codec.encode_tensor(np.array(tokens, np.int32)))
