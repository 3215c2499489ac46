"""Responses: what a model says, as the JSON of chat completions, whole or in chunks."""

import collections
import json
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from offpolicy_rl.chat_api.requests import RequestError, ToolCall

_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class TokenLogprob(NamedTuple):
  """A token that was sampled."""

  text: str
  logprob: float
  top: tuple[tuple[str, float], ...] = ()  # the likeliest in its place, likeliest first


class Delta(NamedTuple):
  """The next part of one choice."""

  index: int  # of the choice
  content: str = ""
  tool_calls: tuple[ToolCall, ...] = ()  # all at once
  logprobs: tuple[TokenLogprob, ...] = ()
  finish_reason: str = ""  # stop, length or tool_calls; "" = it goes on


class Usage(NamedTuple):
  """Numbers of tokens."""

  prompt: int
  completion: int  # of all choices


Part = Delta | Usage  # an answer: deltas of all choices, then its usage if it is known


def completion(parts: Iterable[Part], *, model: str, logprobs: bool) -> dict[str, Any]:
  """The whole answer; `logprobs`: whether they were asked for."""
  choices, used = collections.defaultdict(list), None
  for part in parts:
    if isinstance(part, Usage):
      used = part
    else:
      choices[part.index].append(part)
  return _head("chat.completion", model) | {
    "choices": [_choice(choices[i], logprobs) for i in sorted(choices)],
    "usage": None if used is None else _usage(used),
  }


def _choice(deltas: list[Delta], logprobs: bool) -> dict[str, Any]:
  calls = [call for delta in deltas for call in delta.tool_calls]
  content = "".join(delta.content for delta in deltas)
  message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
  message["refusal"] = None
  if calls:
    message["tool_calls"] = list(map(_call, calls))
  return {
    "index": deltas[0].index,
    "message": message,
    "logprobs": _logprobs([x for delta in deltas for x in delta.logprobs]) if logprobs else None,
    "finish_reason": deltas[-1].finish_reason,
  }


def chunks(
  parts: Iterable[Part], *, model: str, logprobs: bool, usage: bool
) -> Iterator[dict[str, Any]]:
  """The answer in parts, as they come; `usage`: with a last chunk that has it."""
  head = _head("chat.completion.chunk", model) | ({"usage": None} if usage else {})
  begun = set()
  for part in parts:
    if isinstance(part, Usage):
      if usage:
        yield head | {"choices": [], "usage": _usage(part)}
      continue
    if part.index not in begun:
      begun.add(part.index)
      yield head | {"choices": [_piece(part.index, {"role": "assistant", "content": ""})]}
    delta: dict[str, Any] = {"content": part.content} if part.content else {}
    if part.tool_calls:
      delta["tool_calls"] = [{"index": i} | _call(call) for i, call in enumerate(part.tool_calls)]
    shown = _logprobs(part.logprobs) if logprobs and part.logprobs else None
    if delta or shown:
      yield head | {"choices": [_piece(part.index, delta, shown)]}
    if part.finish_reason:
      yield head | {"choices": [_piece(part.index, {}, reason=part.finish_reason)]}


def _piece(index: int, delta: dict, logprobs: dict | None = None, reason: str | None = None):
  return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _head(kind: str, model: str) -> dict[str, Any]:
  name = f"chatcmpl-{secrets.token_hex(12)}"
  return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _usage(used: Usage) -> dict[str, int]:
  return {
    "prompt_tokens": used.prompt,
    "completion_tokens": used.completion,
    "total_tokens": used.prompt + used.completion,
  }


def _call(call: ToolCall) -> dict[str, Any]:
  function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
  return {"id": call.id, "type": "function", "function": function}


def _logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
  entry = lambda text, p: {"token": text, "logprob": p, "bytes": list(text.encode())}
  content = [
    entry(x.text, x.logprob) | {"top_logprobs": [entry(*other) for other in x.top]} for x in tokens
  ]
  return {"content": content, "refusal": None}


def error(problem: RequestError) -> dict[str, Any]:
  """The body of a refusal."""
  kind = _KINDS.get(problem.status, "server_error")
  return {
    "error": {
      "message": str(problem),
      "type": "invalid_request_error" if problem.status in (400, 404, 413) else kind,
      "param": problem.param or None,
      "code": problem.code or None,
    }
  }


def models(names: Iterable[str]) -> dict[str, Any]:
  """The list of models."""
  rows = [{"id": x, "object": "model", "created": 0, "owned_by": "offpolicy-rl"} for x in names]
  return {"object": "list", "data": rows}
