"""The engine with environments: what waited and came back is what one forward pass gives."""

import dataclasses
import functools
import hashlib
import json
import time
import types as plain_types

import jax
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.environments import episodes
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.replay import replies
from offpolicy_rl.sampler import engine, generation, sizing
from tests.params import some
from tests.sampler import engine_test
from tests.sampler.engine_test import (
  CONFIG,
  STOPS,
  assert_same,
  ending,
  expected_candidates,
  expected_logprobs,
)

SIZES = dict(slots=12, group_size=3, max_prompt_tokens=5, max_tokens=11, page_tokens=4, steps=4)
SIZES |= dict(episodes=16)
LIMITS = episodes.Limits(tokens=11, turns=3, turn_tokens=4)
WORLD = "worlds:World"
ticket = functools.partial(engine_test.ticket, environment=WORLD)


class Words:
  """Tokens as numbers."""

  def decode(self, ids) -> str:
    return " ".join(map(str, ids))

  decode_special = decode

  def reply(self, texts, _role: str, _last) -> list[int]:
    return [int(number) for text in texts for number in text.split()]


def words(name: str) -> Words:
  assert name == WORLD
  return Words()


def answer(problem: str, actions: list[str]) -> Turn:
  """What the environment says; it depends on all that was done, and on nothing else."""
  digest = hashlib.sha256("/".join([problem, *actions]).encode()).digest()
  if not actions:
    return Turn("" if digest[0] % 2 else "30 31 32")
  text = " ".join(str(2 + byte % 38) for byte in digest[: digest[1] % 4])
  return Turn(text, reward=digest[2] / 256, done=digest[3] % 4 == 0)


class Processes:
  """In place of processes: answers when it was asked for so often."""

  def __init__(self, delay):
    self._delay, self._coming = delay, []

  def begin(self, name: str, problem: str, seed: int):
    assert name == WORLD
    played = plain_types.SimpleNamespace(problem=f"{problem}{seed}", actions=[], ended=False)
    self._coming.append([self._delay(), played])
    return Handle(played)

  def act(self, handle, action: str, _sampled) -> None:
    handle.played.actions.append(action)
    self._coming.append([self._delay(), handle.played])

  def answers(self, seconds: float):
    for entry in self._coming:
      entry[0] -= 1
    now = [entry for entry in self._coming if entry[0] < 0]
    self._coming = [entry for entry in self._coming if entry[0] >= 0]
    return [(Handle(p), answer(p.problem, p.actions)) for _, p in now]

  def end(self, handle) -> None:
    assert not handle.played.ended
    handle.played.ended = True


class Handle:
  """Equal for the same environment."""

  def __init__(self, played):
    self.played = played

  def __hash__(self):
    return id(self.played)

  def __eq__(self, other):
    return self.played is other.played


def make_engine(delay=lambda: 0, kind=engine.Engine, **changes) -> engine.Engine:
  world = Processes(delay)
  played = episodes.Episodes(lambda: world, words, LIMITS, seed=0)
  sizes = sizing.Sizes(**SIZES | changes)
  return kind(CONFIG, sizes, stops=STOPS, seed=0, episodes=played)


@pytest.fixture(scope="module")
def expected():
  return make_engine().generate(ending(), 0, [ticket(i) for i in range(9)])


def test_logprobs_are_those_of_a_forward_pass_over_the_whole_episode(expected):
  turns = 0
  for i, group in enumerate(expected):
    for t in group:
      logprobs = expected_logprobs(ending(), ticket(i), t.tokens)
      np.testing.assert_allclose(t.logprobs[t.sampled], logprobs[t.sampled], atol=1e-5)
      assert not t.logprobs[~t.sampled].any() and set(t.versions) <= {0, types.NO_VERSION}
      assert t.sampled[-1] and t.tokens.size <= 11
      turns += len(t.turn_rewards)
  assert turns > 40


def test_a_turn_that_a_limit_ended_is_marked():
  made, spans = make_engine(), []
  act = made._episodes.act
  made._episodes.act = lambda episode, span: (spans.append(span), act(episode, span))
  made.generate(ending(), 0, [ticket(i) for i in range(9)])
  assert [span.cut for span in spans] == [int(s.tokens[-1]) not in STOPS.tokens for s in spans]
  assert {span.cut for span in spans} == {False, True}


class Recording(engine.Engine):
  """Keeps the places that are prefilled, by row: ticket and completion, or ticket alone."""

  def _write_next(self, params, rows, shape):
    before = [(row, row.cached) for row in rows]
    super()._write_next(params, rows, shape)
    for row, first in before:
      name = (row.group.ticket.ticket_id, row.index) if hasattr(row, "group") else None
      self.written.setdefault(name, []).extend(range(first, row.cached))


class Forgetful(Recording):
  """Computes the history again in each turn."""

  def _wait(self, completion, episode, span):
    super()._wait(completion, episode, span)
    completion.cached = 0


@pytest.mark.parametrize(("kind", "is_computed_again"), [(Recording, False), (Forgetful, True)])
def test_only_what_is_new_is_prefilled(kind, is_computed_again):
  made, tickets = make_engine(kind=kind), [ticket(i) for i in range(9)]
  made.written = {}
  again = 0
  for asked, group in zip(tickets, made.generate(ending(), 0, tickets), strict=True):
    for i, t in enumerate(group):
      places = made.written.pop((asked.ticket_id, i), [])
      own = [place - len(asked.prompt_tokens) for place in places]
      # The last token of a turn is computed with what the environment said behind it.
      inside = [k for k in own if k >= 0 and t.sampled[k] and t.sampled[k + 1]]
      again += len(inside) + len(places) - len(set(places))
  assert (again > 0) == is_computed_again


def test_the_first_turn_has_the_key_that_completions_of_one_turn_always_had():
  """So recorded runs of earlier releases can be repeated."""
  key = jax.random.key(5)
  for number in (0, 7, 2):
    key = jax.random.fold_in(key, number)
  asked = dataclasses.replace(ticket(7), kind=types.TRAIN)
  found = [generation._key(5, np.array(generation.key_numbers(asked, 2, n))) for n in range(3)]
  data = [jax.random.key_data(x).tolist() for x in (key, *found)]
  assert data[0] == data[1] and data[1] not in data[2:] and data[2] != data[3]


def test_what_the_environment_says_follows_from_what_the_policy_said(expected):
  """Told anew from the trajectory alone."""
  ends = set()
  for i, group in enumerate(expected):
    seed = episodes.seed_of(0, ticket(i))
    for t in group:
      bounds = np.flatnonzero(np.diff(t.sampled.astype(int))) + 1
      spans = np.split(t.tokens, bounds)
      own = [s for s, by in zip(spans, np.split(t.sampled, bounds), strict=True) if by[0]]
      first = answer(str(seed), []).text
      assert first == ("" if t.sampled[0] else Words().decode(spans[0].tolist()))
      ends.add(t.ended)
      if len(own) == len(t.turn_rewards):  # else an empty reply joined two turns
        said = [Words().decode(s.tolist()) for s in own]
        answers = [answer(str(seed), said[: n + 1]) for n in range(len(said))]
        assert t.turn_rewards == tuple(a.reward for a in answers)
        assert t.reward == pytest.approx(sum(t.turn_rewards))
        assert answers[-1].done == (t.ended == types.DONE)
        assert t.finished == (t.ended in (types.DONE, types.TURN_LIMIT))
  assert ends == {types.DONE, types.TURN_LIMIT, types.TOKEN_LIMIT}


@pytest.mark.parametrize(
  "changes",
  some(
    [dict(steps=2), dict(cache_tokens=72, episodes=40)], [dict(episodes=12), dict(cache_tokens=40)]
  ),
)
def test_samples_depend_on_the_answers_and_not_on_when_they_come(expected, changes):
  delays = iter(np.random.default_rng(0).integers(0, 7, 10_000).tolist())
  machine = make_engine(lambda: next(delays), **changes)
  assert_same(machine.generate(ending(), 0, [ticket(i) for i in range(9)]), expected)
  assert len(machine._pages) == machine._sizes.pages - 1 and machine.idle


@pytest.mark.timeout(60)
@pytest.mark.parametrize("changes", [{}, dict(cache_tokens=40, episodes=40)])
def test_completions_of_one_turn_beside_episodes_are_as_without_them(expected, changes):
  """So are the episodes, in whatever order they come."""
  delays = iter(np.random.default_rng(1).integers(0, 7, 10_000).tolist())
  machine = make_engine(lambda: next(delays), **changes)
  alone = [engine_test.ticket(i) for i in range(9)]
  of_one_turn = dict(max_tokens=SIZES["max_tokens"], page_tokens=4)
  plain = engine_test.make_engine(**of_one_turn).generate(ending(), 0, alone)
  mixed = [t for pair in zip(alone, [ticket(i) for i in range(9)], strict=True) for t in pair]
  found = machine.generate(ending(), 0, mixed)
  assert_same(found[::2], plain)
  assert_same(found[1::2], expected)
  assert not any(t.ended for group in found[::2] for t in group)
  assert len(machine._pages) == machine._sizes.pages - 1 and machine.idle


def test_all_time_of_an_episode_is_accounted_for():
  class Slow(Processes):
    def answers(self, seconds: float):
      time.sleep(0.003)
      return super().answers(seconds)

  world = Slow(lambda: 2)
  played = episodes.Episodes(lambda: world, words, LIMITS, seed=0)
  machine = engine.Engine(CONFIG, sizing.Sizes(**SIZES), stops=STOPS, seed=0, episodes=played)
  machine.generate(ending(), 0, [ticket(0)])  # compiles
  machine.add([ticket(i) for i in range(9)])
  begun, found = time.monotonic(), []
  while not machine.idle:
    for _, group in machine.step(ending(), 0):
      found += [(time.monotonic() - begun, t) for t in group]
    assert machine.busy <= 12
  for took, t in found:
    assert 0.009 * (1 + len(t.turn_rewards)) < t.seconds.world < took
    assert min(t.seconds) > 0 and sum(t.seconds) < took
  # Of those that began first, one was nowhere else; the step in which it ended takes time, too.
  assert max(sum(t.seconds) / took for took, t in found) > 0.5


def test_recorded_replies_give_the_same_episodes_without_environments(expected):
  numbers = range(9)
  groups = [types.Group(f"{i}", tuple(expected[i])) for i in numbers]
  lines = [json.loads(json.dumps(replies.row(group))) for group in groups]
  said = [tuple(map(replies.replies_of, line["episodes"])) for line in lines]
  tickets = [dataclasses.replace(ticket(i), replies=said[i]) for i in numbers]
  gone = episodes.Episodes(lambda: pytest.fail("played"), words, LIMITS, seed=0)
  made = engine.Engine(CONFIG, sizing.Sizes(**SIZES), stops=STOPS, seed=0, episodes=gone)
  again = made.generate(ending(), 0, tickets)
  assert_same(again, expected)
  judged = lambda t: (t.reward, t.turn_rewards, t.ended, t.versions.tolist())
  for group, before in zip(again, expected, strict=True):
    assert list(map(judged, group)) == list(map(judged, before))


def test_turns_have_keys_of_their_own():
  """A policy that says the same prompt again would else repeat itself."""
  keys = {generation_key(turn) for turn in range(4)}
  assert len(keys) == 4
  token_keys = {generation_key(0, token) for token in range(20)}
  assert not keys & token_keys


def generation_key(turn: int, token: int | None = None) -> tuple:
  import jax

  from offpolicy_rl.sampler import generation

  numbers = np.array(generation.key_numbers(ticket(3), 1, turn), np.uint32)
  key = generation._key(0, numbers)
  if token is not None:
    key = jax.random.fold_in(key, token)
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.parametrize("refreshed", some([True], [False]))
def test_waiting_episodes_go_on_with_other_parameters(refreshed):
  old, new = ending(), ending() | {"embedding": ending()["embedding"] * 0.7}
  delays = iter(np.random.default_rng(0).integers(0, 4, 10_000).tolist())
  machine = make_engine(lambda: next(delays), prefill_tokens=3, steps=2)
  machine.add([ticket(i) for i in range(9)])
  found = []
  while not (machine._running and sum(bool(c.spans) for c in machine._waiting.values()) > 4):
    found += machine.step(old, 0)
  if refreshed:
    machine.refresh(new)
  while not machine.idle:
    found += machine.step(new, 1)
  gaps, mixed = [], 0
  for t, group in found:
    for trajectory in group:
      by = [expected_logprobs(p, t, trajectory.tokens) for p in (old, new)]
      logprobs = np.where(trajectory.versions == 1, by[1], by[0])
      gaps.append(np.abs(logprobs - trajectory.logprobs)[trajectory.sampled].max())
      mixed += {0, 1} <= set(trajectory.versions.tolist())
  assert mixed > 4 and len(found) == 9
  assert (max(gaps) < 1e-5) == refreshed


def test_candidates_of_what_the_environment_wrote_are_zero():
  made = make_engine(candidates=4).generate(ending(), 0, [ticket(i) for i in range(3)])
  holes = 0
  for i, group in enumerate(made):
    for t in group:
      likeliest = expected_candidates(ending(), ticket(i), t.tokens, 1.0, 4)
      np.testing.assert_array_equal(t.candidates.tokens[t.sampled], likeliest.tokens[t.sampled])
      assert not t.candidates.tokens[~t.sampled].any()
      holes += int((~t.sampled).sum())
  assert holes > 10


def test_progress_grows_while_episodes_wait():
  machine = make_engine(lambda: 1)
  machine.add([ticket(i) for i in range(4)])
  before = machine.progress
  while not machine.idle:
    machine.step(ending(), 0)
    now = machine.progress
    assert all(now[name] >= before[name] for name in now)
    before = now
