"""Generation: the right distribution, the right logprobs, and nothing but the key decides."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.model import policy, sharding
from offpolicy_rl.sampler import engine, engines, generation, sampling, sizing, stopping
from tests.model.decoder_test import CONFIG, random_params
from tests.params import some
from tests.rows import whole_rows

EOS = 1


STOPS = stopping.Stops((EOS,))
COLUMNS = 16  # of every row for the model: compiled once

token_stats = jax.jit(policy.token_stats, static_argnums=0)
apply = jax.jit(policy.apply, static_argnums=0)


def plain():
  """Parameters of a policy that knows nothing."""
  return random_params(CONFIG)


@functools.cache
def ending():
  """The same, but some completions end early."""
  return plain() | {"embedding": plain()["embedding"].at[EOS].multiply(3.0)}


def expected_logprobs(params, t: types.Ticket, tokens, temperature=1.0) -> np.ndarray:
  """Log-probabilities of a completion's tokens, from a forward pass over the row."""
  row = np.concatenate([t.prompt_tokens, tokens])
  padded = np.pad(row, (0, COLUMNS - row.size))[None]
  logprobs = token_stats(CONFIG, params, whole_rows(padded), temperature).logprobs[0]
  return np.asarray(logprobs[t.prompt_tokens.size - 1 : row.size - 1])


def next_logits(row: list[int]) -> np.ndarray:
  """Logits of the token after a row."""
  padded = jnp.array([row + [0] * (COLUMNS - len(row))])
  return np.asarray(apply(CONFIG, plain(), padded, jnp.arange(COLUMNS)[None])[0][0, len(row) - 1])


def make_engine(seed=0, stops=STOPS, truncation=sampling.NONE, mesh=None, **sizes) -> engine.Engine:
  few = dict(slots=12, group_size=3, max_prompt_tokens=5, max_tokens=6, page_tokens=4, steps=4)
  of = sizing.Sizes(**few | sizes)
  return engine.Engine(CONFIG, of, stops=stops, seed=seed, truncation=truncation, mesh=mesh)


def ticket(index: int, count=3, temperature=1.0, kind=types.TRAIN, environment="") -> types.Ticket:
  rng = np.random.default_rng(index)
  prompt = rng.integers(2, 40, rng.integers(1, 6)).astype(np.int32)
  return types.Ticket(
    f"{kind}/{index}", kind, 0, index, prompt, "", 0, 0, count, temperature, environment
  )


def test_logprobs_are_those_of_a_full_forward_pass():
  for temperature in (1.0, 0.6):
    tickets = [ticket(i, temperature=temperature) for i in range(4)]
    for t, group in zip(tickets, make_engine().generate(plain(), 7, tickets), strict=True):
      for trajectory in group:
        expected = expected_logprobs(plain(), t, trajectory.tokens, temperature)
        np.testing.assert_allclose(expected, trajectory.logprobs, atol=1e-5)
        assert set(trajectory.versions) == {7}


@pytest.mark.parametrize("sizes", some([{"steps": 1, "slots": 7, "cache_tokens": 40}], [{}]))
def test_candidates_are_the_likeliest_of_a_full_forward_pass_and_change_no_sample(sizes):
  """Also of completions that were interrupted, and cut at a stop text."""
  stops = stopping.Stops((EOS,), ("ab",), letters)
  tickets = [ticket(i, temperature=0.7) for i in range(6)]
  plain = make_engine(stops=stops).generate(ending(), 0, tickets)
  found = make_engine(stops=stops, candidates=4, **sizes).generate(ending(), 0, tickets)
  assert_same(plain, found)
  for t, group in zip(tickets, found, strict=True):
    for trajectory in group:
      expected = expected_candidates(ending(), t, trajectory.tokens, 0.7, 4)
      np.testing.assert_array_equal(trajectory.candidates.tokens, expected.tokens)
      np.testing.assert_allclose(trajectory.candidates.logprobs, expected.logprobs, atol=1e-5)


def expected_candidates(params, t: types.Ticket, tokens, temperature, number) -> types.Candidates:
  """From a forward pass over the row."""
  row = np.concatenate([t.prompt_tokens, tokens])
  padded = np.pad(row, (0, COLUMNS - row.size))[None]
  logits = apply(CONFIG, params, padded, jnp.arange(COLUMNS)[None])[0][0]
  log_p = np.asarray(jax.nn.log_softmax(logits / temperature))
  log_p = log_p[t.prompt_tokens.size - 1 : row.size - 1]
  likeliest = np.argsort(-log_p, axis=-1)[:, :number]
  return types.Candidates(likeliest, np.take_along_axis(log_p, likeliest, -1))


def test_evaluation_records_no_candidates():
  tickets = [ticket(0, kind=types.EVAL, temperature=0.0), ticket(0)]
  greedy, sampled = make_engine(candidates=4).generate(plain(), 0, tickets)
  assert {t.candidates for t in greedy} == {None}
  assert all(t.candidates.tokens.shape == (t.tokens.size, 4) for t in sampled)


def test_completions_end_at_the_end_token_or_at_the_limit():
  found = [
    t for g in make_engine().generate(ending(), 0, [ticket(i) for i in range(30)]) for t in g
  ]
  ended = [t for t in found if t.finished]
  cut = [t for t in found if not t.finished]
  assert ended and cut
  assert all(t.tokens[-1] == EOS and EOS not in t.tokens[:-1] for t in ended)
  assert all(t.tokens.size == 6 and EOS not in t.tokens for t in cut)


def test_a_completion_depends_on_its_key_only():
  """Other neighbours, another slot, another order: the same bits."""
  tickets = [ticket(i) for i in range(4)]
  together = make_engine().generate(plain(), 0, tickets)
  alone = [make_engine().generate(plain(), 0, [t])[0] for t in tickets]
  backwards = make_engine().generate(plain(), 0, tickets[::-1])[::-1]
  for a, b, c in zip(together, alone, backwards, strict=True):
    for x, y, z in zip(a, b, c, strict=True):
      for other in (y, z):
        np.testing.assert_array_equal(x.tokens, other.tokens)
        np.testing.assert_array_equal(x.logprobs, other.logprobs)


def test_seed_kind_group_and_completion_each_change_the_sample():
  tokens = lambda e, t: [x.tokens.tolist() for x in e.generate(plain(), 0, [t])[0]]
  base = tokens(make_engine(), ticket(0))
  assert len({tuple(x) for x in base}) > 1
  assert base != tokens(make_engine(seed=1), ticket(0))
  assert base != tokens(make_engine(), ticket(0, kind=types.EVAL))
  assert base != tokens(make_engine(), dataclasses.replace(ticket(0), group_index=5))
  assert base == tokens(make_engine(), dataclasses.replace(ticket(0), ticket_id="other", step=9))


def test_every_token_has_a_key_of_its_own():
  """From a uniform distribution one key would draw one token again and again."""
  [group] = make_engine().generate(random_params(CONFIG), 0, [ticket(0, temperature=1e6)])
  assert max(len(set(completion.tokens.tolist())) for completion in group) > 2


def test_greedy_takes_the_likeliest_token():
  [[found]] = make_engine().generate(plain(), 0, [ticket(3, count=1, temperature=0.0)])
  row = list(ticket(3).prompt_tokens)
  for token in found.tokens:
    assert np.argmax(next_logits(row)) == token
    row.append(int(token))
  np.testing.assert_array_equal(found.logprobs, 0)


def tokens_of(groups) -> list:
  return [[t.tokens.tolist() for t in group] for group in groups]


def assert_same(groups, others):
  assert tokens_of(groups) == tokens_of(others)
  for group, other in zip(groups, others, strict=True):
    for a, b in zip(group, other, strict=True):
      np.testing.assert_array_equal(a.logprobs, b.logprobs)
      assert a.finished == b.finished


COUNTS = [12, 1, 1, 1, 1, 1, 1, 20, 5, 5, 5]  # completions of tickets


@pytest.fixture(scope="module")
def expected():
  tickets = [ticket(i, count=count) for i, count in enumerate(COUNTS)]
  return make_engine(slots=60).generate(ending(), 0, tickets)


@pytest.mark.parametrize(
  "sizes",
  some(
    [{"steps": 1, "slots": 7, "page_tokens": 2, "cache_tokens": 32}],
    [
      {"steps": 1, "slots": 7},
      {"page_tokens": 2, "cache_tokens": 32},
      {"slots": 1},
      {"prefill_tokens": 2},
      {"page_tokens": 64},
    ],
  ),
)
def test_what_is_generated_does_not_depend_on_the_sizes(sizes, expected):
  """Slots are used again, completions wait, leave for want of pages and begin again."""
  tickets = [ticket(i, count=count) for i, count in enumerate(COUNTS)]
  assert [len(group) for group in expected] == COUNTS
  machine = make_engine(**sizes)
  for found in (
    machine.generate(ending(), 0, tickets),
    machine.generate(ending(), 0, tickets[::-1])[::-1],
  ):
    assert tokens_of(found) == tokens_of(expected)
    for group, other in zip(found, expected, strict=True):
      for a, b in zip(group, other, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
  assert len(machine._pages) == machine._sizes.pages - 1  # none is lost


def test_what_can_not_fit_is_refused_by_name():
  long = dataclasses.replace(ticket(0), prompt_tokens=np.ones(6, np.int32))
  with pytest.raises(ValueError, match=r"train/0: prompt of 6 tokens, expected 1 to 5"):
    make_engine().add([long])
  with pytest.raises(ValueError, match="cache_tokens: got 20, expected at least 24"):
    make_engine(cache_tokens=20)


def test_new_weights_do_not_compile_again():
  machine = make_engine()
  machine.generate(plain(), 0, [ticket(0)])
  before = generation.decode._cache_size()
  machine.generate(ending(), 1, [ticket(1), ticket(2)])
  assert generation.decode._cache_size() == before


def letters(tokens) -> str:
  return "".join(chr(ord("a") + token % 26) for token in tokens)


@pytest.mark.parametrize("steps", some([4], [1]))
def test_a_completion_ends_where_a_stop_text_appears(steps):
  params, tickets = plain(), [ticket(i) for i in range(8)]
  whole = make_engine().generate(params, 0, tickets)
  text = next(letters(t.tokens[2:4]) for group in whole for t in group if t.tokens.size > 4)
  stops = stopping.Stops((EOS,), (text, "never"), letters)
  found = make_engine(stops=stops, slots=5, steps=steps).generate(params, 0, tickets)
  ended = 0
  for group, full in zip(found, whole, strict=True):
    for a, b in zip(group, full, strict=True):
      at = letters(b.tokens).find(text)
      length = b.tokens.size if at < 0 else at + len(text)
      np.testing.assert_array_equal(a.tokens, b.tokens[:length])
      np.testing.assert_allclose(a.logprobs, b.logprobs[:length], atol=1e-5)
      assert a.versions.size == length and a.finished == (b.finished or at >= 0)
      ended += at >= 0
  assert ended


def test_several_tokens_can_end_a_completion():
  params, tickets = plain(), [ticket(i) for i in range(8)]
  first = make_engine().generate(params, 0, tickets)[0][0]
  other = next(int(token) for token in first.tokens if token != EOS)
  found = make_engine(stops=stopping.Stops((EOS, other))).generate(params, 0, tickets)
  assert found[0][0].tokens[-1] == other and found[0][0].finished
  for trajectory in (t for group in found for t in group):
    assert not {EOS, other} & set(trajectory.tokens[:-1].tolist())


def test_the_recorded_logprob_is_that_of_the_truncated_distribution():
  how = sampling.Truncation(top_k=3)
  [group] = make_engine(truncation=how).generate(plain(), 0, [ticket(2)])
  for trajectory in group:
    row = list(ticket(2).prompt_tokens)
    for token, logprob in zip(trajectory.tokens, trajectory.logprobs, strict=True):
      logits = next_logits(row)
      best = np.sort(np.array(logits, np.float64))[-3:]
      assert logits[token] >= best[0]
      assert logprob == pytest.approx(float(logits[token]) - np.log(np.exp(best).sum()), abs=1e-5)
      row.append(int(token))


@pytest.mark.parametrize("refreshed", [True, False])
def test_completions_go_on_with_other_parameters(refreshed):
  """With a cache computed again, as if the new parameters had read all that came before."""
  old, new = plain(), random_params(CONFIG, 1)
  machine = make_engine(slots=5, steps=2, max_tokens=9, prefill_tokens=3)
  tickets = {t.ticket_id: t for t in (ticket(i) for i in range(5))}
  machine.add(list(tickets.values()))
  found = machine.step(old, 0) + machine.step(old, 0)
  if refreshed:
    machine.refresh(new)
  while not machine.idle:
    found += machine.step(new, 1)
  gaps, mixed = [], 0
  for t, group in found:
    for trajectory in group:
      by_old, by_new = (expected_logprobs(p, t, trajectory.tokens) for p in (old, new))
      expected = np.where(trajectory.versions, by_new, by_old)
      gaps.append(np.abs(expected - trajectory.logprobs).max())
      mixed += len(set(trajectory.versions)) == 2
  assert mixed > 2 and len(found) == 5
  assert (max(gaps) < 1e-5) == refreshed


def test_room_is_foreseen_where_completions_reach_their_limit():
  made, params = make_engine(), plain()
  made.add([ticket(i) for i in range(4)])
  assert (made.room, made.room_soon) == (0, 0)
  made.step(params, 0)
  assert made.room < made.room_soon == 12  # four of six tokens are there
  made.step(params, 0)
  assert made.room == 12
  made.add([ticket(4), ticket(5)])
  assert made.room == made.room_soon == 6  # two to come, no token made


def test_progress_grows_with_every_step_of_a_ticket_until_it_is_complete():
  made, params = make_engine(), plain()
  made.add([ticket(i) for i in range(9)])
  assert set(made.progress.values()) == {0} and len(made.progress) == 9
  before, complete = made.progress, []
  while not made.idle:
    groups = made.step(params, 0)
    complete += [t.ticket_id for t, _ in groups]
    now = made.progress
    assert now.keys() == before.keys() - {t.ticket_id for t, _ in groups}
    assert all(now[name] >= before[name] for name in now)
    assert any(now[name] > before[name] for name in now) or groups
    before = now
  assert len(complete) == 9 and made.progress == {}


def test_an_engine_over_two_devices_and_two_engines_sample_the_same():
  params, tickets = plain(), [ticket(i) for i in range(9)]
  expected = make_engine().generate(params, 0, tickets)
  meshes = [sharding.make_mesh(tensor=2, devices=jax.devices()[at : at + 2]) for at in (0, 2)]
  each = [make_engine(mesh=mesh, slots=6) for mesh in meshes]
  own = [jax.device_put(params, policy.param_shardings(mesh, params)) for mesh in meshes]
  assert own[1]["blocks"]["w_q"].sharding.shard_shape((3, 32, 4, 8)) == (3, 32, 2, 8)
  assert each[1]._pool.k_LxYxKxSxC.sharding.shard_shape((3, 9, 2, 4, 8)) == (3, 9, 1, 4, 8)
  both = engines.Engines(each)
  both.add(tickets)
  assert both.room == 0
  assert all(not one.idle for one in each)  # the work was dealt out
  found = []
  while not all(one.idle for one in each):
    found += both.step(own, 0)
  by_id = {t.ticket_id: group for t, group in found}
  assert tokens_of(by_id[t.ticket_id] for t in tickets) == tokens_of(expected)
  for t, group in zip(tickets, expected, strict=True):
    for a, b in zip(by_id[t.ticket_id], group, strict=True):
      np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
