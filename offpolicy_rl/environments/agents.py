"""Agents that own their loop: any program that talks to a model as OpenAI's clients do.

    from offpolicy_rl.environments import agents

    @agents.agent
    def solve(base_url: str, problem: agents.Problem, seed: int) -> float:
      client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=None)
      messages = list(problem.messages)
      answer = client.chat.completions.create(model="policy", messages=messages)
      ...
      return reward

It becomes an environment, which environment.name names as "module:solve". A request is the policy's
turn; the messages of the next request behind the answer are what the environment says. With
environment.history = rewrite, a request may also say something else behind the prompt.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from types import FunctionType
from typing import Any, NamedTuple, Protocol

from offpolicy_rl.chat_api import responses, server
from offpolicy_rl.chat_api.requests import ChatRequest, Message, RequestError, ToolCall
from offpolicy_rl.environments import calls, environment, tools
from offpolicy_rl.environments.environment import Sampled, Turn
from offpolicy_rl.tasks import sources

_OVER = "the episode is over"
# Fields of a request that say how to sample, as agents name them, -> as they are read.
_SAMPLING = {name: name for name in ("temperature", "top_p", "seed", "max_tokens", "stop")}
_SAMPLING |= {"max_completion_tokens": "max_tokens"}


class Problem(NamedTuple):
  """The problem of an episode."""

  messages: tuple[dict[str, str], ...]  # the prompt: what the first request has to say
  answer: Any  # answer data of the task's problem


class Opens(Protocol):
  """The vocabulary, as far as prompts of agents need it."""

  def opening(self, question: str, messages: Sequence[dict], /) -> list[dict]:
    """The messages that a question's prompt renders."""
    ...


def agent(
  harness: FunctionType | None = None,
  *,
  form: str = "hermes",
  offers: Sequence[FunctionType] = (),
  ignores: Sequence[str] = (),
) -> Any:
  """Makes an environment of a function (base_url, problem, seed) -> reward; also a decorator.

  Args:
    harness: called once per episode, in a thread of a worker process; may be a coroutine function.
    form: of tool calls, one of `tools.FORMATS`.
    offers: functions whose schemas (`tools.describe`) the requests offer as tools, for the prompt.
    ignores: fields of requests that say how to sample, e.g. temperature, and have no effect. Others
      are refused, as the run decides; max_tokens and max_completion_tokens are one.

  Raises:
    ValueError: there is no such form, or a field says something else.
  """
  if harness is None:
    return functools.partial(agent, form=form, offers=offers, ignores=ignores)
  if form not in tools.FORMATS:
    raise ValueError(f"form: got {form!r}, expected one of {', '.join(tools.FORMATS)}")
  for name in ignores:
    if name not in _SAMPLING:
      raise ValueError(f"ignores: got {name!r:.60}, expected some of {', '.join(_SAMPLING)}")
  named: dict[str, Any] = dict(
    harness=staticmethod(harness), form=tools.FORMATS[form], tools=tuple(offers)
  )
  named |= dict(ignores=frozenset(_SAMPLING[name] for name in ignores))
  named |= dict(__doc__=harness.__doc__, __module__=harness.__module__)
  return environment.environment(type(harness.__name__, (_Agent,), named))


def is_agent(made_by: Any) -> bool:
  """Whether an environment is an agent, whose answer data are those of `answer_data`."""
  return isinstance(made_by, type) and issubclass(made_by, _Agent)


def answer_data(words: Opens, problem: sources.Problem, *, rewrites: bool) -> str:
  """The answer data of a ticket for an agent, JSON; ValueError if a problem has no text.

  `rewrites`: its requests may change what was said behind the prompt.
  """
  if problem.tokens is not None:
    raise ValueError("environment.name: an agent needs prompts that are texts, not token ids")
  messages = words.opening(problem.question, problem.messages)
  answer = json.loads(problem.answer)
  return json.dumps({"messages": messages, "answer": answer, "rewrites": rewrites})


class _Agent:
  """An episode whose harness runs in a thread and asks for the policy's turns."""

  harness: Callable[[str, Problem, int], Any]
  form: tools.Format
  tools: Sequence[FunctionType]
  ignores: frozenset[str]  # fields of requests

  def reset(self, problem: str, seed: int) -> Turn:
    """Starts the harness; its first request begins the episode."""
    data = json.loads(problem)
    given = Problem(tuple(data["messages"]), data["answer"])
    self._said: queue.SimpleQueue = queue.SimpleQueue()  # Turn | Exception, of the harness
    self._actions: queue.SimpleQueue = queue.SimpleQueue()  # (text, Sampled | None) | None = over
    self._asking, self._over = threading.Lock(), False
    self._rewrites: bool = data["rewrites"]
    self._prompt: tuple[Message, ...] = ()  # the first request's messages
    self._history: tuple[Message, ...] = ()  # the last request's, and its answer
    self._answers: list[Message] = []
    self._tools: tuple[dict, ...] = ()
    self._name = secrets.token_hex(8)
    url = _door().enter(self._name, self)
    threading.Thread(target=self._play, args=(url, given, seed), daemon=True).start()
    return self._next()

  def step(self, action: str, sampled: Sampled | None = None) -> Turn:
    """Gives the policy's turn to the harness; its next request answers."""
    self._actions.put((action, sampled))
    return self._next()

  def close(self) -> None:
    """Ends the episode; a harness that still asks is refused."""
    self._over = True
    _door().leave(self._name)
    self._actions.put(None)

  def _next(self) -> Turn:
    said = self._said.get()
    if isinstance(said, BaseException):
      raise said
    return said

  def _play(self, url: str, problem: Problem, seed: int) -> None:
    try:
      result: Any = self.harness(url, problem, seed)
      reward = asyncio.run(result) if inspect.iscoroutine(result) else result
      self._said.put(Turn(reward=reward, done=True))
    except BaseException as error:
      self._said.put(error)

  def ask(self, request: ChatRequest) -> list[responses.Part]:
    """Answers a request of the harness: waits for the policy's turn."""
    _check_fields(request, self.ignores)
    if not self._asking.acquire(blocking=False):
      raise RequestError("another request of this episode is waiting, expected one at a time")
    try:
      turn = self._next_turn(request) if self._prompt else self._opening(request)
      if self._over:
        raise RequestError(_OVER, code="episode_over")
      self._said.put(turn)
      action = self._actions.get()
      if action is None:
        raise RequestError(f"{_OVER}: a limit was reached", code="episode_over")
      return self._answer(request, *action)
    finally:
      self._asking.release()

  def _opening(self, request: ChatRequest) -> Turn:
    self._prompt, self._tools = request.messages, request.tools
    messages = [message.as_template() for message in request.messages]
    opening = json.dumps({"messages": messages, "tools": request.tools})
    return Turn(opening=opening, logprobs=request.top_logprobs is not None)

  def _next_turn(self, request: ChatRequest) -> Turn:
    """The messages behind the policy's last answer, or all behind the prompt if others changed.

    RequestError if that is not allowed, or the prompt has changed.
    """
    if request.tools != self._tools:
      raise RequestError("tools: expected the same as in the request before", param="tools")
    given, size = request.messages, len(self._history)
    problem = _why_not_after(self._history, given) or _why_not_one_role(given[size:])
    if not problem:
      return self._continuation(request)
    if not self._rewrites:
      raise RequestError(
        f"{problem}: a request goes on where the one before ended, unless environment.history = "
        "rewrite",
        param="messages",
      )
    problem = _why_not_after(self._prompt, given)
    if problem:
      raise RequestError(f"{problem}: every request begins with the prompt", param="messages")
    return self._rewritten(request)

  def _continuation(self, request: ChatRequest) -> Turn:
    new = self._as_template(request.messages[len(self._history) :])
    first, *more = [message["content"] for message in new]
    logprobs = request.top_logprobs is not None
    return Turn(first, role=new[0]["role"], more=tuple(more), logprobs=logprobs)

  def _rewritten(self, request: ChatRequest) -> Turn:
    """All that is behind the prompt; turns of the policy are numbers where they are in order."""
    said: list[dict[str, Any] | int] = []
    after = 0  # turns of the policy that are no longer looked for
    behind = request.messages[len(self._prompt) :]
    for of_tools, part in itertools.groupby(behind, lambda message: message.role == "tool"):
      if of_tools:
        said += self._as_template(part)
        continue
      for message in part:
        turns = (i for i in range(after, len(self._answers)) if _same(message, self._answers[i]))
        turn = next(turns, None)
        said.append(message.as_template() if turn is None else turn)
        after = after if turn is None else turn + 1
    return Turn(history=json.dumps(said), logprobs=request.top_logprobs is not None)

  def _as_template(self, messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages of one role as the chat template takes them, results in the form of the model."""
    messages = list(messages)
    if messages[0].role != "tool":
      return [message.as_template() for message in messages]
    texts = self.form.told([message.content for message in messages])
    return [{"role": self.form.role, "content": text} for text in texts]

  def _answer(
    self, request: ChatRequest, action: str, sampled: Sampled | None
  ) -> list[responses.Part]:
    content, written = calls.separated(action, self.form) if request.tools else (action, [])
    turn = len(self._answers) + 1
    named = tuple(ToolCall(f"call_{turn}_{i}", *call) for i, call in enumerate(written, start=1))
    self._answers.append(Message("assistant", content, named))
    self._history = (*request.messages, self._answers[-1])
    if sampled is None:
      return [responses.Delta(0, content, named, finish_reason="tool_calls" if named else "stop")]
    reason = "length" if sampled.cut else "tool_calls" if named else "stop"
    shown = tuple(responses.TokenLogprob(*token) for token in sampled.logprobs)
    usage = responses.Usage(sampled.context, sampled.tokens)
    return [responses.Delta(0, content, named, shown, reason), usage]


def _why_not_after(before: Sequence[Message], given: Sequence[Message]) -> str:
  """Says which message is not as before; "" = all are."""
  for i, expected in enumerate(before):
    got = given[i] if i < len(given) else None
    if got is None or not _same(got, expected):
      return f"messages[{i}]: got {got or 'nothing'!s:.200}, expected {expected!s:.200} as before"
  return ""


def _why_not_one_role(new: Sequence[Message]) -> str:
  """Says what is wrong with messages behind an answer of the policy; "" = nothing."""
  roles = {message.role for message in new}
  if len(roles) == 1 and roles <= {"user", "tool"}:
    return ""
  got = ", ".join(sorted(roles)) or "nothing"
  expected = "messages of one role, user or tool"
  return f"messages: got {got} behind the policy's answer, expected {expected}"


def _same(given: Message, expected: Message) -> bool:
  """Whether two messages say the same; clients trim texts."""
  return given._replace(content=given.content.strip()) == expected._replace(
    content=expected.content.strip()
  )


def _check_fields(request: ChatRequest, ignored: Collection[str]) -> None:
  """RequestError for what the run decides, and its sampler records."""
  if request.top_logprobs:
    raise RequestError(
      f"top_logprobs: got {request.top_logprobs}, expected 0: none are known but of sampled tokens",
      param="top_logprobs",
    )
  fields = dict(temperature=None, top_p=None, seed=None, max_tokens=None)
  for name, expected in (fields | dict(stop=(), n=1)).items():
    got = getattr(request, name)
    if got != expected and name not in ignored:
      raise RequestError(
        f"{name}: got {got!r:.60}, expected nothing: the run decides how its policy samples, by "
        "sampler.temperature, environment.max_turn_tokens and others; agents.agent(ignores=...) "
        "names fields without effect",
        param=name,
      )


class _Door:
  """The chat server of a process, which lives as long: an address per episode."""

  def __init__(self):
    self._episodes: dict[str, _Agent] = {}
    self._serving = contextlib.ExitStack()
    self.url = self._serving.enter_context(server.serving(self))

  def enter(self, name: str, episode: _Agent) -> str:
    """Opens an address; returns its base URL."""
    self._episodes[name] = episode
    return f"{self.url}/episodes/{name}/v1"

  def leave(self, name: str) -> None:
    """Closes an address."""
    self._episodes.pop(name, None)

  def _episode(self, base: str) -> _Agent:
    found = self._episodes.get(base.removeprefix("/episodes/").removesuffix("/v1"))
    if found is None:
      raise RequestError(f"{_OVER}, or there was none: {base:.80}", status=404, code="episode_over")
    return found

  def models(self, base: str) -> list[str]:
    """The policy, whatever clients call it."""
    self._episode(base)
    return ["policy"]

  def chat(self, base: str, request: ChatRequest) -> Generator[responses.Part]:
    """The policy's turn; waits for it."""
    parts = self._episode(base).ask(request)
    return (part for part in parts)


@functools.cache
def _door() -> _Door:
  return _Door()
