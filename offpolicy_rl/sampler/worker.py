"""The sampler's loop: lease tickets, take the weights they ask for, generate, score, push."""

import dataclasses
import time
from collections.abc import Callable

from offpolicy_rl import types
from offpolicy_rl.tasks import shaping


@dataclasses.dataclass(frozen=True)
class Parts:
  """The functions a sampler is made of; the wire, or plain Python in a test, is behind them."""

  lease: Callable[[], list[types.Ticket] | None]  # None = the run is over
  pull_weights: Callable[[int, int], tuple[int, dict]]  # (min, max version) -> (version, params)
  generate: Callable[[dict, int, list[types.Ticket]], list[list[types.Trajectory]]]
  score: Callable[[list[types.Ticket], list[list[types.Trajectory]]], list[types.Group]]
  push: Callable[[list[types.Group]], None]  # returns once all are acknowledged


@dataclasses.dataclass
class Stats:
  """Running totals since the start, in seconds and tokens; sent to the learner."""

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
  """Answers tickets until the run is over or `should_stop`."""
  while not should_stop():
    tickets = stats.timed("waiting", parts.lease)
    if tickets is None:
      return
    if not tickets:
      continue
    low = max(ticket.min_version for ticket in tickets)
    high = min(ticket.max_version for ticket in tickets)
    version, params = stats.timed("weights", parts.pull_weights, low, high)
    trajectories = stats.timed("generating", parts.generate, params, version, tickets)
    groups = stats.timed("scoring", parts.score, tickets, trajectories)
    stats.timed("pushing", parts.push, groups)
    stats.groups += len(groups)
    stats.tokens += sum(t.tokens.size for group in trajectories for t in group)


def score_groups(
  scorer, decode: Callable[[list[int]], str],
  tickets: list[types.Ticket], groups: list[list[types.Trajectory]],
  *, shape: shaping.Shaping = shaping.NONE,
) -> list[types.Group]:  # fmt: skip
  """Judges all groups side by side in the scorer's processes.

  Rewards of training groups are shaped; those of evaluation are the verifier's.
  """
  submitted = [
    scorer.submit([decode(t.tokens.tolist()) for t in trajectories], ticket.answer)
    for ticket, trajectories in zip(tickets, groups, strict=True)
  ]
  scored = []
  for ticket, trajectories, handle in zip(tickets, groups, submitted, strict=True):
    judgements = scorer.judgements(handle)
    failures = sum(j.failed for j in judgements)
    rewards = [j.reward for j in judgements]
    if ticket.kind == types.TRAIN:
      rewards = shaping.rewards(judgements, [t.tokens.size for t in trajectories], shape)
    rewarded = [
      dataclasses.replace(t, reward=reward) for t, reward in zip(trajectories, rewards, strict=True)
    ]
    scored.append(types.Group(ticket.ticket_id, tuple(rewarded), failures))
  return scored
