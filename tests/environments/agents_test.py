"""Agents that own their loop: their requests as turns, and what is refused."""

import asyncio
import contextlib
import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest

from offpolicy_rl.environments import agents, environment, processes, tools
from offpolicy_rl.environments.environment import Sampled, Turn
from offpolicy_rl.tasks import sources, vocabulary
from tests.environments import harnesses
from tests.environments.processes_test import answers

NAME = "tests.environments.harnesses"
PROMPT = [{"role": "user", "content": "go"}]


def problem(answer, *, rewrites=False) -> str:
  return json.dumps({"messages": PROMPT, "answer": answer, "rewrites": rewrites})


@pytest.fixture
def begin():
  """Begins episodes, which end with the test."""
  begun = []

  def start(name: str, answer=None, seed=0, *, rewrites=False):
    begun.append(getattr(harnesses, name)())
    return begun[-1], begun[-1].reset(problem(answer, rewrites=rewrites), seed)

  yield start
  for one in begun:
    one.close()


def test_an_agent_is_an_environment():
  found = environment.resolve(f"{NAME}:adds")
  assert agents.is_agent(found) and found.__doc__ == harnesses.adds.__doc__
  assert not agents.is_agent(environment.resolve("tests.environments.games:Adds"))
  assert [f.__name__ for f in harnesses.calls.tools] == ["add"]
  with pytest.raises(ValueError, match="form: got 'x', expected one of hermes"):
    agents.agent(form="x")(ask_nothing)


def ask_nothing(_base_url, _problem, _seed):
  return 0.0


def test_requests_are_turns_of_the_policy(begin):
  played, first = begin("adds", 7, seed=3)
  assert json.loads(first.opening) == {"messages": PROMPT, "tools": []}
  assert first._replace(opening="") == Turn()
  assert played.step("1") == Turn("4")
  assert played.step("2") == Turn("6")
  assert played.step("1") == Turn(reward=1.5, done=True)


def test_tool_calls_are_parsed_and_results_are_told_as_tools(begin):
  played, first = begin("calls", "7")
  assert json.loads(first.opening)["tools"][0]["function"]["name"] == "add"
  call = '<tool_call>{"name": "add", "arguments": {"a": 3, "b": %d}}</tool_call>'
  assert played.step("So: " + call % 4) == Turn("7", role="tool")
  assert played.step(call % 1 + call % 2) == Turn("4", role="tool", more=("5",))
  assert played.step("7") == Turn(reward=1.0, done=True)
  played, _ = begin("calls", "7")
  assert played.step("<tool_call>{") == Turn(done=True)


def test_an_episode_that_a_limit_ends_refuses_its_agent(begin):
  played, _ = begin("adds", 7)
  played.close()
  with pytest.raises(harnesses.Refused, match="the episode is over"):
    played._next()


def test_an_agent_that_never_asks_is_done(begin):
  assert begin("waits")[1] == Turn(reward=1.0, done=True)
  assert asyncio.iscoroutinefunction(harnesses.waits.harness)


@pytest.mark.parametrize(
  ("order", "why"),
  [
    ({}, "messages: got nothing behind .* unless environment.history = rewrite"),
    ({"messages": [{"role": "system", "content": ""}]}, "messages: got system behind"),
    (
      {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]},
      "messages: got tool, user behind",
    ),
    ({"before": [{"role": "user", "content": "no"}]}, "messages\\[0\\]: got .*no.* expected .*go"),
    ({"before": []}, "messages\\[0\\]: got .*assistant.* expected .*go"),
    ({"temperature": 0.5}, "temperature: got 0.5, expected nothing"),
    ({"n": 2}, "n: got 2, expected nothing"),
    ({"max_tokens": 9}, "max_tokens: got 9"),
    ({"logprobs": True, "top_logprobs": 2}, "top_logprobs: got 2, expected 0"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: expected the same"),
    ({"role": 3}, "role: unknown"),
  ],
)
def test_requests_that_do_not_continue_the_episode_are_refused(begin, order, why):
  played, _ = begin("obeys")
  with pytest.raises(harnesses.Refused, match=why):
    played.step(json.dumps(order))


USER, TOOL = ({"role": role, "content": "x"} for role in ("user", "tool"))
NOTE = {"role": "assistant", "content": "so far: x"}


@pytest.mark.parametrize(
  ("behind", "expected"),
  [
    ([USER], [USER]),
    ([0], [0]),
    ([0, TOOL, USER], [0, TOOL, USER]),
    ([0, 1], [0, 1]),
    ([0, USER], [0, USER]),
    ([1, USER, 0], [1, USER, {"role": "assistant", "content": "[]"}]),
    ([NOTE, USER, 1], [NOTE, USER, 1]),
    ([{"role": "system", "content": "x"}, NOTE], [{"role": "system", "content": "x"}, NOTE]),
  ],
)
def test_a_request_may_change_what_was_said_if_the_run_allows_it(begin, behind, expected):
  """The policy's turns are named where they are as they were; the rest is the harness's."""
  played, _ = begin("rewrites", rewrites=True)
  assert played.step("[]") == Turn(history="[]")  # the first request again
  told = played.step(f" {json.dumps(behind)}")
  assert json.loads(told.history) == expected
  assert told._replace(history="") == Turn()


@pytest.mark.parametrize("behind", [[], [USER], [NOTE, USER], [0, TOOL, USER], [0]])
def test_else_it_is_told_which_key_allows_it(begin, behind):
  played, _ = begin("rewrites")
  with pytest.raises(harnesses.Refused, match=r"messages.* unless environment.history = rewrite"):
    played.step(json.dumps(behind))


def test_a_conversation_may_go_on_behind_what_was_changed(begin):
  played, _ = begin("rewrites", rewrites=True)
  assert played.step(json.dumps([NOTE, USER])) == Turn(history=json.dumps([NOTE, USER]))
  assert played.step(json.dumps([NOTE, USER, 1, TOOL])) == Turn("x", role="tool")
  assert json.loads(played.step(json.dumps([0, TOOL, 2, USER])).history) == [0, TOOL, 2, USER]


def test_calls_that_stay_are_those_of_the_policy_and_results_have_its_form(begin):
  """An answer with calls is told as it was sampled, however the client writes its arguments."""
  played, _ = begin("recalls", rewrites=True)
  call = '<tool_call>{"name":"add",  "arguments": {"a": 3, "b": 4}}</tool_call>'
  history = json.loads(played.step(call).history)
  other = {"id": "0", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
  assert history == [
    {"role": "assistant", "content": "", "tool_calls": [other]},
    {"role": "tool", "content": "5"},
    0,
    {"role": "tool", "content": "7"},
    USER,
  ]


def test_results_of_one_turn_are_one_message_if_they_are_the_users(begin, monkeypatch):
  """Gemma's template takes no two in a row."""
  monkeypatch.setattr(harnesses.calls, "form", tools.FORMATS["gemma"])
  played, _ = begin("calls", "7")
  both = "```tool_output\n3\n```\n```tool_output\n7\n```"
  assert played.step("[add(a=1, b=2), add(a=3, b=4)]") == Turn(both)
  assert played.step("[add(a=1, b=2)]") == Turn("```tool_output\n3\n```")
  results = [{"role": "tool", "tool_call_id": "1", "content": text} for text in ("3", "7")]
  monkeypatch.setattr(harnesses.rewrites, "form", tools.FORMATS["gemma"])
  played, _ = begin("rewrites", rewrites=True)
  told = played.step(json.dumps([NOTE, *results, USER, 0, results[0]]))
  one = {"role": "user", "content": "```tool_output\n3\n```"}
  assert json.loads(told.history) == [NOTE, {"role": "user", "content": both}, USER, 0, one]


SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "max_tokens": 9}


@pytest.mark.parametrize("field", [*SAMPLING, "max_completion_tokens"])
def test_fields_that_say_how_to_sample_are_ignored_if_the_agent_names_them(field):
  made = agents.agent(harnesses.obeys.harness, ignores=[field])
  more = {"role": "user", "content": "on"}
  sent = SAMPLING | {"max_completion_tokens": 9}
  for name, value in sent.items():
    played = made()
    try:
      played.reset(problem(None), 0)
      order = json.dumps({"messages": [more], name: value})
      if name.replace("_completion", "") == field.replace("_completion", ""):
        assert played.step(order) == Turn("on")
      else:
        with pytest.raises(harnesses.Refused, match=f"{name.replace('_completion', '')}: got"):
          played.step(order)
    finally:
      played.close()


@pytest.mark.parametrize("field", ["n", "tools", "model", "stream", "logprobs", "nothing", ""])
def test_no_other_field_is_ignored(field):
  with pytest.raises(ValueError, match=f"ignores: got '{field}', expected some of temperature,"):
    agents.agent(ignores=("temperature", field))(ask_nothing)


@pytest.mark.parametrize(
  ("order", "why"),
  [
    ({"before": []}, r"messages\[0\]: got .*assistant.* expected .*go.* begins with the prompt"),
    ({"before": [{"role": "system", "content": "x"}, *PROMPT]}, r"messages\[0\]: got .*system"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools: expected the same"),
    (
      {"messages": [], "before": [{"role": "user", "content": "go on"}]},
      "expected .*'go'.* as bef",
    ),
  ],
)
def test_a_prompt_stays_as_it_is(begin, order, why):
  played, _ = begin("obeys", rewrites=True)
  with pytest.raises(harnesses.Refused, match=why):
    played.step(json.dumps(order))


def test_a_request_without_messages_is_refused(begin):
  played, _ = begin("adds", 7, rewrites=True)
  with pytest.raises(harnesses.Refused, match="messages: got .*, expected at least one message"):
    harnesses.ask(f"{agents._door().url}/episodes/{played._name}/v1", [])


def test_log_probabilities_of_what_was_sampled_are_told_if_they_are_asked_for(begin):
  played, first = begin("surprised")
  assert first.logprobs and not begin("adds", 7)[1].logprobs
  logprobs = (("4", -0.5), ("2", -0.25), ("<eos>", -9.0))
  sampled = Sampled(context=9, tokens=3, cut=False, logprobs=logprobs)
  assert played.step("42", sampled) == Turn(reward=0.75, done=True)


@pytest.mark.parametrize("cut", [False, True])
def test_an_agent_is_told_of_tokens_and_of_turns_that_were_cut(begin, cut):
  played, _ = begin("counts")
  told = played.step("42", Sampled(context=25, tokens=3, cut=cut))
  assert told == Turn(reward=253.0 + 1000 * cut, done=True)


def test_requests_come_one_at_a_time(begin):
  played, _ = begin("adds", 7)
  url = f"{agents._door().url}/episodes/{played._name}/v1"
  with pytest.raises(harnesses.Refused, match="expected one at a time"):
    harnesses.ask(url, PROMPT)
  assert played.step("3") == Turn("3")
  with pytest.raises(harnesses.Refused, match="over, or there was none"):
    harnesses.ask(url.replace(played._name, "0" * 16), PROMPT)


def test_answers_can_be_streamed_and_clients_may_trim(begin):
  played, _ = begin("obeys")
  lines = []

  def stream():
    parts = urlsplit(agents._door().url)
    connection = http.client.HTTPConnection(parts.netloc)
    said = {"role": "assistant", "content": "{} "}
    history = [*PROMPT, said | {"content": "{}"}, {"role": "user", "content": "x"}]
    body = json.dumps({"model": "any", "messages": history, "stream": True})
    path = f"/episodes/{played._name}/v1/chat/completions"
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    lines.extend(connection.getresponse().read().decode().split("\n\n"))

  played._actions.put(("{} ", None))  # its next request is refused, and the episode goes on by ours
  with pytest.raises(harnesses.Refused):
    played._next()
  client = threading.Thread(target=stream)
  client.start()
  assert played._next() == Turn("x")
  played._actions.put(("hello", None))
  client.join()
  assert '"content": "hello"' in lines[1] and lines[-2] == "data: [DONE]"


def test_in_processes_an_agent_costs_its_own_episode_only():
  name = f"{NAME}:obeys"
  keys = {name: "environment.name"}
  made = processes.Processes(keys, processes=1, seconds=2.0, memory_mb=4096)
  with contextlib.closing(made):
    good, bad, wrong = (made.begin(name, problem(None), 0) for _ in range(3))
    assert len(answers(made, 3)) == 3
    made.act(bad, '"hang"')
    assert "not done after 2 s" in answers(made, 1)[bad].reason
    made.act(wrong, '"nothing"')
    assert "reward: got None" in answers(made, 1)[wrong].reason
    made.act(good, '"reward"')  # played again where its process was replaced
    assert answers(made, 1) == {good: Turn(reward=1.0, done=True)}


def test_answer_data_are_the_messages_of_the_prompt():
  words = vocabulary.Vocabulary()
  found = agents.answer_data(words, sources.Problem("a?", "[1]"), rewrites=True)
  messages = [{"role": "user", "content": "a?"}]
  assert json.loads(found) == {"messages": messages, "answer": [1], "rewrites": True}
  with pytest.raises(ValueError, match="texts, not token ids"):
    agents.answer_data(words, sources.Problem("a?", "1", tokens=([3], None)), rewrites=False)
