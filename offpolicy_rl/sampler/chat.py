"""Answers chat requests with an engine: prompts from messages, texts and tool calls from tokens."""

import dataclasses
import hashlib
import secrets
from collections.abc import Generator
from typing import Any

import numpy as np

from offpolicy_rl.chat_api import requests, responses
from offpolicy_rl.chat_api.requests import ChatRequest, RequestError
from offpolicy_rl.environments import calls, tools
from offpolicy_rl.sampler import sampling, stopping, streams
from offpolicy_rl.tasks import stop_texts, tokenizer, vocabulary
from offpolicy_rl.tasks.special_tokens import TokenizerError

Words = vocabulary.Vocabulary | tokenizer.Tokenizer
BASE = "/v1"
_MAX_WAITING = 64  # requests
_CHARACTER = 4  # tokens of a character, at most
_UNFINISHED = "\ufffd"  # decoded from a part of a character


@dataclasses.dataclass(frozen=True)
class Settings:
  """Properties of the model and its engine that requests are checked against."""

  name: str
  context: int  # tokens of prompt and answer
  longest_prompt: int  # tokens
  slots: int
  temperature: float  # of requests without one
  truncation: sampling.Truncation  # of all requests
  form: tools.Format | None  # of calls; None = no tools can be offered


class Chat:
  """The backend of a chat server (chat_api/server.py)."""

  def __init__(self, streamed: streams.Streams, words: Words, settings: Settings):
    """`streamed`: of the engine."""
    self._streams, self._words, self._settings = streamed, words, settings

  def models(self, base: str) -> list[str]:
    """The one model, under the path /v1."""
    if base != BASE:
      raise RequestError(f"path: got {base:.60}, expected {BASE}", status=404)
    return [self._settings.name]

  def chat(self, base: str, request: ChatRequest) -> Generator[responses.Part]:
    """Begins an answer; RequestError says why it can't be given."""
    self._check(base, request)
    prompt = self._prompt(request)
    room = self._settings.context - prompt.size
    if request.max_tokens is not None and request.max_tokens > room:
      raise RequestError(
        f"max_tokens: got {request.max_tokens}, expected at most {room}: the prompt has "
        f"{prompt.size} tokens, prompt and answer may have {self._settings.context} together; "
        "--context of the server",
        param="max_tokens",
        code="context_length_exceeded",
      )
    words, texts = self._words, (*self._words.stop_texts, *request.stop)
    given = request.temperature
    order = streams.Order(
      prompt=prompt,
      number=request.n,
      max_tokens=request.max_tokens or room,
      temperature=self._settings.temperature if given is None else given,
      seed=_seed(request.seed),
      stops=stopping.Stops(words.ends, texts, words.decode_all, words.decode_special),
    )
    return self._parts(order, request)

  def _check(self, base: str, request: ChatRequest) -> None:
    settings = self._settings
    if request.model not in self.models(base):
      raise RequestError(
        f"model: got {request.model!r:.80}, expected {settings.name!r}",
        param="model",
        status=404,
        code="model_not_found",
      )
    if request.n > settings.slots:
      expected = f"at most {settings.slots}, the server's --slots"
      raise RequestError(f"n: got {request.n}, expected {expected}", param="n")
    if request.top_p not in (None, settings.truncation.top_p):
      raise RequestError(
        f"top_p: got {request.top_p:g}, expected {settings.truncation.top_p:g} or nothing: it is "
        "sampler.top_p of the server, the same for all",
        param="top_p",
      )
    if request.tools and settings.form is None:
      known = ", ".join(tools.FORMATS)
      expected = f"none: the chat template asks for calls in no format that is known here: {known}"
      raise RequestError(f"tools: got {len(request.tools)}, expected {expected}", param="tools")
    if self._streams.waiting >= _MAX_WAITING:
      raise RequestError(f"{_MAX_WAITING} requests are waiting, try again later", status=429)

  def _prompt(self, request: ChatRequest) -> np.ndarray:
    messages = [message.as_template() for message in request.messages]
    try:
      ids = self._words.conversation(messages, request.tools)
    except TokenizerError as error:
      raise RequestError(str(error), param="messages") from None
    longest = self._settings.longest_prompt
    if not 0 < len(ids) <= longest:
      raise RequestError(
        f"messages: got {len(ids)} tokens, expected 1 to {longest}; --context of the server",
        param="messages",
        code="context_length_exceeded",
      )
    return np.array(ids, np.int32)

  def _parts(self, order: streams.Order, request: ChatRequest) -> Generator[responses.Part]:
    form = self._settings.form if request.tools else None
    choices = [_Choice(self._words, order, i, form) for i in range(request.n)]
    self._streams.submit(order)
    try:
      going = request.n
      while going:
        piece = order.pieces.get()
        if piece is None:
          raise RequestError("the server is ending", status=503)
        going -= bool(piece.ended)
        yield choices[piece.index].add(piece, request.top_logprobs)
      used = sum(len(choice.tokens) for choice in choices)
      yield responses.Usage(order.prompt.size, used)
    finally:
      order.cancelled = True


def _seed(given: int | None) -> int:
  """The number from which keys are made, 32 bits."""
  if given is None:
    return secrets.randbits(32)
  return int.from_bytes(hashlib.sha256(str(given).encode()).digest()[:4], "big")


class _Choice:
  """The text of a completion, as far as it is certain."""

  def __init__(self, words: Words, order: streams.Order, index: int, form: tools.Format | None):
    self._words, self._order, self._index, self._form = words, order, index, form
    self.tokens: list[int] = []
    self._told = 0  # characters

  def add(self, piece: streams.Piece, top: int | None) -> responses.Delta:
    """The text that a piece adds; with tools all of it at the end."""
    shown = () if top is None else self._logprobs(piece, top)
    self.tokens += piece.tokens
    if self._form is not None and not piece.ended:
      return responses.Delta(self._index, logprobs=shown)
    text = self._text(bool(piece.ended))
    if self._form is None:
      content, self._told = text[self._told :], max(self._told, len(text))
      return responses.Delta(self._index, content, (), shown, piece.ended)
    content, written = calls.separated(text, self._form)
    named = tuple(requests.ToolCall(f"call_{secrets.token_hex(12)}", *call) for call in written)
    reason = "tool_calls" if named else piece.ended
    return responses.Delta(self._index, content, named, shown, reason)

  def _text(self, ended: bool) -> str:
    """The text so far, without what later tokens may change or take back."""
    words, stops = self._words, self._order.stops
    tokens = self.tokens[: -1 if self.tokens[-1] in stops.tokens else None]
    text = stop_texts.before(tokens, stops.texts, words.decode_all, words.decode_special)
    if ended:
      return text
    text = text.rstrip(_UNFINISHED)
    open_end = max((_overlap(text, stop) for stop in stops.texts), default=0)
    return text[: len(text) - open_end]

  def _logprobs(self, piece: streams.Piece, top: int) -> tuple[responses.TokenLogprob, ...]:
    """Those of a piece, but for the token that ends the completion."""
    before = self.tokens[-_CHARACTER:]
    kept = [token for token in piece.tokens if token not in self._order.stops.tokens]
    texts = self._words.token_texts([*before, *kept])[len(before) :]
    found = []
    for i, text in enumerate(texts):
      others = self._candidates(piece, i, [*before, *kept][: len(before) + i][-1:], top)
      logprob = float(piece.logprobs[i])
      if self._order.temperature == 0 and piece.candidates is not None:
        logprob = float(piece.candidates.logprobs[i, 0])  # greedy: the likeliest
      found.append(responses.TokenLogprob(text, logprob, others))
    return tuple(found)

  def _candidates(self, piece: streams.Piece, i: int, before: list[int], top: int) -> Any:
    if not top or piece.candidates is None:
      return ()
    ids, logprobs = piece.candidates.tokens[i, :top], piece.candidates.logprobs[i, :top]
    texts = [self._words.token_texts([*before, token])[-1] for token in ids.tolist()]
    return tuple(zip(texts, map(float, logprobs), strict=True))


def _overlap(text: str, stop: str) -> int:
  """Length of the longest end of a text that a stop text begins with."""
  lengths = range(min(len(text), len(stop) - 1), 0, -1)
  return next((n for n in lengths if text.endswith(stop[:n])), 0)
