"""Episodes in tokens: limits, rewards and ends."""

import dataclasses
import functools
import itertools
import json
import types as plain_types

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.environments import episodes
from offpolicy_rl.environments.environment import Sampled, Turn
from offpolicy_rl.tasks import pool
from offpolicy_rl.tasks.special_tokens import TokenizerError
from tests.sampler import engine_test

PROMPT = engine_test.ticket(0).prompt_tokens.tolist()
ticket = functools.partial(engine_test.ticket, environment="worlds:World")


class Words:
  """A token per character."""

  def decode(self, ids) -> str:
    return "".join(map(chr, ids))

  decode_special = decode

  def token_texts(self, ids) -> list[str]:
    return list(map(chr, ids))

  def conversation(self, messages, _tools) -> list[int]:
    return list(map(ord, messages[0]["content"]))

  def reply(self, texts, role: str, _last) -> list[int]:
    if role == "tool":
      raise TokenizerError("chat template: no tools")
    return list(map(ord, "".join(texts)))


class Scripted:
  """Processes whose answers are given."""

  def __init__(self, *answers):
    self._answers, self.actions, self.ended = iter(answers), [], 0
    self.sampled = []

  def begin(self, _name: str, _problem: str, _seed: int):
    return plain_types.SimpleNamespace()

  def act(self, _played, action: str, sampled: Sampled | None = None) -> None:
    self.actions.append(action)
    self.sampled.append(sampled)

  def answers(self, _seconds: float):
    return [(self.played, answer) for answer in itertools.islice(self._answers, 1)]

  def end(self, _played) -> None:
    self.ended += 1


class OneHandle:
  """A handle that can be a key."""


def span(said: str) -> types.Span:
  tokens = np.array(list(map(ord, said)), np.int32)
  return types.Span(tokens, np.zeros(tokens.size), np.zeros(tokens.size))


def play(*answers, said="ab", **limits):
  """(replies, episode, processes) of an episode in which the policy says the same every turn."""
  scripted = Scripted(*answers)
  scripted.played = OneHandle()
  scripted.begin = lambda _name, _problem, _seed: scripted.played
  bounds = episodes.Limits(**dict(tokens=12, turns=3, turn_tokens=4) | limits)
  made = episodes.Episodes(lambda: scripted, lambda _: Words(), bounds, seed=0)
  episode, replies = made.begin(ticket(0), 0), []
  while not (replies and replies[-1].ended):
    if replies:
      made.act(episode, span(said))
    [(same, reply)] = made.replies(1.0)
    assert same is episode
    replies.append(reply)
  assert scripted.ended == 1
  return replies, episode, scripted


def ends(replies) -> str:
  return replies[-1].ended


def test_an_episode_ends_when_its_environment_says_so():
  replies, episode, scripted = play(Turn(), Turn("cd", 0.25), Turn("not shown", 0.5, True))
  assert [reply.tokens.tolist() for reply in replies] == [[], [99, 100], []]
  assert [reply.limit for reply in replies] == [4, 4, 0]
  assert ends(replies) == types.DONE and episode.rewards == [0.25, 0.5]
  assert scripted.actions == ["ab", "ab"]


def test_what_an_environment_says_first_is_said_even_if_its_first_message_is_empty():
  replies, _, _ = play(Turn(more=("cd", "e")), Turn(done=True))
  assert [reply.tokens.tolist() for reply in replies] == [[99, 100, 101], []]


def test_rewards_that_add_up_to_more_than_a_verdict_can_be_fail_the_episode():
  """Each is allowed, but the learner refuses their sum, and with it the whole group."""
  replies, episode, _ = play(Turn(), Turn("c", 6e5), Turn("", 6e5, True))
  assert ends(replies) == types.FAILED and episode.rewards == [0.0, 0.0]
  assert ends(play(Turn(), Turn("c", 6e5), Turn("", 4e5, True))[0]) == types.DONE


def test_agents_are_told_how_turns_were_sampled():
  opening = json.dumps({"messages": [{"content": "".join(map(chr, PROMPT))}], "tools": []})
  plays = [Turn(opening=opening), Turn("c", logprobs=True), Turn("d"), Turn(done=True)]
  scripted = play(*plays)[2]
  context, tokens = len(PROMPT), 2
  assert scripted.sampled == [
    Sampled(context, tokens, cut=False),
    Sampled(context + 3, tokens, cut=False, logprobs=(("a", 0.0), ("b", 0.0))),
    Sampled(context + 6, tokens, cut=False),
  ]
  assert play(Turn(logprobs=True), Turn(done=True))[2].sampled == [None]  # no agent


def test_the_thought_that_a_template_opens_begins_the_turn_that_it_opens():
  scripted = play(Turn("x<think>\n"), Turn("y"), Turn("<think>z"), Turn(done=True), tokens=99)[2]
  assert scripted.actions == ["<think>ab", "ab", "ab"]


def test_an_episode_ends_after_so_many_turns():
  replies, episode, _ = play(Turn("x"), Turn("y", 1.0), Turn("z", 2.0), turns=2)
  assert ends(replies) == types.TURN_LIMIT and episode.rewards == [1.0, 2.0]
  assert replies[0].tokens.tolist() == [120]


def test_an_episode_ends_when_no_token_is_left_for_the_policy():
  replies, episode, _ = play(Turn(), Turn("x" * 6, 1.0), Turn("y" * 2, 1.0))
  assert [reply.limit for reply in replies] == [4, 4, 0]  # 12 - 2 - 6; then 12 - 10 - 2
  assert ends(replies) == types.TOKEN_LIMIT and episode.rewards == [1.0, 1.0]
  assert [reply.limit for reply in play(Turn(), Turn("x" * 8), Turn(done=True))[0]] == [4, 2, 0]


@pytest.mark.parametrize(
  ("bad", "ended"),
  [
    (pool.Failed("died"), types.FAILED),
    (Turn("x", role="tool"), types.FAILED),
    (pool.Failed("not done after 10 s", late=True), types.TIME_LIMIT),
  ],
)
def test_a_failure_takes_the_rewards_of_the_episode(bad, ended):
  replies, episode, _ = play(Turn(), Turn("x", 1.0), bad)
  assert ends(replies) == ended and episode.rewards == [0.0, 0.0]


@pytest.mark.parametrize(
  ("first", "ended"),
  [
    (pool.Failed("died"), types.FAILED),
    (pool.Failed("not done after 10 s", late=True), types.TIME_LIMIT),
    (Turn(done=True, reward=5.0), types.FAILED),
    (Turn("x" * 12), types.TOKEN_LIMIT),
  ],
)
def test_one_that_can_not_begin_gives_the_policy_a_token_and_ends(first, ended):
  replies, episode, scripted = play(first, said="a")
  assert replies[0] == episodes.Reply(replies[0].tokens, 1) and not replies[0].tokens.size
  assert ends(replies) == ended and episode.rewards == [0.0] and not scripted.actions


@pytest.mark.parametrize(
  ("answers", "said"),
  [
    ([Turn("x"), Turn("cd", 0.25), Turn(), Turn(reward=0.5, done=True)], "ab"),
    ([Turn(), Turn("x" * 6, 1.0), Turn("y" * 2, 1.0)], "ab"),
    ([Turn(), Turn("x", 1.0), pool.Failed("died")], "ab"),
    ([pool.Failed("died")], "a"),
    ([Turn("x" * 12)], "a"),
  ],
)
def test_what_was_said_is_said_again_without_an_environment(answers, said):
  replies, episode, _ = play(*answers, said=said, turns=4)
  written = [t for reply in replies[:-1] for t in [*reply.tokens.tolist(), *[-1] * len(said)]]
  recorded = types.Replies(np.array(written, np.int32), tuple(episode.rewards), ends(replies))
  bounds = episodes.Limits(tokens=12, turns=4, turn_tokens=4)
  made = episodes.Episodes(lambda: pytest.fail("played"), lambda _: Words(), bounds, seed=0)
  again = made.begin(dataclasses.replace(ticket(0), replies=(recorded,)), 0)
  for i, expected in enumerate(replies):
    if i:
      made.act(again, span(said))
    [(same, reply)] = made.replies(1.0)
    assert same is again and reply.tokens.tolist() == expected.tokens.tolist()
    assert reply.ended == expected.ended
    assert reply.limit == expected.limit or len(said) <= reply.limit < expected.limit
  assert again.rewards == episode.rewards


def test_seeds_are_of_the_run_and_the_prompt():
  seeds = {
    episodes.seed_of(seed, ticket(i, kind=kind))
    for seed in (0, 1)
    for i in range(3)
    for kind in (types.TRAIN, types.EVAL)
  }
  assert len(seeds) == 12 and all(0 <= seed < 2**31 for seed in seeds)
