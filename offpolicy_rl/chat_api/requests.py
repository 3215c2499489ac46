"""Requests for chat completions: read, checked, refused in OpenAI's form.

Source of the fields: platform.openai.com/docs/api-reference/chat/create. What would change an
answer and isn't done here is refused, as is a field with an unknown name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
_ROLES = {"system": "system", "developer": "system", "user": "user"}
_ROLES |= {"assistant": "assistant", "tool": "tool"}
_SEED_BITS = 64
_WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "prompt_cache_key"}
_WITHOUT_EFFECT |= {"safety_identifier", "prompt_cache_retention"}
# Fields that can have only the value that changes nothing.
_NEUTRAL: dict[str, Any] = {
  "frequency_penalty": 0,
  "presence_penalty": 0,
  "logit_bias": {},
  "response_format": {"type": "text"},
  "tool_choice": "auto",
  "parallel_tool_calls": True,
  "modalities": ["text"],
}
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class RequestError(ValueError):
  """A request that can't be answered; the message names field, value and what was expected."""

  def __init__(self, message: str, *, param: str = "", status: int = 400, code: str = ""):
    super().__init__(message)
    self.param, self.status, self.code = param, status, code


class ToolCall(NamedTuple):
  """A call that the model has written."""

  id: str
  name: str
  arguments: dict[str, Any]


class Message(NamedTuple):
  """One message of a chat."""

  role: str  # system, user, assistant or tool
  content: str
  tool_calls: tuple[ToolCall, ...] = ()  # of an assistant

  def as_template(self) -> dict[str, Any]:
    """The message as chat templates take it."""
    message: dict[str, Any] = {"role": self.role, "content": self.content}
    if self.tool_calls:
      message["tool_calls"] = [
        {"id": x.id, "type": "function", "function": {"name": x.name, "arguments": x.arguments}}
        for x in self.tool_calls
      ]
    return message


class ChatRequest(NamedTuple):
  """A request for chat completions; None = not given."""

  messages: tuple[Message, ...]
  model: str
  tools: tuple[dict[str, Any], ...] = ()  # JSON schemas, as they were given
  n: int = 1
  max_tokens: int | None = None
  temperature: float | None = None
  top_p: float | None = None
  seed: int | None = None
  stop: tuple[str, ...] = ()
  top_logprobs: int | None = None  # None = no log-probabilities at all
  stream: bool = False
  include_usage: bool = False  # in a last chunk of a stream


def parse(body: bytes) -> ChatRequest:
  """Reads the body of a request; RequestError names what is wrong with it."""
  fields = _object(body)
  for name, neutral in _NEUTRAL.items():
    if fields.pop(name, neutral) != neutral:
      raise _refused(name, json.loads(body)[name], f"{json.dumps(neutral)} or nothing")
  read: dict[str, Any] = dict(
    messages=_messages(fields.pop("messages", None)),
    model=_text(fields.pop("model", None), "model"),
    tools=_tools(fields.pop("tools", [])),
    n=_whole(fields.pop("n", 1), "n", 1, 128),
    max_tokens=_max_tokens(fields),
    temperature=_number(fields.pop("temperature", None), "temperature", 0, 2),
    top_p=_number(fields.pop("top_p", None), "top_p", 0, 1),
    seed=_seed(fields.pop("seed", None)),
    stop=_stop(fields.pop("stop", [])),
    top_logprobs=_top_logprobs(fields),
    stream=_flag(fields.pop("stream", False), "stream"),
  )
  options = _expect(fields.pop("stream_options", {}), dict, "stream_options", "an object")
  if options and not read["stream"]:
    raise _refused("stream_options", options, "nothing without stream")
  usage = _flag(options.get("include_usage", False), "stream_options.include_usage")
  for name in fields:
    expected = "a field of chat completions that is supported here"
    raise RequestError(f"{name:.60}: unknown or not supported, expected {expected}", param=name)
  return ChatRequest(**read, include_usage=usage)


def _object(body: bytes) -> dict[str, Any]:
  """The fields besides those that are null or have no effect."""
  try:
    fields = json.loads(body)
  except (ValueError, RecursionError) as error:
    raise RequestError(f"body: no JSON: {error!s:.100}") from None
  if not isinstance(fields, dict):
    raise _refused("body", fields, "a JSON object")
  return {k: v for k, v in fields.items() if v is not None and k not in _WITHOUT_EFFECT}


def _refused(name: str, value: Any, expected: str) -> RequestError:
  return RequestError(f"{name}: got {value!r:.80}, expected {expected}", param=name)


def _expect(value: Any, kind: type, name: str, expected: str) -> Any:
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
    raise _refused(name, value, expected)
  return value


def _text(value: Any, name: str) -> str:
  return _expect(value, str, name, "a text")


def _flag(value: Any, name: str) -> bool:
  return _expect(value, bool, name, "true or false")


def _whole(value: Any, name: str, low: int, high: int) -> int:
  expected = f"a whole number from {low} to {high}"
  if not low <= _expect(value, int, name, expected) <= high:
    raise _refused(name, value, expected)
  return value


def _number(value: Any, name: str, low: float, high: float) -> float | None:
  if value is None:
    return None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not low <= value <= high:  # true for nan, too
    raise _refused(name, value, f"a number from {low:g} to {high:g}")
  return float(value)


def _max_tokens(fields: dict[str, Any]) -> int | None:
  """The limit, of either name; the older one is deprecated."""
  names = [name for name in ("max_completion_tokens", "max_tokens") if name in fields]
  values = [_whole(fields.pop(name), name, 1, 10_000_000) for name in names]
  if len(set(values)) > 1:
    raise _refused("max_tokens", values[1], f"the {values[0]} of max_completion_tokens, or nothing")
  return values[0] if values else None


def _seed(value: Any) -> int | None:
  bound = 1 << (_SEED_BITS - 1)
  return None if value is None else _whole(value, "seed", -bound, bound - 1)


def _stop(value: Any) -> tuple[str, ...]:
  texts = [value] if isinstance(value, str) else value
  good = isinstance(texts, list) and all(isinstance(x, str) and x for x in texts)
  if not good or len(texts) > MAX_STOPS:
    raise _refused("stop", value, f"a text or a list of up to {MAX_STOPS}, none of them empty")
  return tuple(texts)


def _top_logprobs(fields: dict[str, Any]) -> int | None:
  wanted = _flag(fields.pop("logprobs", False), "logprobs")
  number = _whole(fields.pop("top_logprobs", 0), "top_logprobs", 0, MAX_TOP_LOGPROBS)
  if number and not wanted:
    raise _refused("top_logprobs", number, "0 without logprobs")
  return number if wanted else None


def _messages(value: Any) -> tuple[Message, ...]:
  rows = _expect(value, list, "messages", "a list of messages")
  if not rows:
    raise _refused("messages", rows, "at least one message")
  return tuple(_message(row, f"messages[{i}]") for i, row in enumerate(rows))


def _message(row: Any, where: str) -> Message:
  row = _expect(row, dict, where, "an object with role and content")
  role = row.get("role")
  if not isinstance(role, str) or role not in _ROLES:
    raise _refused(f"{where}.role", role, ", ".join(_ROLES))
  calls = row.get("tool_calls") or []
  if calls and role != "assistant":
    raise _refused(f"{where}.tool_calls", calls, f"none with role {role}")
  calls = _expect(calls, list, f"{where}.tool_calls", "a list")
  read = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
  content = row.get("content")
  if content is None and role == "assistant":
    content = ""
  return Message(_ROLES[role], _content(content, f"{where}.content"), tuple(read))


def _content(value: Any, where: str) -> str:
  """A text, or parts of type text."""
  if isinstance(value, str):
    return value
  expected = "a text, or a list of parts of type text"
  texts = []
  for i, part in enumerate(_expect(value, list, where, expected)):
    if not isinstance(part, dict) or part.get("type") != "text":
      raise _refused(f"{where}[{i}]", part, "a part of type text")
    texts.append(_text(part.get("text"), f"{where}[{i}].text"))
  return "".join(texts)


def _tool_call(value: Any, where: str) -> ToolCall:
  call = _expect(value, dict, where, "an object with id, type and function")
  function = _expect(call.get("function"), dict, f"{where}.function", "an object")
  text = _text(function.get("arguments"), f"{where}.function.arguments")
  try:
    arguments = json.loads(text)
  except (ValueError, RecursionError):
    arguments = None
  if not isinstance(arguments, dict):
    raise _refused(f"{where}.function.arguments", text, "a JSON object in a text")
  name = _text(function.get("name"), f"{where}.function.name")
  return ToolCall(_text(call.get("id"), f"{where}.id"), name, arguments)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
  tools = _expect(value, list, "tools", "a list of functions")
  for i, tool in enumerate(tools):
    where = f"tools[{i}]"
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
      raise _refused(where, tool, 'an object of type "function"')
    function = _expect(tool.get("function"), dict, f"{where}.function", "an object")
    name = _text(function.get("name"), f"{where}.function.name")
    if not _NAME.fullmatch(name):
      raise _refused(f"{where}.function.name", name, "up to 64 letters, digits, _ and -")
    _expect(function.get("parameters", {}), dict, f"{where}.function.parameters", "an object")
  return tuple(tools)
