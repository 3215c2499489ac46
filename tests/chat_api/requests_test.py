"""Requests: what is read, and what is refused by name."""

import json

import pytest

from offpolicy_rl.chat_api import requests, responses
from offpolicy_rl.chat_api.requests import ChatRequest, Message, RequestError, ToolCall

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def parse(**fields) -> ChatRequest:
  return requests.parse(json.dumps({"model": "m", "messages": [USER]} | fields).encode())


def test_a_short_request():
  assert parse() == ChatRequest((Message("user", "hi"),), "m")


def test_all_that_can_be_asked_for():
  messages = [
    {
      "role": "developer",
      "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "!"}],
    },
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
  ]
  found = parse(
    messages=messages,
    tools=[TOOL],
    n=2,
    max_completion_tokens=7,
    temperature=0,
    top_p=1,
    seed=-3,
    stop="x",
    logprobs=True,
    top_logprobs=20,
    stream=True,
    stream_options={"include_usage": True},
    user="me",
    tool_choice="auto",
    frequency_penalty=0.0,
    response_format=None,
  )
  assert found.messages[0] == Message("system", "be!")
  assert found.messages[2] == Message("assistant", "", (ToolCall("c1", "add", {"a": 1}),))
  assert found.messages[3] == Message("tool", "3")
  assert found == ChatRequest(
    found.messages, "m", (TOOL,), 2, 7, 0.0, 1.0, -3, ("x",), 20, True, True
  )
  called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
  assert found.messages[2].as_template()["tool_calls"] == [called]
  assert parse(logprobs=True).top_logprobs == 0
  assert parse(max_tokens=7).max_tokens == 7


@pytest.mark.parametrize(
  ("fields", "param"),
  [
    (dict(model=None), "model"),
    (dict(messages=[]), "messages"),
    (dict(messages="hi"), "messages"),
    (dict(messages=[3]), "messages[0]"),
    (dict(messages=[USER, {"role": "bot", "content": ""}]), "messages[1].role"),
    (dict(messages=[{"role": ["user"], "content": ""}]), "messages[0].role"),
    (dict(messages=[{"role": "user"}]), "messages[0].content"),
    (
      dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
      "messages[0].content[0]",
    ),
    (dict(messages=[USER | {"tool_calls": [CALL]}]), "messages[0].tool_calls"),
    (
      dict(messages=[{"role": "assistant", "tool_calls": [CALL | {"id": 3}]}]),
      "messages[0].tool_calls[0].id",
    ),
    (
      dict(
        messages=[
          {
            "role": "assistant",
            "tool_calls": [CALL | {"function": {"name": "f", "arguments": "["}}],
          }
        ]
      ),
      "messages[0].tool_calls[0].function.arguments",
    ),
    (dict(tools=[{"type": "web_search"}]), "tools[0]"),
    (dict(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
    (dict(n=0), "n"),
    (dict(n=True), "n"),
    (dict(max_tokens=0), "max_tokens"),
    (dict(max_tokens=3, max_completion_tokens=4), "max_tokens"),
    (dict(temperature=2.1), "temperature"),
    (dict(temperature="1"), "temperature"),
    (dict(temperature=10**400), "temperature"),
    (dict(temperature=float("nan")), "temperature"),
    (dict(top_p=-1), "top_p"),
    (dict(seed=1 << 63), "seed"),
    (dict(stop=["a"] * 5), "stop"),
    (dict(stop=[""]), "stop"),
    (dict(logprobs=1), "logprobs"),
    (dict(top_logprobs=2), "top_logprobs"),
    (dict(logprobs=True, top_logprobs=21), "top_logprobs"),
    (dict(stream_options={"include_usage": True}), "stream_options"),
    (dict(frequency_penalty=0.5), "frequency_penalty"),
    (dict(logit_bias={"3": 1}), "logit_bias"),
    (dict(response_format={"type": "json_object"}), "response_format"),
    (dict(tool_choice="required"), "tool_choice"),
    (dict(functions=[]), "functions"),
    (dict(best_of=3), "best_of"),
  ],
)
def test_what_can_not_be_answered_is_refused_by_name(fields, param):
  with pytest.raises(RequestError) as refused:
    parse(**fields)
  error = responses.error(refused.value)["error"]
  assert error["param"] == param and error["message"].startswith(param)
  assert error["type"] == "invalid_request_error" and "expected" in error["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{'a': 1}"])
def test_bodies_that_are_no_object(body):
  with pytest.raises(RequestError, match="^body: "):
    requests.parse(body)


PARTS = [
  responses.Delta(1, "b"),
  responses.Delta(0, "a", (), (responses.TokenLogprob("a", -0.5, (("b", -1.0),)),)),
  responses.Delta(1, "c", (), (), "length"),
  responses.Delta(0, "", (ToolCall("c1", "add", {"a": "ä"}),), (), "tool_calls"),
  responses.Usage(3, 4),
]


def test_a_whole_answer():
  found = responses.completion(PARTS, model="m", logprobs=True)
  first, second = found["choices"]
  assert first["message"]["content"] == "a" and first["finish_reason"] == "tool_calls"
  assert first["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": "ä"}'}
  [token] = first["logprobs"]["content"]
  assert (token["token"], token["logprob"], token["bytes"]) == ("a", -0.5, [97])
  assert token["top_logprobs"] == [{"token": "b", "logprob": -1.0, "bytes": [98]}]
  assert second["message"]["content"] == "bc" and "tool_calls" not in second["message"]
  assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
  assert responses.completion(PARTS, model="m", logprobs=False)["choices"][0]["logprobs"] is None
  only_calls = [PARTS[3]]
  whole = responses.completion(only_calls, model="m", logprobs=False)
  assert whole["choices"][0]["message"]["content"] is None


def test_chunks_hold_the_same():
  rows = list(responses.chunks(PARTS, model="m", logprobs=True, usage=True))
  assert len({row["id"] for row in rows}) == 1
  assert rows[-1]["choices"] == [] and rows[-1]["usage"]["total_tokens"] == 7
  pieces = [piece for row in rows for piece in row["choices"]]
  for index, text, reason in ((0, "a", "tool_calls"), (1, "bc", "length")):
    of = [piece for piece in pieces if piece["index"] == index]
    assert of[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(piece["delta"].get("content", "") for piece in of) == text
    assert [p["finish_reason"] for p in of] == [None] * (len(of) - 1) + [reason]
  [calls] = [p["delta"]["tool_calls"] for p in pieces if "tool_calls" in p["delta"]]
  assert calls[0]["index"] == 0 and calls[0]["id"] == "c1"
  rows = list(responses.chunks(PARTS, model="m", logprobs=False, usage=False))
  assert all(row["choices"] and "usage" not in row for row in rows)
  assert {piece["logprobs"] for row in rows for piece in row["choices"]} == {None}
