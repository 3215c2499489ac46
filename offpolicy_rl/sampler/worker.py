"""The sampler's loop: lease tickets, take the weights they ask for, generate, score, push.

Generation goes on while the next tickets are leased and finished groups are scored and pushed.
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from offpolicy_rl import types
from offpolicy_rl.sampler.engine import Engine
from offpolicy_rl.sampler.engines import Engines
from offpolicy_rl.tasks import judge, scoring, shaping, thoughts
from offpolicy_rl.tasks.tokenizer import Tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary

_WAIT_SECONDS = 0.2  # an idle worker checks this often whether it has to stop
_TAG_TOKENS = 32  # at the end of a prompt; enough for any tag of tasks/thoughts.py
_UNANSWERED = scoring.Judgement(0.0, well_formed=False, failed=False)

Answered = tuple[types.Ticket, list[types.Trajectory]]


class LearnerConnection(Protocol):
  """The learner as a worker sees it: behind the wire, or plain Python in a test."""

  @property
  def session(self) -> str:
    """The learner's start; weights of another session are void."""
    ...

  @property
  def newest_version(self) -> int:
    """The newest version of this session that is known here."""
    ...

  def lease(self, room: int, ticket_ids: list[str]) -> list[types.Ticket] | None:
    """Tickets for `room` completions besides those already here; None = the run is over."""

  def pull_weights(self, min_version: int, max_version: int) -> tuple[int, Any] | None:
    """The newest version within the bounds and its parameters; None if there is none any more."""

  def push(self, groups: list[types.Group]) -> None:
    """Returns once all groups are acknowledged."""


@dataclasses.dataclass
class Stats:
  """Running totals in seconds and tokens, and the worker's present state."""

  room: int = 0  # completions that would get a slot; below 0, some wait for one
  busy: int = 0  # slots that decode
  version: int = types.NO_VERSION  # of the weights
  progress: dict[str, int] = dataclasses.field(default_factory=dict)  # ticket -> tokens so far
  tokens: int = 0
  groups: int = 0
  seconds_waiting: float = 0.0
  seconds_weights: float = 0.0
  seconds_generating: float = 0.0
  seconds_scoring: float = 0.0
  seconds_pushing: float = 0.0

  def timed(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls `function` and adds its time to `seconds_<name>`."""
    start = time.perf_counter()
    try:
      return function(*args)
    finally:
      key = f"seconds_{name}"
      setattr(self, key, getattr(self, key) + time.perf_counter() - start)


def run(
  engine: Engine | Engines,
  learner: LearnerConnection,
  score: Callable[[list[types.Ticket], list[list[types.Trajectory]]], list[types.Group]],
  stats: Stats,
  *,
  should_stop: Callable[[], bool] = lambda: False,
  weight_update: str = types.BETWEEN_GROUPS,
  refresh_cache: bool = False,
) -> None:
  """Answers tickets until the run is over or `should_stop`; then finishes those in progress.

  Args:
    weight_update: BETWEEN_GROUPS, or IN_FLIGHT: completions continue with newer weights.
    refresh_cache: with IN_FLIGHT, recompute their keys and values with these.
  """
  in_flight = weight_update == types.IN_FLIGHT
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    worker = _Worker(engine, learner, score, stats, pool, in_flight, refresh_cache)
    worker.run(should_stop)


class _Worker:
  """Tickets on their way through one sampler; at most one call of each kind is in progress."""

  def __init__(
    self, engine, learner: LearnerConnection, score, stats: Stats, pool, in_flight, refresh_cache
  ):
    self._engine, self._learner, self._score = engine, learner, score
    self._stats, self._pool = stats, pool
    self._in_flight, self._refresh_cache = in_flight, refresh_cache
    self._leasing = self._pulling = self._delivering = None  # futures
    self._over = False  # no more tickets will come
    self._reported: list[str] = []  # ids of the tickets here when the last lease was requested
    self._waiting: list[types.Ticket] = []  # leased, not begun
    self._active: dict[str, types.Ticket] = {}  # begun
    self._done: list[Answered] = []  # not delivered
    self._session, self._version, self._params = "", types.NO_VERSION, None
    self._leased = 0.0  # when the tickets that wait had come
    self._marks: dict[str, list[float]] = {}  # ticket -> its types.Marks so far

  def run(self, should_stop: Callable[[], bool]) -> None:
    while not self._over or self._waiting or self._active or self._done:
      if should_stop():
        self._over, self._waiting = True, []
      self._lease()
      self._begin()
      self._generate()
      self._deliver()
      self._report()
      self._wait()

  def _lease(self) -> None:
    """Takes the tickets that came; requests more if slots will be free after the next step."""
    if self._leasing and self._leasing.done():
      tickets, self._leasing = self._leasing.result(), None
      self._over |= tickets is None
      if self._over:  # what came after a request to stop is returned when the sampler leaves
        return
      # A ticket that is here, or was when it was requested, would be answered twice.
      known = {*self._reported, *self._ticket_ids()}
      self._waiting = [t for t in tickets if t.ticket_id not in known]
      self._leased = time.monotonic()
    if self._may_lease:
      self._reported = self._ticket_ids()
      room = self._engine.room_soon
      self._leasing = self._pool.submit(self._learner.lease, room, self._reported)

  @property
  def _may_lease(self) -> bool:
    return not (self._leasing or self._over or self._waiting) and self._engine.room_soon > 0

  def _ticket_ids(self) -> list[str]:  # begun, and not acknowledged
    return [*self._active, *(ticket.ticket_id for ticket, _ in self._done)]

  def _begin(self) -> None:
    """Begins the tickets that came, with newer weights if there are any.

    Between groups, running completions finish first. In flight, they continue with the new weights
    if their tickets allow it.
    """
    just_pulled = self._take_weights()
    tickets = self._waiting + (list(self._active.values()) if self._in_flight else [])
    if self._pulling or not tickets:
      return
    low = max(ticket.min_version for ticket in tickets)
    high = min(ticket.max_version for ticket in tickets)
    fits = low <= self._version <= high and self._session == self._learner.session
    # Versions may come faster than pulls: one pull is enough to begin.
    newest = just_pulled or self._version >= min(high, self._learner.newest_version)
    if fits and newest:
      self._engine.add(self._waiting)
      now = time.monotonic()
      self._marks |= {ticket.ticket_id: [self._leased, now] for ticket in self._waiting}
      self._active |= {ticket.ticket_id: ticket for ticket in self._waiting}
      self._waiting = []
    elif low <= high and (self._in_flight or not self._active):
      self._pulling = self._pool.submit(self._pull, low, high)

  def _take_weights(self) -> bool:
    """Goes on with the weights of a pull that has ended; returns whether one has."""
    if not (self._pulling and self._pulling.done()):
      return False
    pulled, self._pulling = self._pulling.result(), None
    if pulled is None:
      self._waiting = []  # no version for them is left: other samplers have answered them
      return True
    self._session, (self._version, self._params) = pulled
    if self._active and self._refresh_cache:
      self._engine.refresh(self._params)
    return True

  def _pull(self, low: int, high: int):
    session = self._learner.session
    pulled = self._stats.timed("weights", self._learner.pull_weights, low, high)
    return pulled and (session, pulled)

  def _generate(self) -> None:
    if not self._active:
      return
    step = self._engine.step
    for ticket, group in self._stats.timed("generating", step, self._params, self._version):
      del self._active[ticket.ticket_id]
      marks, now = self._marks[ticket.ticket_id], time.monotonic()
      marks += [self._engine.pop_started(ticket.ticket_id) or marks[-1], now]
      self._done.append((ticket, group))

  def _deliver(self) -> None:
    if self._delivering and self._delivering.done():
      self._done = self._done[self._delivering.result() :]
      self._delivering = None
    if self._done and not self._delivering:
      self._delivering = self._pool.submit(self._score_and_push, list(self._done))

  def _score_and_push(self, done: list[Answered]) -> int:
    tickets, trajectories = map(list, zip(*done, strict=True))
    groups = self._stats.timed("scoring", self._score, tickets, trajectories)
    scored = time.monotonic()
    groups = [
      dataclasses.replace(g, marks=types.Marks(*self._marks.pop(g.ticket_id), scored))
      for g in groups
    ]
    self._stats.timed("pushing", self._learner.push, groups)
    self._stats.groups += len(groups)
    self._stats.tokens += sum(t.tokens.size for group in trajectories for t in group)
    return len(done)

  def _report(self) -> None:
    self._stats.room, self._stats.version = self._engine.room, self._version
    self._stats.busy = self._engine.busy if self._active else 0
    waiting = {ticket.ticket_id: 0 for ticket in self._waiting}
    # A complete ticket counts for one token more.
    done = {t.ticket_id: 1 + sum(row.tokens.size for row in rows) for t, rows in self._done}
    self._stats.progress = waiting | self._engine.progress | done

  def _wait(self) -> None:
    calls = [f for f in (self._leasing, self._pulling, self._delivering) if f]
    if calls and not self._active and not self._may_lease:  # there is something to do at once
      wait = lambda: concurrent.futures.wait(calls, _WAIT_SECONDS, "FIRST_COMPLETED")
      self._stats.timed("waiting", wait)


def score_groups(
  scorer: scoring.Scorer | judge.JudgedScorer | None,
  vocabulary: Vocabulary | Tokenizer,
  tickets: list[types.Ticket],
  groups: list[list[types.Trajectory]],
  *,
  shape: shaping.Shaping = shaping.NONE,
  judge_unfinished: bool = False,
) -> list[types.Group]:
  """Judges all groups at the same time in the scorer's processes.

  Rewards of training groups are shaped; verdicts never are, nor rewards of evaluation. Completions
  without an answer (`thoughts.judged`) are worth 0 and reach no verifier. Episodes have been judged
  by their environments, and have no format to be rewarded for; a judge grades the conversation.

  Args:
    scorer: None if every group is of episodes, and there is no judge.
    judge_unfinished: task.judge_unfinished.
  """
  submit = functools.partial(_submit, scorer, vocabulary, judge_unfinished=judge_unfinished)
  waiting = [
    _of_episodes(scorer, vocabulary, ticket, group) if ticket.environment else submit(ticket, group)
    for ticket, group in zip(tickets, groups, strict=True)
  ]
  return [
    _scored(ticket, group, judgements(), shape)
    for ticket, group, judgements in zip(tickets, groups, waiting, strict=True)
  ]


def _of_episodes(
  scorer, vocabulary, ticket, group: Sequence[types.Trajectory]
) -> Callable[[], list[scoring.Judgement]]:
  """The environment's judgements, or if there is a judge, those of its rubric."""
  verified = [
    scoring.Judgement(t.reward, well_formed=False, failed=t.ended in types.WITHOUT_ANSWER)
    for t in group
  ]
  if not isinstance(scorer, judge.JudgedScorer):
    return lambda: verified
  graded = [(t, j) for t, j in zip(group, verified, strict=True) if not j.failed]
  handle = scorer.submit(
    [vocabulary.decode_special(t.last_context().tolist()) for t, _ in graded],
    ticket.answer,
    vocabulary.decode_all(ticket.prompt_tokens.tolist()),
    verified=[j for _, j in graded],
  )

  def judgements() -> list[scoring.Judgement]:
    judged = iter(scorer.judgements(handle))
    return [j if j.failed else next(judged) for j in verified]

  return judgements


def _submit(
  scorer, vocabulary, ticket, trajectories, *, judge_unfinished: bool
) -> Callable[[], list[scoring.Judgement]]:
  """Starts judging a group; the result waits for its judgements."""
  texts = judged_texts(vocabulary, ticket, trajectories, judge_unfinished=judge_unfinished)
  handle = scorer.submit(
    [text for text in texts if text is not None],
    ticket.answer,
    vocabulary.decode_all(ticket.prompt_tokens.tolist()),
  )

  def judgements() -> list[scoring.Judgement]:
    judged = iter(scorer.judgements(handle))
    return [_UNANSWERED if text is None else next(judged) for text in texts]

  return judgements


def _scored(ticket, trajectories, judgements, shape: shaping.Shaping) -> types.Group:
  failures = sum(j.failed for j in judgements)
  lengths = [int(t.sampled.sum()) for t in trajectories]
  verdicts = rewards = [j.reward for j in judgements]
  if ticket.kind == types.TRAIN:
    # A failed completion that is worth the mean of the others adds no signal.
    verdicts = shaping.rewards(judgements, lengths, shaping.Shaping(failed=shape.failed))
    rewards = shaping.rewards(judgements, lengths, shape)
  rewarded = [
    dataclasses.replace(t, reward=reward, verdict=verdict, parts=j.parts)
    for t, reward, verdict, j in zip(trajectories, rewards, verdicts, judgements, strict=True)
  ]
  return types.Group(ticket.ticket_id, tuple(rewarded), failures)


def judged_texts(
  vocabulary: Vocabulary | Tokenizer,
  ticket: types.Ticket,
  trajectories: Sequence[types.Trajectory],
  *,
  judge_unfinished: bool,
) -> list[str | None]:
  """The text of each completion for the verifier, see `thoughts.judged`."""
  end_of_prompt = ticket.prompt_tokens[-_TAG_TOKENS:].tolist()
  opened = thoughts.opened_by(vocabulary.decode_special(end_of_prompt))
  return [
    thoughts.judged(
      vocabulary.decode(trajectory.tokens.tolist()),
      finished=trajectory.finished,
      opened=opened,
      judge_unfinished=judge_unfinished,
    )
    for trajectory in trajectories
  ]
