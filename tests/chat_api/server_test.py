"""The HTTP server: routes, keys, limits, streams, clients that go."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from offpolicy_rl.chat_api import responses, server
from offpolicy_rl.chat_api.requests import RequestError, ToolCall

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ENDING = "the server is ending"


class Echo:
  """Says the last message, a letter at a time; "wait" never ends."""

  def __init__(self):
    self.closed = threading.Event()

  def models(self, base):
    if base != "/here/v1":
      raise RequestError(f"path: got {base}", status=404)
    return ["m"]

  def chat(self, base, request):
    self.models(base)
    if request.messages[-1].content == "break":
      raise KeyError("broken")
    return self._parts(request.messages[-1].content)

  def _parts(self, text):
    try:
      while text == "wait":
        time.sleep(0.01)
        yield responses.Delta(0, ".")
      if text in ("late", "torn"):
        yield responses.Delta(0, "a")
        raise KeyError("torn") if text == "torn" else RequestError(ENDING, status=503)
      if text == "call":
        yield responses.Delta(0, tool_calls=(ToolCall("1", "f", {"x": "\ud83d"}),))
      for letter in text:
        yield responses.Delta(0, letter)
      yield responses.Delta(0, finish_reason="stop")
      yield responses.Usage(1, len(text))
    finally:
      self.closed.set()


@pytest.fixture
def echo():
  return Echo()


@pytest.fixture
def address(echo):
  with server.serving(echo) as url:
    yield urlsplit(url).netloc


def ask(connection, body=BODY, path="/here/v1/chat/completions", **headers):
  """(status, text) of a POST."""
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  given = {"Content-Type": "application/json"} | {
    k.replace("_", "-"): v for k, v in headers.items()
  }
  connection.request("POST", path, data, given)
  answer = connection.getresponse()
  return answer.status, answer.read().decode()


def saying(text: str, **more) -> dict:
  return BODY | {"messages": [{"role": "user", "content": text}]} | more


def test_answers_one_after_the_other_on_one_connection(address):
  connection = http.client.HTTPConnection(address)
  for text in ("first", "ä\n"):
    status, body = ask(connection, saying(text))
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == text
  connection.request("GET", "/here/v1/models")
  assert json.loads(connection.getresponse().read())["data"][0]["id"] == "m"


def test_a_stream_of_events(address):
  connection = http.client.HTTPConnection(address)
  asked = saying("ä b", stream=True, stream_options={"include_usage": True})
  status, body = ask(connection, asked)
  assert status == 200 and body.endswith("data: [DONE]\n\n")
  rows = [json.loads(x.removeprefix("data: ")) for x in body.split("\n\n")[:-2]]
  told = [piece["delta"].get("content", "") for row in rows for piece in row["choices"]]
  assert "".join(told) == "ä b" and rows[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
  ("text", "said", "status"), [("late", ENDING, 503), ("torn", "KeyError: 'torn'", 500)]
)
def test_what_goes_wrong_within_a_stream_is_its_last_event(address, text, said, status):
  connection = http.client.HTTPConnection(address)
  _, body = ask(connection, saying(text, stream=True))
  *_, error, end, _ = body.split("\n\n")
  assert said in json.loads(error.removeprefix("data: "))["error"]["message"]
  assert end == "data: [DONE]"
  assert ask(connection, saying(text))[0] == status


@pytest.mark.parametrize("stream", [True, False])
def test_arguments_of_calls_may_be_any_that_json_can_write(address, stream):
  """Half of a surrogate pair: UTF-8 has none, but a policy may write its escape."""
  connection = http.client.HTTPConnection(address)
  status, body = ask(connection, saying("call", stream=stream))
  assert status == 200 and r"\ud83d" in body and "error" not in body


def test_names_of_fields_may_be_any_that_json_can_write(address):
  status, body = ask(http.client.HTTPConnection(address), BODY | {"\ud83d": 1})
  assert status == 400 and "unknown or not supported" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
  ("status", "asked"),
  [
    (400, dict(body=b"{")),
    (400, dict(Content_Type="text/plain")),
    (400, dict(body=saying("x", n="2"))),
    (404, dict(path="/v1/chat/completions")),
    (404, dict(path="/here/v1/completions")),
    (404, dict(path="/here/v1/models")),
    (404, dict(path="/")),
    (500, dict(body=saying("break"))),
  ],
)
def test_refusals_leave_the_connection_as_it_was(address, status, asked):
  connection = http.client.HTTPConnection(address)
  found, body = ask(connection, **asked)
  assert found == status and json.loads(body)["error"]["message"]
  assert ask(connection)[0] == 200


def test_bodies_that_are_too_long_or_of_unknown_length_are_not_read(address):
  for length, status in ((str(server.MAX_BODY + 1), 413), ("-1", 400), ("x", 400)):
    connection = http.client.HTTPConnection(address)
    connection.putrequest("POST", "/here/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == status and json.loads(answer.read())["error"]["message"]


def test_a_key_is_asked_for(echo):
  with server.serving(echo, key="secret") as url:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    for given in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
      status, body = ask(connection, **given)
      assert status == 401 and json.loads(body)["error"]["type"] == "authentication_error"
    assert ask(connection, Authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_ends_when_its_client_goes(address, echo, stream):
  host, port = address.split(":")
  with socket.create_connection((host, int(port))) as client:
    data = json.dumps(saying("wait", stream=stream)).encode()
    head = "POST /here/v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    assert not echo.closed.wait(0.1)
  assert echo.closed.wait(10)


def test_many_open_files_are_no_problem(address):
  with contextlib.ExitStack() as stack:
    while stack.enter_context(open(os.devnull, "rb")).fileno() < 1100:
      pass
    assert ask(http.client.HTTPConnection(address), saying("here"))[0] == 200


def test_an_address_that_is_taken_is_an_error(address):
  port = int(address.split(":")[1])
  with pytest.raises(OSError), server.serving(Echo(), port=port):
    pass
