"""The sampler's loop: lease tickets, take the weights they ask for, generate, score, push.

Generation goes on while the next tickets are leased and finished groups are scored and pushed.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from offpolicy_rl import types
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.tasks import scoring, shaping, thoughts

BETWEEN_GROUPS, IN_FLIGHT = "between_groups", "in_flight"
_LOOK_SECONDS = 0.2  # how often a worker that waits looks whether it is to stop
_TAG_TOKENS = 32  # at the end of a prompt; enough for any tag of tasks/thoughts.py
_UNANSWERED = scoring.Judgement(0.0, well_formed=False, failed=False)


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a sampler is made of; the wire, or plain Python in a test, is behind the functions."""

  engine: engine_lib.Engine
  # (room for completions, ids of all tickets that we have) -> tickets; None = the run is over
  lease: Callable[[int, list[str]], list[types.Ticket] | None]
  session: Callable[[], str]  # the learner's; weights of another one are void
  newest_version: Callable[[], int]  # of this session, that we have heard of
  # (min, max version) -> (version, params): the newest there is; None = there is none any more
  pull_weights: Callable[[int, int], tuple[int, Any] | None]
  score: Callable[[list[types.Ticket], list[list[types.Trajectory]]], list[types.Group]]
  push: Callable[[list[types.Group]], None]  # returns once all are acknowledged
  weight_update: str = BETWEEN_GROUPS  # or IN_FLIGHT: completions go on with newer weights
  refresh_cache: bool = False  # then: what they have seen is computed again with these


@dataclasses.dataclass
class Stats:
  """Running totals since the start, in seconds and tokens, and how the worker stands."""

  room: int = 0  # completions that would find a slot; below 0 some wait for one
  version: int = types.NO_VERSION  # of the weights
  progress: dict[str, int] = dataclasses.field(default_factory=dict)  # ticket -> tokens so far
  tokens: int = 0
  groups: int = 0
  seconds_waiting: float = 0.0
  seconds_weights: float = 0.0
  seconds_generating: float = 0.0
  seconds_scoring: float = 0.0
  seconds_pushing: float = 0.0

  def timed(self, name: str, function, *args):
    """Calls `function` and books its time under `seconds_<name>`."""
    start = time.perf_counter()
    try:
      return function(*args)
    finally:
      key = f"seconds_{name}"
      setattr(self, key, getattr(self, key) + time.perf_counter() - start)


def run(parts: Parts, stats: Stats, should_stop: Callable[[], bool] = lambda: False) -> None:
  """Answers tickets until the run is over or `should_stop`; what was begun is finished."""
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    work = _Work(parts, stats, pool)
    while work.turn(should_stop()):
      pass


class _Work:
  """Tickets on their way through one sampler; one call of each kind is under way at most."""

  def __init__(self, parts: Parts, stats: Stats, pool: concurrent.futures.Executor):
    self._parts, self._stats, self._pool = parts, stats, pool
    self._leasing = self._pulling = self._delivering = None  # futures
    self._over = False  # no more tickets will come
    self._had: list[str] = []  # ids of the tickets that we had when we last asked for more
    self._waiting: list[types.Ticket] = []  # leased, not begun
    self._active: dict[str, types.Ticket] = {}  # begun
    self._done: list[tuple[types.Ticket, list[types.Trajectory]]] = []  # not delivered
    self._session, self._version, self._params = "", types.NO_VERSION, None

  def turn(self, stopping: bool) -> bool:
    """A little of everything; False once nothing is left to do."""
    if stopping:
      self._over, self._waiting = True, []
    self._lease()
    self._renew()
    if self._active:
      self._generate()
    self._deliver()
    self._stats.room, self._stats.version = self._parts.engine.room, self._version
    self._stats.progress = self._progress()
    if self._active:
      return True
    left = [f for f in (self._leasing, self._pulling, self._delivering) if f]
    if left:
      wait = lambda: concurrent.futures.wait(left, _LOOK_SECONDS, "FIRST_COMPLETED")
      self._stats.timed("waiting", wait)
    return not self._over or bool(self._waiting or self._done or self._delivering)

  def _progress(self) -> dict[str, int]:
    """Of all tickets that we have; one that is complete counts for one token more."""
    done = {t.ticket_id: 1 + sum(row.tokens.size for row in rows) for t, rows in self._done}
    begun = self._parts.engine.progress
    return {ticket.ticket_id: 0 for ticket in self._waiting} | begun | done

  def _lease(self) -> None:
    """Takes the tickets that came; asks for more where slots would take them, or will in a step."""
    if self._leasing and self._leasing.done():
      tickets, self._leasing = self._leasing.result(), None
      self._over |= tickets is None
      # One that we have, or had when we asked, would be answered twice.
      known = {*self._had, *self._have()}
      self._waiting = [t for t in tickets or () if t.ticket_id not in known]
    room = self._parts.engine.room_soon
    if not (self._leasing or self._over or self._waiting) and room > 0:
      self._had = self._have()
      self._leasing = self._pool.submit(self._parts.lease, room, self._had)

  def _have(self) -> list[str]:
    """Ids of the tickets that were begun and whose groups are not acknowledged."""
    return [*self._active, *(ticket.ticket_id for ticket, _ in self._done)]

  def _renew(self) -> None:
    """Begins the tickets that came, with newer weights where there are any.

    Between groups, completions that run finish first. In flight, they go on with the new weights
    if their tickets allow it.
    """
    came = bool(self._pulling and self._pulling.done())
    if came:
      pulled, self._pulling = self._pulling.result(), None
      if pulled is None:
        self._waiting = []  # others have answered them
      else:
        self._session, (self._version, self._params) = pulled
        if self._active and self._parts.refresh_cache:
          self._parts.engine.refresh(self._params)
    in_flight = self._parts.weight_update == IN_FLIGHT
    concerned = self._waiting + (list(self._active.values()) if in_flight else [])
    if self._pulling or not concerned:
      return
    low = max(ticket.min_version for ticket in concerned)
    high = min(ticket.max_version for ticket in concerned)
    serves = low <= self._version <= high and self._session == self._parts.session()
    newest = came or self._version >= min(high, self._parts.newest_version())
    if serves and newest:
      self._parts.engine.add(self._waiting)
      self._active |= {ticket.ticket_id: ticket for ticket in self._waiting}
      self._waiting = []
    elif low <= high and (in_flight or not self._active):
      self._pulling = self._pool.submit(self._pull, low, high)

  def _pull(self, low: int, high: int):
    session = self._parts.session()
    pulled = self._stats.timed("weights", self._parts.pull_weights, low, high)
    return pulled and (session, pulled)

  def _generate(self) -> None:
    step = self._parts.engine.step
    for ticket, found in self._stats.timed("generating", step, self._params, self._version):
      self._done.append((self._active.pop(ticket.ticket_id), found))

  def _deliver(self) -> None:
    """Scores and pushes what is done, everything that gathered meanwhile at once."""
    if self._delivering and self._delivering.done():
      number = self._delivering.result()
      self._delivering, self._done = None, self._done[number:]
    if self._done and not self._delivering:
      self._delivering = self._pool.submit(self._deliver_now, list(self._done))

  def _deliver_now(self, done) -> int:
    """How many."""
    tickets, trajectories = map(list, zip(*done, strict=True))
    groups = self._stats.timed("scoring", self._parts.score, tickets, trajectories)
    self._stats.timed("pushing", self._parts.push, groups)
    self._stats.groups += len(groups)
    self._stats.tokens += sum(t.tokens.size for group in trajectories for t in group)
    return len(done)


def score_groups(
  scorer,
  words,
  tickets: list[types.Ticket],
  groups: list[list[types.Trajectory]],
  *,
  shape: shaping.Shaping = shaping.NONE,
  judge_unfinished: bool = False,
) -> list[types.Group]:
  """Judges all groups side by side in the scorer's processes.

  Rewards of training groups are shaped; verdicts never are, nor those of evaluation. Completions
  that have not answered (`thoughts.judged`) are worth 0 and reach no verifier.

  Args:
    words: the policy's Vocabulary or Tokenizer.
    judge_unfinished: task.judge_unfinished.
  """
  texts = [
    readable(words, ticket, trajectories, judge_unfinished=judge_unfinished)
    for ticket, trajectories in zip(tickets, groups, strict=True)
  ]
  submitted = [
    scorer.submit([text for text in of_group if text is not None], ticket.answer)
    for ticket, of_group in zip(tickets, texts, strict=True)
  ]
  scored = []
  for ticket, trajectories, of_group, handle in zip(tickets, groups, texts, submitted, strict=True):
    judged = iter(scorer.judgements(handle))
    judgements = [_UNANSWERED if text is None else next(judged) for text in of_group]
    failures, lengths = sum(j.failed for j in judgements), [t.tokens.size for t in trajectories]
    verdicts = rewards = [j.reward for j in judgements]
    if ticket.kind == types.TRAIN:
      # Where a failed one is worth what the others are, that is no difference between them.
      verdicts = shaping.rewards(judgements, lengths, shaping.Shaping(failed=shape.failed))
      rewards = shaping.rewards(judgements, lengths, shape)
    rewarded = [
      dataclasses.replace(t, reward=reward, verdict=verdict)
      for t, reward, verdict in zip(trajectories, rewards, verdicts, strict=True)
    ]
    scored.append(types.Group(ticket.ticket_id, tuple(rewarded), failures))
  return scored


def readable(
  words, ticket: types.Ticket, trajectories: Sequence[types.Trajectory], *, judge_unfinished: bool
) -> list[str | None]:
  """What a verifier may see of each completion of a ticket, see `thoughts.judged`."""
  opened = thoughts.opened_by(words.spell(ticket.prompt_tokens[-_TAG_TOKENS:].tolist()))
  return [
    thoughts.judged(
      words.decode(trajectory.tokens.tolist()),
      finished=trajectory.finished,
      opened=opened,
      judge_unfinished=judge_unfinished,
    )
    for trajectory in trajectories
  ]
