"""The engine where history is rewritten: contexts go back, and nothing dropped is read.

A template drops thoughts, or an agent changes what was said, too.
"""

import dataclasses
import hashlib
import json

import jax
import numpy as np
import pytest

from offpolicy_rl import losses, types
from offpolicy_rl.environments import episodes
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.model import policy
from offpolicy_rl.replay import batching, packing, replies
from offpolicy_rl.sampler import engine, sizing
from offpolicy_rl.tasks import turns
from tests.params import some
from tests.rows import whole_rows
from tests.sampler import engine_turns_test as turns_test
from tests.sampler.engine_test import CONFIG, STOPS, assert_same, ending

ticket = turns_test.ticket
TAIL = [3]
SIZES = turns_test.SIZES | dict(max_tokens=24)
LIMITS = episodes.Limits(tokens=24, turns=4, turn_tokens=4)


class Words(turns_test.Words):
  """Each number with a space behind it, so that texts end where numbers do."""

  def decode(self, ids) -> str:
    return "".join(f"{i} " for i in ids)


class History(turns.ChatHistory):
  """Writes a turn of the policy as it is if its first number is even, else without its thought."""

  def __init__(self):
    self.tail, self.tail_text, self.opened = TAIL, "3 ", ""

  def text(self, messages) -> str:
    asked = messages and messages[-1]["role"] == "user"
    return "".join(map(self._one, messages)) + ("" if asked else self.tail_text)

  def _one(self, message) -> str:
    numbers = message["content"].split()
    if message["role"] == "user":
      return "".join(f"{n} " for n in [*numbers, *TAIL])
    if numbers and int(numbers[0]) % 2:
      numbers = numbers[len(numbers) // 2 :]
    return "".join(f"{n} " for n in numbers)

  def tokens(self, text: str) -> list[int]:
    return list(map(int, text.split()))

  def continuation(self, text: str, _last: int) -> list[int]:
    return self.tokens(text)


class Agents(turns_test.Processes):
  """Agents that change what was said in a quarter of their requests."""

  def answers(self, seconds: float):
    return [
      (handle, changed(handle.played.actions, turn)) for handle, turn in super().answers(seconds)
    ]


def changed(actions: list[str], turn: Turn) -> Turn:
  """Leaves out some turns, or all; with a summary, or without a word."""
  digest = hashlib.sha256("/".join(actions).encode()).digest()
  if not actions:
    return Turn()
  if digest[0] % 4:
    return turn
  kept = [i for i in range(len(actions)) if digest[1] >> i & 1]
  asks = [{"role": "user", "content": f"{2 + digest[2] % 38}"}]
  summary = [{"role": "assistant", "content": f"{2 + digest[2] % 38} 6 "}]
  histories = [[], kept, [*kept, *asks], [*summary, *asks], [*asks, *summary]]
  return turn._replace(text="", history=json.dumps(histories[digest[4] % len(histories)]))


def make_engine(delay=lambda: 0, world=turns_test.Processes, **changes) -> engine.Engine:
  made = world(delay)
  played = episodes.Episodes(lambda: made, lambda _: Words(), LIMITS, 0, lambda _: History())
  return engine.Engine(
    CONFIG, sizing.Sizes(**SIZES | changes), stops=STOPS, seed=0, episodes=played
  )


@pytest.fixture(scope="module", params=[turns_test.Processes, Agents])
def world(request):
  return request.param


@pytest.fixture(scope="module")
def expected(world):
  return make_engine(world=world).generate(ending(), 0, [ticket(i) for i in range(9)])


def test_logprobs_are_those_of_what_a_turn_sees(expected):
  went_back = stayed = 0
  for i, group in enumerate(expected):
    for t in group:
      for turn, seen in contexts(t):
        logprobs = logprobs_of(ending(), [*ticket(i).prompt_tokens, *seen], t.tokens[turn])
        np.testing.assert_allclose(t.logprobs[turn], logprobs, atol=1e-5)
      went_back += len(t.rewinds)
      stayed += len(t.turn_rewards) - 1 - len(t.rewinds)
      assert t.tokens.size <= 24 and all(not t.sampled[at] for at, _ in t.rewinds)
  assert went_back > 20 and stayed > 3


def logprobs_of(params, seen: list[int], turn: np.ndarray) -> np.ndarray:
  """Log-probabilities of a turn's tokens behind others, from a forward pass over the row."""
  row = np.zeros((1, 32), np.int32)
  row[0, : len(seen) + turn.size] = [*seen, *turn]
  logprobs = policy.token_stats(CONFIG, params, whole_rows(row), 1.0).logprobs[0]
  return np.asarray(logprobs[len(seen) - 1 :][: turn.size])


def contexts(t: types.Trajectory) -> list[tuple[slice, list[int]]]:
  """(a turn of the policy, what it sees behind the prompt), one token after the other."""
  found, seen = [], []
  for at in range(t.tokens.size):
    if t.sampled[at] and (at == 0 or not t.sampled[at - 1]):
      size = np.argmin([*t.sampled[at:], False])
      found.append((slice(at, at + int(size)), [t.tokens[i] for i in seen]))
    for rewind in t.rewinds:
      if rewind.at == at:
        del seen[seen.index(rewind.to) :]
    seen.append(at)
  return found


def rewinds(groups) -> list[tuple[types.Rewind, ...]]:
  return [t.rewinds for group in groups for t in group]


def test_the_learner_reads_what_the_sampler_has_read(expected):
  """The same log-probabilities from the rows of a batch, whose completions share prompts, too."""
  groups = [
    types.FinishedGroup(ticket(i), types.Group(f"{i}", tuple(group)), 0)
    for i, group in enumerate(expected)
  ]
  for layout, columns in ((packing.PADDED, 29), (packing.SHARED, 80)):
    batch = batching.make_batch(groups, packing.Limits(layout, 5, 24, columns))
    rows, places = jax.tree.map(lambda x: x[0], batch.rows), batch.places[0]
    logprobs = np.asarray(policy.token_stats(CONFIG, ending(), rows, 1.0).logprobs)
    found = logprobs.reshape(-1)[places]
    mask = batch.loss_mask[0]
    np.testing.assert_allclose(found[mask], batch.sampler_logprobs[0][mask], atol=1e-5)
    assert mask.sum() > 200


def test_the_loss_is_that_of_every_turn_in_its_own_context(expected):
  """And its gradient; each turn is a row of its own there."""
  groups = [
    types.FinishedGroup(ticket(i), types.Group(f"{i}", tuple(group)), 0)
    for i, group in enumerate(expected)
  ]
  batch = batching.make_batch(groups, packing.Limits(packing.SHARED, 5, 24, 80))
  batch = jax.tree.map(lambda x: x[0], batch)
  turn_rows, places = [], np.zeros_like(batch.places)
  for n, (i, t) in enumerate((i, t) for i, group in enumerate(expected) for t in group):
    for turn, seen in contexts(t):
      row = [*ticket(i).prompt_tokens, *seen, *t.tokens[turn]]
      first = 32 * len(turn_rows) + len(row) - (turn.stop - turn.start) - 1
      places[n, turn] = np.arange(first, first + turn.stop - turn.start)
      turn_rows.append(np.pad(row, (0, 32 - len(row))))
  apart = whole_rows(np.stack(turn_rows).astype(np.int32))
  assert batch.loss_mask.sum() == sum(t.sampled.sum() for group in expected for t in group)
  objective = losses.objective("beta_shift", beta=0.5, kappa=0.2)

  def loss(params, rows, at, columns):
    logprobs = policy.token_stats(CONFIG, params, rows, 1.0).logprobs
    logprobs = jax.numpy.pad(logprobs, ((0, 0), (0, columns - logprobs.shape[1])))
    given = batch.sampler_logprobs, batch.loss_mask, batch.rewards, batch.group_ids
    return objective(losses.LossInputs(logprobs.reshape(-1)[at], *given))[0]

  gradients = jax.value_and_grad(loss)
  found = gradients(ending(), batch.rows, batch.places, batch.rows.sources.shape[1])
  other = gradients(ending(), apart, places, 32)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, other)


@pytest.mark.parametrize(
  "changes", some([dict(steps=2, cache_tokens=110, episodes=40)], [dict(episodes=12)])
)
def test_samples_depend_on_the_answers_and_not_on_when_they_come(world, expected, changes):
  delays = iter(np.random.default_rng(0).integers(0, 7, 10_000).tolist())
  machine = make_engine(lambda: next(delays), world, **changes)
  found = machine.generate(ending(), 0, [ticket(i) for i in range(9)])
  assert_same(found, expected)
  assert rewinds(found) == rewinds(expected)
  assert len(machine._pages) == machine._sizes.pages - 1 and machine.idle


def test_recorded_replies_go_back_where_they_did(expected):
  groups = [types.Group(f"{i}", tuple(group)) for i, group in enumerate(expected)]
  lines = [json.loads(json.dumps(replies.row(group))) for group in groups]
  said = [tuple(map(replies.replies_of, line["episodes"])) for line in lines]
  tickets = [dataclasses.replace(ticket(i), replies=said[i]) for i in range(9)]
  play, history = lambda: pytest.fail("played"), lambda _: History()
  gone = episodes.Episodes(play, lambda _: Words(), LIMITS, 0, history)
  made = engine.Engine(CONFIG, sizing.Sizes(**SIZES), stops=STOPS, seed=0, episodes=gone)
  again = made.generate(ending(), 0, tickets)
  assert_same(again, expected)
  assert rewinds(again) == rewinds(expected)


def test_waiting_episodes_go_on_with_other_parameters():
  old, new = ending(), ending() | {"embedding": ending()["embedding"] * 0.7}
  delays = iter(np.random.default_rng(0).integers(0, 4, 10_000).tolist())
  machine = make_engine(lambda: next(delays), prefill_tokens=3, steps=2)
  machine.add([ticket(i) for i in range(9)])
  found = []
  while sum(bool(c.rewinds) for c in machine._waiting.values()) < 3:
    found += machine.step(old, 0)
  before = machine.progress
  machine.refresh(new)
  while not machine.idle:
    found += machine.step(new, 1)
    assert all(number >= before[name] for name, number in machine.progress.items())
  finished = [(t, trajectory) for t, group in found for trajectory in group]
  for t, trajectory in finished:
    for turn, seen in contexts(trajectory):
      seen = [*t.prompt_tokens, *seen]
      by = [logprobs_of(params, seen, trajectory.tokens[turn]) for params in (old, new)]
      logprobs = np.where(trajectory.versions[turn] == 1, by[1], by[0])
      np.testing.assert_allclose(trajectory.logprobs[turn], logprobs, atol=1e-5)
