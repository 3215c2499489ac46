"""Episodes in tokens: what an engine asks and tells while completions wait for an environment."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.environments import processes
from offpolicy_rl.environments.context import Context
from offpolicy_rl.environments.environment import Sampled, Turn
from offpolicy_rl.tasks import pool, thoughts, turns
from offpolicy_rl.tasks.special_tokens import TokenizerError

_LOG = logging.getLogger(__name__)
_NOTHING = np.zeros(0, np.int32)
_LONGEST_TAG = 16  # tokens of one that opens a thought, with white space


class Words(Protocol):
  """The vocabulary, as far as episodes use it."""

  def conversation(self, messages: Sequence[dict], tools: Sequence[dict], /) -> list[int]:
    """Tokens of a chat, up to the beginning of the policy's turn."""
    ...

  def decode_special(self, ids: list[int], /) -> str:
    """Text with special tokens by name."""
    ...

  def token_texts(self, ids: list[int], /) -> list[str]:
    """Text of each token."""
    ...

  def decode(self, ids: list[int]) -> str:
    """Text of a turn of the policy, up to its end."""
    ...

  def reply(self, texts: Sequence[str], role: str, last: int | None, /) -> list[int]:
    """Tokens that follow a turn of the policy: messages, and the beginning of its next turn.

    Args:
      role: of the messages, "user" or "tool".
      last: token of the policy's turn; None = it had none yet.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of an episode and of its turns."""

  tokens: int  # of an episode behind its prompt, the environment's included
  turns: int  # of the policy
  turn_tokens: int  # of one of these


@dataclasses.dataclass(eq=False)
class Episode:
  """A completion in its environment."""

  words: Words
  played: processes.Played | None  # None in a replay
  recorded: types.Replies | None  # in a replay: what its environment said
  prompt: np.ndarray  # int32 [P]
  begun: bool = False  # its environment has answered
  tokens: int = 0  # behind the prompt
  last: int | None = None  # token of the policy's turn before
  rewards: list[float] = dataclasses.field(default_factory=list)  # of each turn of the policy
  is_agent: bool = False
  shows_logprobs: bool = False  # an agent asks for those of the policy's next turn
  opened: str = ""  # the tag by which the template opens the thought of the policy's next turn
  hopeless: str = ""  # how it ends after the policy's first turn, as it could not begin
  history: turns.ChatHistory | None = None  # the template, if it writes what came before
  context: Context | None = None  # then

  def context_tokens(self) -> int:
    """Number of tokens that the policy has read."""
    behind = self.tokens if self.context is None else self.context.size
    return self.prompt.size + behind


class Reply(NamedTuple):
  """The answer to a turn of the policy; the first comes before it has said anything."""

  tokens: np.ndarray  # int32, by the environment; none at the end
  limit: int  # tokens that the policy may sample next
  ended: str = ""  # one of types.EPISODE_ENDS; "" = the episode goes on
  to: int | None = None  # the context goes back to there before it (types.Rewind); None = it stays


class World(Protocol):
  """Answers the completions of an engine; an episode of it has `rewards`."""

  def begin(self, ticket: types.Ticket, index: int, /) -> Any:
    """Begins the episode of a ticket's completion; its first reply is among the replies to come.

    None if the completion has one turn, which nobody answers.
    """
    ...

  def act(self, episode: Any, span: types.Span, /) -> None:
    """Takes a turn of the policy; the answer is among the replies to come."""
    ...

  def replies(self, seconds: float, /) -> list[tuple[Any, Reply]]:
    """The replies since, at least one if it comes within `seconds`."""
    ...


class Episodes:
  """The episodes of one engine."""

  def __init__(
    self,
    play: Callable[[], processes.Processes],
    words: Callable[[str], Words],
    limits: Limits,
    seed: int,
    history: Callable[[str], turns.ChatHistory | None] = lambda name: None,
  ):
    """Begins none yet.

    Args:
      play: the processes, always the same; called once a ticket comes without recorded replies.
      words: of an environment, whose tools may be in them.
      seed: of the run; the environments' seeds follow from it and the ticket.
      history: of an environment, the chat template that writes earlier turns; prompts lack its
        tail. None = they stay as they were sampled.
    """
    self._play, self._words, self._limits, self._seed = play, words, limits, seed
    self._history = history
    self._episodes: dict[processes.Played, Episode] = {}
    self._failures = 0
    self._over: list[tuple[Episode, Reply]] = []  # replies that need no process

  def begin(self, ticket: types.Ticket, index: int) -> Episode | None:
    """Begins the episode of a ticket's completion; its first reply is among the replies to come.

    None if the ticket names no environment.
    """
    if not ticket.environment:
      return None
    words = self._words(ticket.environment)
    if ticket.replies:
      episode = Episode(words, None, ticket.replies[index], ticket.prompt_tokens)
      self._over.append((episode, self._again(episode, ticket.replies[index])))
      return episode
    played = self._play().begin(ticket.environment, ticket.answer, seed_of(self._seed, ticket))
    self._episodes[played] = episode = Episode(words, played, None, ticket.prompt_tokens)
    episode.history = self._history(ticket.environment)
    episode.context = Context(episode.history) if episode.history else None
    return episode

  def act(self, episode: Episode, span: types.Span) -> None:
    """Takes a turn of the policy."""
    tokens, context = span.tokens, episode.context_tokens()
    episode.tokens += tokens.size
    episode.last = int(tokens[-1])
    if episode.recorded is not None:
      self._over.append((episode, self._again(episode, episode.recorded)))
    elif episode.hopeless:
      episode.rewards = [0.0]
      self._over.append((episode, self._end(episode, episode.hopeless)))
    else:
      assert episode.played is not None, "not recorded"
      text = episode.words.decode(tokens.tolist())
      if episode.context is not None:
        episode.context.said(tokens.tolist(), text)
      sampled = _sampled(episode, span, context) if episode.is_agent else None
      self._play().act(episode.played, episode.opened + text, sampled)

  def _again(self, episode: Episode, recorded: types.Replies) -> Reply:
    """The next recorded reply."""
    if episode.last is not None:
      episode.rewards.append(recorded.rewards[len(episode.rewards)])
    rest = recorded.tokens[episode.tokens :]
    if len(episode.rewards) == len(recorded.rewards) or not rest.size:
      return Reply(_NOTHING, 0, recorded.ended)
    tokens = rest[: int(np.argmax(rest == types.BY_POLICY))]
    to = dict(recorded.rewinds).get(episode.tokens)
    episode.tokens += tokens.size
    # One that could not begin had a single token.
    return Reply(tokens, min(self._limit(episode), rest.size - tokens.size), to=to)

  def replies(self, seconds: float) -> list[tuple[Episode, Reply]]:
    """The replies since, at least one if it comes within `seconds`.

    Raises:
      pool.PoolError: the environments' processes can't be prepared.
    """
    replies, self._over = self._over, []
    answers = self._play().answers(0 if replies else seconds) if self._episodes else []
    for played, answer in answers:
      episode = self._episodes[played]
      episode.shows_logprobs = isinstance(answer, Turn) and answer.logprobs
      reply = self._next(episode, answer) if episode.begun else self._first(episode, answer)
      if not reply.ended:
        read = reply.tokens if reply.tokens.size else episode.prompt
        end = episode.words.decode_special(read[-_LONGEST_TAG:].tolist())
        episode.opened = thoughts.opened_by(end)
      replies.append((episode, reply))
    return replies

  def _first(self, episode: Episode, answer: Turn | pool.Failed) -> Reply:
    """The policy has a turn in any case: there is no trajectory without a token of its own."""
    episode.begun = True
    if not isinstance(answer, pool.Failed) and answer.done:
      answer = pool.Failed("done before the policy's first turn")
    elif not isinstance(answer, pool.Failed) and answer.opening:
      answer = self._opened(episode, answer)
    reply = Reply(_NOTHING, self._limit(episode))
    if isinstance(answer, pool.Failed) or answer.text or answer.more or episode.history:
      reply = self._go_on(episode, answer)
    if reply.ended:
      episode.hopeless = reply.ended
      return Reply(_NOTHING, 1)
    return reply

  def _opened(self, episode: Episode, answer: Turn) -> Turn | pool.Failed:
    """The answer, if an agent's first request is the prompt."""
    episode.is_agent, asked = True, json.loads(answer.opening)
    try:
      tokens = episode.words.conversation(asked["messages"], asked["tools"])
    except TokenizerError as error:
      return pool.Failed(f"the agent's first request can't be said to the model: {error}")
    prompt = episode.prompt.tolist() + (episode.history.tail if episode.history else [])
    if tokens == prompt:
      return answer
    found, expected = map(episode.words.decode_special, (tokens, prompt))
    same = turns.common(found, expected)
    return pool.Failed(
      f"the agent's first request is not the prompt: behind {found[:same][-40:]!r} got "
      f"{found[same:][:60]!r}, expected {expected[same:][:60]!r}; task.system_prompt, task.prompt "
      "and environment.tools decide what the prompt says"
    )

  def _next(self, episode: Episode, answer: Turn | pool.Failed) -> Reply:
    episode.rewards.append(0.0 if isinstance(answer, pool.Failed) else answer.reward)
    total, most = sum(episode.rewards), types.MAX_VERDICT
    if abs(total) > most:  # the learner would refuse the whole group
      why = f"its rewards add up to {total:g}, expected a number from -{most:g} to {most:g}"
      answer = pool.Failed(why)
    if not isinstance(answer, pool.Failed) and answer.done:
      return self._end(episode, types.DONE)
    if not isinstance(answer, pool.Failed) and len(episode.rewards) == self._limits.turns:
      return self._end(episode, types.TURN_LIMIT)
    reply = self._go_on(episode, answer)
    if reply.ended in types.WITHOUT_ANSWER:
      episode.rewards = [0.0] * len(episode.rewards)
    return self._end(episode, reply.ended) if reply.ended else reply

  def _go_on(self, episode: Episode, answer: Turn | pool.Failed) -> Reply:
    """The environment's tokens; or why the episode has to end."""
    if isinstance(answer, pool.Failed):
      self._failures += 1
      if self._failures.bit_count() == 1:  # 1, 2, 4, ...: the same fault may come in every episode
        _LOG.warning("an environment failed (%d so far): %s", self._failures, answer.reason)
      return Reply(_NOTHING, 0, types.TIME_LIMIT if answer.late else types.FAILED)
    try:
      tokens, to = self._said(episode, answer)
    except TokenizerError as error:
      return self._go_on(episode, pool.Failed(f"its answer can't be said to the model: {error}"))
    if episode.tokens + len(tokens) >= self._limits.tokens:
      return Reply(_NOTHING, 0, types.TOKEN_LIMIT)
    episode.tokens += len(tokens)
    return Reply(np.array(tokens, np.int32), self._limit(episode), to=to)

  def _said(self, episode: Episode, answer: Turn) -> tuple[list[int], int | None]:
    """Tokens of an answer, and where the context goes back to; errors of the vocabulary."""
    texts = [answer.text, *answer.more]
    if answer.history:
      if episode.context is None:
        raise TokenizerError("it changes what was said, expected environment.history = rewrite")
      return episode.context.rewritten(json.loads(answer.history))
    if episode.context is None:
      return episode.words.reply(texts, answer.role, episode.last), None
    if episode.last is None and not (answer.text or answer.more):
      return episode.context.begin(), None
    return episode.context.answered(texts, answer.role)

  def _limit(self, episode: Episode) -> int:
    return min(self._limits.turn_tokens, self._limits.tokens - episode.tokens)

  def _end(self, episode: Episode, ended: str) -> Reply:
    assert episode.played is not None, "not recorded"
    self._play().end(episode.played)
    del self._episodes[episode.played]
    return Reply(_NOTHING, 0, ended)


def _sampled(episode: Episode, span: types.Span, context: int) -> Sampled:
  found = Sampled(context, span.tokens.size, span.cut)
  if not episode.shows_logprobs:
    return found
  texts = episode.words.token_texts(span.tokens.tolist())
  return found._replace(logprobs=tuple(zip(texts, span.logprobs.tolist(), strict=True)))


def seed_of(seed: int, ticket: types.Ticket) -> int:
  """The seed of a ticket's environments in a run with this seed; at least 0, 31 bits."""
  named = f"{seed}/{ticket.kind}/{ticket.group_index}".encode()
  return int.from_bytes(hashlib.sha256(named).digest()[:4], "big") >> 1
