"""OpenAI's own packages, as clients of `serve` and as agents that are trained."""

import json

import pytest

from offpolicy_rl.chat_api import server
from offpolicy_rl.environments.environment import Turn
from tests.agents_system_test import ENVIRONMENT, assert_same, game, played  # noqa: F401 (fixture)
from tests.rewritten_system_test import AGENT as COMPACTS
from tests.rewritten_system_test import chats, played_in_chat, settings  # noqa: F401 (fixtures)
from tests.sampler import chat_test

openai = pytest.importorskip("openai", reason="OpenAI's client is missing: pip install openai")
pytestmark = pytest.mark.long
PROMPT = [{"role": "user", "content": "go"}]
PROBLEM = {"messages": PROMPT, "answer": "7", "rewrites": False}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 3, "b": 4}}</tool_call>'


def client(url: str, key: str = "secret"):
  return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_the_client_chats_with_an_engine():
  with chat_test.running() as (backend, _), server.serving(backend, key="secret") as url:
    assert [model.id for model in client(url).models.list()] == ["tiny"]
    create = client(url).chat.completions.create
    asked = dict(model="tiny", messages=PROMPT, seed=1, max_tokens=9)
    whole = create(**asked, logprobs=True, top_logprobs=3)
    text = whole.choices[0].message.content
    assert text and whole.usage.prompt_tokens == 2
    shown = whole.choices[0].logprobs.content
    assert "".join(token.token for token in shown) == text
    assert all(len(token.top_logprobs) == 3 for token in shown)
    *chunks, last = create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert last.usage == whole.usage
    turns = [*PROMPT, whole.choices[0].message, {"role": "user", "content": "on"}]
    again = create(**asked | {"messages": turns})
    assert again.usage.prompt_tokens == len("go" + text + "on")
    with pytest.raises(openai.BadRequestError, match="n: got 9, expected at most 3"):
      create(**asked, n=9)
    with pytest.raises(openai.NotFoundError, match="model: got 'gpt-5', expected 'tiny'"):
      create(**asked | {"model": "gpt-5"})
    with pytest.raises(openai.AuthenticationError, match="key"):
      client(url, "other").models.list()


def test_the_client_in_a_loop_of_its_own_gives_the_bits_of_the_environment(game):  # noqa: F811
  found = played(game, "tests.environments.openai_harnesses:guesses")
  assert_same(played(game, ENVIRONMENT), found)


def test_the_client_may_change_its_conversation(chats):  # noqa: F811
  """With the bits of the harness without it."""
  found = played_in_chat(chats, "tests.environments.openai_harnesses:compacts")
  expected = played_in_chat(chats, COMPACTS)
  assert [t.rewinds for _, t in found] == [t.rewinds for _, t in expected]
  assert_same([t for _, t in expected], [t for _, t in found])


def test_a_second_conversation_with_a_tool_and_back():
  """The policy's turns are named, whatever the client has made of them."""
  from tests.environments import openai_harnesses

  episode = openai_harnesses.checks()
  told = lambda said: json.loads(episode.step(said).history)
  asks = lambda text: {"role": "user", "content": text}
  episode.reset(json.dumps(PROBLEM | {"rewrites": True}), 0)
  assert told("5") == [asks("Check it.")]
  assert told("I add. " + CALL) == [
    asks("Check it."),
    1,
    dict(role="tool", content="7"),
    asks("So?"),
  ]
  assert told("It is 7") == [0, asks("It is 7: messages True")]
  assert episode.step("7") == Turn(reward=1.0, done=True)
  episode.close()


@pytest.mark.parametrize("name", ["sums", "with_sdk"])
def test_an_agent_with_a_tool(name):
  """The client in a loop of ours, and OpenAI's SDK, which owns its loop."""
  pytest.importorskip("agents", reason="OpenAI's SDK is missing: pip install openai-agents")
  from tests.environments import openai_harnesses

  episode = getattr(openai_harnesses, name)()
  opening = json.loads(episode.reset(json.dumps(PROBLEM), 0).opening)
  assert opening["messages"] == PROMPT
  [tool] = opening["tools"]
  assert tool["function"]["name"] == "add"
  assert tool["function"]["parameters"]["required"] == ["a", "b"]
  assert episode.step("I add. " + CALL) == Turn("7", role="tool")
  assert episode.step(CALL + CALL) == Turn("7", role="tool", more=("7",))
  assert episode.step("7") == Turn(reward=1.0, done=True)
  episode.close()
