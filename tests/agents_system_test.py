"""Agents in the system: the same tokens, rewards and training as the equal environment."""

import json

import jax
import numpy as np
import pytest

from benchmarks import chaos
from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import episodes, guess, tools
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import tokenizer
from tests.environments import harnesses
from tests.run_system import assert_identical, assert_same_metrics, run_through
from tests.sampler.engine_test import ticket
from tests.tasks.published import published
from tests.turns_system_test import SETTINGS

AGENT = "tests.environments.harnesses:guesses"
ENVIRONMENT = f"{guess.__name__}:GuessTheNumber"


def fond_of(params, words) -> dict:
  """Changed so that they say digits, and end there or a letter later."""
  liked = np.array([*words.encode("123456789ab"), words.eos])
  return params | {
    "embedding": params["embedding"].at[:, 0].add(20.0),
    "unembedding": params["unembedding"].at[0, liked].add(2.0).at[0, words.eos].add(0.5),
  }


def played(config, name: str) -> list[types.Trajectory]:
  """Episodes of a fresh model."""
  config.environment.name = name
  policy = build.make_policy(config, None)
  [(_, made)] = data.examples(config, config_lib.selection(config).expanded(), policy, "train")
  tickets = [
    types.Ticket(f"t{i}", types.TRAIN, 0, i, x.prompt_tokens, x.answer, 0, 0, 4, 1.0, name)
    for i, x in enumerate(made.examples[:12])
  ]
  params = fond_of(policy_lib.init(policy.model, jax.random.key(0)), policy.tokenizer)
  with build.engine_of(config, policy, group_size=4, max_prompt_tokens=8) as engine:
    groups = engine.generate(params, 0, tickets)
  return [trajectory for group in groups for trajectory in group]


def assert_same(expected: list[types.Trajectory], found: list[types.Trajectory]) -> None:
  for a, b in zip(expected, found, strict=True):
    for field in ("tokens", "logprobs", "versions"):
      np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert (a.reward, a.turn_rewards, a.ended) == (b.reward, b.turn_rewards, b.ended)


@pytest.fixture
def game(tiny_config):
  assignments = [x.removeprefix("--config.").split("=", 1) for x in SETTINGS]
  config_lib.override(tiny_config, [tuple(x) for x in assignments])
  tiny_config.model.tied_embeddings = False
  return tiny_config


def test_an_agent_gives_the_bits_of_the_equal_environment(game):
  expected, found = played(game, ENVIRONMENT), played(game, AGENT)
  assert {t.ended for t in expected} >= {types.DONE, types.TURN_LIMIT}
  assert_same(expected, found)


def test_an_agent_that_begins_otherwise_has_failed(game, caplog):
  found = played(game, "tests.environments.harnesses:other_prompt")
  assert {t.ended for t in found} == {types.FAILED} and {t.reward for t in found} == {0.0}
  assert "is not the prompt" in caplog.text and "got ' please', expected ''" in caplog.text


class Told:
  """Processes whose environments say these turns."""

  def __init__(self, *turns: Turn):
    self._turns, self._coming = list(turns), []

  def begin(self, _name, _problem, _seed):
    self._coming.append(self._turns.pop(0))
    return "played"

  def act(self, _played, _action, _sampled):
    self._coming.append(self._turns.pop(0))

  def end(self, _played):
    pass

  def answers(self, _seconds):
    coming, self._coming = self._coming, []
    return [("played", turn) for turn in coming]


TOOL = tools.describe(harnesses.add)


def test_with_a_chat_template_what_was_sampled_is_never_encoded_again(tmp_path):
  """Not even what the tokenizer would split otherwise; results of tools follow it."""
  words = tokenizer.Tokenizer(tokenizer.read_files(published(tmp_path, "qwen2.5-0.5b-instruct")))
  question = [{"role": "user", "content": "2 + 2?"}]
  opening = json.dumps({"messages": question, "tools": [TOOL]})
  told = Told(Turn(opening=opening), Turn("4", role="tool"), Turn(reward=1.0, done=True))
  made = episodes.Episodes(lambda: told, lambda _: words, episodes.Limits(200, 5, 50), seed=0)
  prompt = np.array(words.conversation(question, [TOOL]), np.int32)
  asked = ticket(0, environment="harnesses:calls")
  episode = made.begin(types.Ticket(**vars(asked) | {"prompt_tokens": prompt}), 0)
  [(_, first)] = made.replies(0)
  assert first.tokens.size == 0 and not first.ended
  sampled = [token for letter in "the" for token in words.encode(letter)] + [words.turn_end]
  assert words.encode("the") != sampled[:-1]
  span = types.Span(np.array(sampled, np.int32), np.zeros(4), np.zeros(4))
  made.act(episode, span)
  [(_, second)] = made.replies(0)
  chat = [*question, {"role": "assistant", "content": "the"}, {"role": "tool", "content": "4"}]
  whole = [*prompt.tolist(), *sampled, *second.tokens.tolist()]
  assert words.decode_special(whole) == words.decode_special(words.conversation(chat, [TOOL]))
  made.act(episode, span)
  assert made.replies(0)[0][1].ended == types.DONE and episode.rewards == [0.0, 1.0]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_in_which_an_agent_owns_the_loop_trains_as_with_the_environment(tmp_path):
  settings = [*SETTINGS, "--config.lag.mode=fixed", "--config.lag.max_lag=2"]
  settings += ["--config.learner.steps=10", "--config.checkpoint.every=10"]
  folders = {name: tmp_path / name.rpartition(":")[2] for name in (ENVIRONMENT, AGENT)}
  for name, folder in folders.items():
    run_through(folder, *settings, f"--config.environment.name={name}")
  expected, found = folders.values()
  assert_identical(chaos.parameters(found), chaos.parameters(expected))
  assert_same_metrics(found, expected)
