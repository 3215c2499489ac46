"""Chats with an engine: its own tokens and log-probabilities, told in pieces that add up."""

import contextlib
import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest

from offpolicy_rl.chat_api import responses
from offpolicy_rl.chat_api.requests import ChatRequest, Message, RequestError
from offpolicy_rl.environments import tools
from offpolicy_rl.model import policy
from offpolicy_rl.sampler import chat, engine, sampling, sizing, stopping, streams
from offpolicy_rl.tasks import vocabulary
from tests.model.decoder_test import CONFIG, random_params
from tests.run_system import wait_for

WORDS = vocabulary.Vocabulary()
MODEL = dataclasses.replace(CONFIG, vocab_size=WORDS.size, tied_embeddings=False)
CONTEXT, STEPS, SLOTS = 32, 4, 3
SETTINGS = chat.Settings("tiny", CONTEXT, CONTEXT - STEPS, SLOTS, 1.0, sampling.NONE, None)
PROMPT = "12 + 34"


@functools.cache
def params() -> dict:
  """They say characters, and end now and then."""
  made = random_params(MODEL)
  characters = np.array(WORDS.encode("".join(map(chr, range(32, 127)))))
  unembedding = made["unembedding"].at[0, characters].add(3.0).at[0, WORDS.eos].add(3.15)
  return made | {"embedding": made["embedding"].at[:, 0].add(5.0), "unembedding": unembedding}


def make_engine(streamed: streams.Streams) -> engine.Engine:
  sizes = sizing.Sizes(
    slots=SLOTS,
    group_size=1,
    max_prompt_tokens=CONTEXT - STEPS,
    max_tokens=STEPS,
    page_tokens=8,
    cache_tokens=(SLOTS + 2) * CONTEXT,
    steps=STEPS,
    candidates=5,
    episodes=SLOTS,
  )
  stops = stopping.Stops(WORDS.ends)
  return engine.Engine(MODEL, sizes, stops=stops, seed=0, episodes=streamed)


@contextlib.contextmanager
def running(settings=SETTINGS):
  """(a backend, its engine), while the engine runs."""
  streamed, stop = streams.Streams(STEPS), threading.Event()
  made = make_engine(streamed)
  streamed.warm_up(made, params(), np.array([5], np.int32))
  loop = threading.Thread(target=streamed.run, args=(made, params(), stop))
  loop.start()
  try:
    yield chat.Chat(streamed, WORDS, settings), made
  finally:
    stop.set()
    loop.join()


@pytest.fixture(scope="module")
def backend():
  with running() as (made, _):
    yield made


def request(text=PROMPT, **fields) -> ChatRequest:
  return ChatRequest((Message("user", text),), "tiny", **fields)


def answer(backend, text=PROMPT, **fields) -> list:
  """The choices of a whole answer, with log-probabilities of two tokens."""
  asked = request(text, **dict(top_logprobs=2) | fields)
  return responses.completion(backend.chat("/v1", asked), model="tiny", logprobs=True)["choices"]


def texts(choices) -> list[str]:
  return [choice["message"]["content"] for choice in choices]


def expected_logprobs(text: str, temperature: float) -> np.ndarray:
  """[characters of `text`, V], of a full forward pass behind the prompt."""
  row = np.array([WORDS.encode(PROMPT + text)])
  logits = policy.apply(MODEL, params(), row, np.arange(row.size)[None])[0][0]
  return np.asarray(jax.nn.log_softmax(logits / temperature))[len(PROMPT) - 1 : -1]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_log_probabilities_are_those_of_a_full_forward_pass(backend, temperature):
  [choice] = answer(backend, max_tokens=11, seed=9, temperature=temperature)
  rows, text = choice["logprobs"]["content"], choice["message"]["content"]
  assert "".join(row["token"] for row in rows) == text and text
  expected = expected_logprobs(text, temperature or 1.0)
  for row, log_p in zip(rows, expected, strict=True):
    [token] = WORDS.encode(row["token"])
    likeliest = np.argsort(-log_p)[:2]
    assert abs(row["logprob"] - log_p[token]) < 1e-4
    assert temperature or token == likeliest[0]
    shown = [other["token"] for other in row["top_logprobs"]]
    assert shown == [WORDS.pieces[i] for i in likeliest]
    np.testing.assert_allclose(
      [other["logprob"] for other in row["top_logprobs"]], log_p[likeliest], atol=1e-4
    )


def test_a_seed_decides_whoever_else_is_served(backend):
  """Alone, among more clients than slots, and as one of several choices."""
  alone = {seed: texts(answer(backend, max_tokens=9, seed=seed)) for seed in range(8)}
  assert len({text for [text] in alone.values()}) > 4
  together = {}
  one = lambda seed: together.update({seed: texts(answer(backend, max_tokens=9, seed=seed))})
  clients = [threading.Thread(target=one, args=(seed,)) for seed in alone]
  for client in clients:
    client.start()
  for client in clients:
    client.join()
  assert together == alone
  several = texts(answer(backend, max_tokens=9, seed=3, n=3))
  assert several[:1] == alone[3] and len(set(several)) == 3
  without = {tuple(texts(answer(backend, max_tokens=9))) for _ in range(3)}
  assert len(without) > 1


def test_answers_end_at_the_limit_at_the_end_token_or_at_the_end_of_the_context(backend):
  found = [choice for seed in range(20) for choice in answer(backend, max_tokens=6, seed=seed)]
  reasons = {choice["finish_reason"] for choice in found}
  assert reasons == {"stop", "length"}
  for choice in found:
    length = len(choice["message"]["content"])
    assert length == 6 if choice["finish_reason"] == "length" else length < 6
    assert len(choice["logprobs"]["content"]) == length
  longest = [answer(backend, seed=seed)[0] for seed in range(8)]
  lengths = {len(x["message"]["content"]) for x in longest if x["finish_reason"] == "length"}
  assert lengths == {CONTEXT - len(PROMPT)}


def without_end(backend) -> tuple[int, str]:
  """A seed whose answer is long, and that answer."""
  found = ((seed, texts(answer(backend, seed=seed))[0]) for seed in range(20))
  return next((seed, text) for seed, text in found if len(text) == CONTEXT - len(PROMPT))


@pytest.mark.parametrize(("begin", "end"), [(2, 5), (3, 4), (0, 2), (7, 12)])
def test_a_stop_text_ends_an_answer_and_is_never_told_in_part(backend, begin, end):
  """Across pieces of four tokens, too."""
  seed, text = without_end(backend)
  stop = text[begin:end]
  asked = request(seed=seed, stop=("no such text", stop))
  parts = list(backend.chat("/v1", asked))
  *deltas, used = parts
  told = "".join(delta.content for delta in deltas)
  assert told == text[: text.find(stop)] and deltas[-1].finish_reason == "stop"
  assert used == responses.Usage(len(PROMPT), text.find(stop) + len(stop))
  [whole] = answer(backend, seed=seed, stop=(stop,))
  assert whole["message"]["content"] == told


def test_pieces_come_as_they_are_sampled_and_add_up(backend):
  seed, text = without_end(backend)
  *deltas, used = backend.chat("/v1", request(seed=seed))
  assert [len(delta.content) for delta in deltas[:-1]] == [STEPS] * (len(deltas) - 1)
  assert "".join(delta.content for delta in deltas) == text
  assert used == responses.Usage(len(PROMPT), len(text))


def test_an_answer_that_nobody_waits_for_ends():
  with running() as (backend, made):
    first = backend.chat("/v1", request(n=3, seed=5))
    next(first)
    waiting = backend.chat("/v1", request(n=3, seed=5))
    threading.Thread(target=lambda: next(waiting)).start()
    first.close()
    wait_for(lambda: not waiting.gi_running, 20, "the second one")
    waiting.close()
    wait_for(lambda: made.idle, 20, "an idle engine")
    assert texts(answer(backend, max_tokens=3))


def test_nothing_more_is_sampled_for_nobody():
  """One token, without which there is no completion."""
  streamed = streams.Streams(STEPS)
  made = make_engine(streamed)
  order = streams.Order(np.array([5], np.int32), 2, 20, 1.0, 0, stopping.Stops(()), cancelled=True)
  streamed.submit(order)
  streamed._admit(made)
  while not made.idle:
    streamed._step(made, params())
  assert [len(order.pieces.get_nowait().tokens) for _ in range(2)] == [1, 1]
  assert order.pieces.empty()


def test_at_the_end_whoever_waits_is_told():
  with running() as (backend, _):
    waiting = backend.chat("/v1", request(n=3, seed=5))
    next(waiting)
  for parts in (waiting, backend.chat("/v1", request())):
    with pytest.raises(RequestError, match="ending") as told:
      list(parts)
    assert told.value.status == 503


TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
  ("param", "fields"),
  [
    ("model", dict(model="other")),
    ("n", dict(n=4)),
    ("top_p", dict(top_p=0.9)),
    ("tools", dict(tools=(TOOL,))),
    ("max_tokens", dict(max_tokens=CONTEXT - len(PROMPT) + 1)),
    ("messages", dict(messages=(Message("user", "x" * (CONTEXT - STEPS + 1)),))),
    ("messages", dict(messages=(Message("user", ""),))),
  ],
)
def test_what_this_server_can_not_do_is_refused(backend, param, fields):
  with pytest.raises(RequestError, match=f"^{param}: got .* expected") as refused:
    backend.chat("/v1", request()._replace(**fields))
  assert refused.value.param == param
  assert backend.chat("/v1", request(max_tokens=CONTEXT - len(PROMPT), top_p=1.0))


def test_too_many_requests_are_refused(backend, monkeypatch):
  monkeypatch.setattr(streams.Streams, "waiting", 64)
  with pytest.raises(RequestError, match="waiting") as refused:
    backend.chat("/v1", request())
  assert refused.value.status == 429


class Scripted:
  """Streams that answer with a text, in pieces of one token."""

  waiting = 0

  def __init__(self, text: str):
    self._tokens = WORDS.encode(text)

  def submit(self, order):
    for i, token in enumerate(self._tokens):
      ended = "stop" if i + 1 == len(self._tokens) else ""
      order.pieces.put(streams.Piece(0, [token], np.zeros(1, np.float32), None, ended))


class TakesTools(vocabulary.Vocabulary):
  """As if there were a chat template."""

  def conversation(self, messages, tools=()):
    return super().conversation(messages)


def called(text: str, form="hermes", **fields):
  settings = dataclasses.replace(SETTINGS, form=tools.FORMATS[form])
  made = chat.Chat(Scripted(text), TakesTools(), settings)
  parts = made.chat("/v1", request(**dict(tools=(TOOL,)) | fields))
  return responses.completion(parts, model="tiny", logprobs=False)["choices"][0]


CALLED = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def test_calls_are_told_as_calls():
  found = called("I add. " + CALLED + CALLED)
  assert found["message"]["content"] == "I add." and found["finish_reason"] == "tool_calls"
  functions = [call["function"] for call in found["message"]["tool_calls"]]
  assert functions == [{"name": "add", "arguments": '{"a": 1}'}] * 2
  assert len({call["id"] for call in found["message"]["tool_calls"]}) == 2
  found = called('{"name": "add", "parameters": {"a": 1}}', form="llama3")
  assert found["message"]["content"] is None
  assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize("text", ["no call", "<tool_call>{}</tool_call>", "<tool_call>"])
def test_what_is_no_call_is_text(text):
  found = called(text)
  assert found["message"]["content"] == text and found["finish_reason"] == "stop"
  assert "tool_calls" not in found["message"]
  assert called(CALLED, tools=())["message"]["content"] == CALLED
