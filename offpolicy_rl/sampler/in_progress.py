"""Groups and completions in progress in an engine."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from offpolicy_rl import types

Finished = tuple[types.Ticket, list[types.Trajectory]]  # a complete group, unscored


@dataclasses.dataclass(eq=False)
class Group:
  """A ticket in progress; its prompt is in the cache, except for the last token."""

  ticket: types.Ticket
  pages: list[int]  # of the prompt
  cached: int = 0  # tokens of the prompt whose keys and values are in the cache
  done: dict[int, types.Trajectory] = dataclasses.field(default_factory=dict)  # by index

  @property
  def tokens(self) -> np.ndarray:
    """The prompt."""
    return self.ticket.prompt_tokens

  @property
  def missing(self) -> int:
    """Tokens to prefill: all but the last, which completions compute."""
    return self.tokens.size - 1 - self.cached

  @property
  def is_complete(self) -> bool:
    """Whether all completions are over."""
    return len(self.done) == self.ticket.num_completions

  @property
  def trajectories(self) -> list[types.Trajectory]:
    """Those of a complete group, in order."""
    return [self.done[i] for i in range(len(self.done))]

  def shared(self, page_tokens: int) -> int:
    """Number of full pages of the prompt, which completions read in place."""
    return (self.tokens.size - 1) // page_tokens


@dataclasses.dataclass(eq=False)
class Completion:
  """One of a group; of an episode, with the turns so far.

  Tokens are counted in two ways. `rewinds`, `earlier` and `dropped` count all those behind the
  prompt (`spans`, then this turn). `cached`, `size` and `missing` count those of the context: the
  prompt, and what was not dropped, in the order in which the cache has them.
  """

  group: Group
  index: int  # in its group
  pages: list[int] = dataclasses.field(default_factory=list)  # besides those of the prompt
  versions: list[int] = dataclasses.field(default_factory=list)  # of the tokens of this turn
  limit: int = 0  # tokens of this turn
  turn: int = 0  # of the policy; counts from 0
  spans: list[types.Span] = dataclasses.field(default_factory=list)  # before this turn
  rewinds: list[types.Rewind] = dataclasses.field(default_factory=list)
  dropped: int = 0  # tokens of the spans that are out of the context
  cached: int = 0  # of `tokens`, how many have keys and values in the cache
  spent: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds, see types.Seconds
  since: float = dataclasses.field(default_factory=time.monotonic)  # when these were noted
  episode: Any = None  # of `episodes.World`

  @property
  def earlier(self) -> int:
    """Number of tokens in the spans."""
    return sum(span.tokens.size for span in self.spans)

  @property
  def tokens(self) -> np.ndarray:
    """The context: the prompt, and of the spans what it has not dropped."""
    spans = [span.tokens for span in self.spans]
    if self.rewinds:
      spans = [np.concatenate(spans)[self._kept()]]
    return np.concatenate([self.group.tokens, *spans])

  @property
  def size(self) -> int:
    """Number of `tokens`."""
    return self.group.tokens.size + self.earlier - self.dropped

  def _kept(self) -> np.ndarray:
    """bool [earlier], the tokens of the spans that are in the context."""
    kept = np.ones(self.earlier, bool)
    for at, to in self.rewinds:
      kept[to:at] = False
    return kept

  def go_back(self, to: int) -> None:
    """Drops the spans' tokens from `to` on from the context."""
    self.rewinds.append(types.Rewind(self.earlier, to))
    self.dropped = self.earlier - int(self._kept().sum())
    self.cached = min(self.cached, self.size)

  @property
  def missing(self) -> int:
    """Tokens to prefill before this turn can start."""
    return self.size - 1 - self.cached

  def spend(self, where: str) -> None:
    """Notes where the time since the last note went: one of the fields of types.Seconds."""
    now = time.monotonic()
    self.spent[where] = self.spent.get(where, 0.0) + now - self.since
    self.since = now

  def table(self, page_tokens: int) -> list[int]:
    """All pages: the prompt's full ones and its own."""
    return [*self.group.pages[: self.group.shared(page_tokens)], *self.pages]


def environment_span(tokens: np.ndarray, candidates: int) -> types.Span:
  """The span of an environment's tokens; `candidates`: recorded with every token, 0 = none."""
  shape = (tokens.size, candidates)
  none = types.Candidates(np.zeros(shape, np.int32), np.zeros(shape, np.float32))
  return types.Span(
    tokens,
    np.zeros(tokens.size, np.float32),
    np.full(tokens.size, types.NO_VERSION, np.int32),
    none if candidates else None,
  )


def trajectory(completion: Completion, rewards: Sequence[float], ended: str) -> types.Trajectory:
  """The trajectory of an episode that is over."""
  spans = completion.spans
  candidates = [span.candidates for span in spans if span.candidates is not None]
  return types.Trajectory(
    *(np.concatenate(x) for x in list(zip(*spans, strict=True))[:3]),
    finished=ended in (types.DONE, types.TURN_LIMIT),
    reward=float(np.float32(sum(rewards))),
    candidates=types.Candidates(*map(np.concatenate, zip(*candidates, strict=True)))
    if candidates
    else None,
    turn_rewards=tuple(rewards),
    ended=ended,
    seconds=types.Seconds(*(completion.spent.get(name, 0.0) for name in types.Seconds._fields)),
    rewinds=tuple(completion.rewinds),
  )
