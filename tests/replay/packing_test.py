"""Layouts: nothing is lost or moved, sizes are bounded, and the model says the same of all."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.model import policy
from offpolicy_rl.replay import packing
from tests.model.decoder_test import CONFIG, random_params
from tests.params import some

PROMPT, COMPLETION = 6, 5
lengths = st.integers(1, COMPLETION)
group = st.tuples(st.integers(1, PROMPT), st.lists(lengths, min_size=1, max_size=5))


def completions_of(groups, seed=0, *, rewinds=False):
  """Random tokens for (prompt tokens, [completion tokens]) per group; rewinds: random ones."""
  rng = np.random.default_rng(seed)
  draw = lambda size: rng.integers(0, CONFIG.vocab_size, size).astype(np.int32)
  made = []
  for number, (prompt_size, sizes) in enumerate(groups):
    prompt = draw(prompt_size)
    for size in sizes:
      back = random_rewinds(rng, size) if rewinds else ()
      made.append(packing.Completion(number, prompt, draw(size), rewinds=back))
  return made


def random_rewinds(rng, size: int) -> list[types.Rewind]:
  rewinds, seen = [], []
  for at in range(size):
    if seen and rng.random() < 0.4:
      to = rng.integers(len(seen))
      rewinds.append(types.Rewind(at, int(seen[to])))
      del seen[to:]
    seen.append(at)
  return rewinds


def seen_before(completion, t: int) -> list[int]:
  """Tokens that a token of a completion sees before it, one by one."""
  seen = []
  for at in range(t + 1):
    for rewind in completion.rewinds:
      if rewind.at == at:
        del seen[seen.index(rewind.to) :]
    seen.append(at)
  return [*completion.prompt, *completion.tokens[seen[:-1]]]


def seen_by(rows, row: int, column: int) -> list[int]:
  """Tokens up to and with this one, by the rule of `types.PackedRows`, in order of position."""
  seen = [
    (rows.positions[row, j], rows.tokens[row, j])
    for j in range(column + 1)
    if column < rows.ends[row, j]
  ]
  positions, tokens = zip(*sorted(seen), strict=True)
  assert list(positions) == list(range(len(seen)))
  return list(tokens)


@settings(max_examples=150, deadline=None)
@given(
  groups=st.lists(group, min_size=1, max_size=7),
  layout=st.sampled_from(packing.LAYOUTS),
  room=st.integers(0, 40),
  buckets=st.integers(1, 5),
  shards=st.sampled_from([1, 4]),
  rewinds=st.booleans(),
)
def test_every_scored_token_sees_its_prompt_and_its_own_past(
  groups, layout, room, buckets, shards, rewinds
):
  completions = completions_of(groups, rewinds=rewinds)
  columns = PROMPT + COMPLETION + (0 if layout == packing.PADDED else room)
  limits = packing.Limits(layout, PROMPT, COMPLETION, columns, shards, buckets)
  rows, places = packing.lay_out([completions], limits)
  rows, places = jax.tree.map(lambda x: x[0], rows), places[0]
  count, scored = rows.sources.shape
  assert count % shards == 0 and rows.tokens.shape[1] <= columns
  assert count <= -(-packing._most_rows(completions, limits) // shards) * shards
  used = set()
  for completion, where in zip(completions, places, strict=True):
    for t in range(completion.tokens.size):
      row, score = divmod(int(where[t]), scored)
      # The first token behind a rewind is the environment's, in no loss: scored anywhere.
      if all(rewind.at != t for rewind in completion.rewinds):
        past = seen_by(rows, row, rows.sources[row, score])
        assert past == seen_before(completion, t)
      assert rows.targets[row, score] == completion.tokens[t]
      used.add((row, score))
  assert len(used) == sum(c.tokens.size for c in completions)


def copies_per_row(rows):
  return [len(set(row[row > 0])) for row in rows.segments[0]]


def test_layouts_do_what_their_names_say():
  completions = completions_of([(6, [5, 5, 5, 5]), (4, [1, 1, 1, 1])])
  tokens = {}
  for layout in packing.LAYOUTS:
    columns = 11 if layout == packing.PADDED else 26
    limits = packing.Limits(layout, PROMPT, COMPLETION, columns)
    rows, _ = packing.lay_out([completions], limits)
    tokens[layout] = rows.tokens.shape[1:], int(np.sum(rows.segments > 0)), copies_per_row(rows)
  assert tokens["padded"] == ((8, 11), 8 * 6 - 8 + 24, [1] * 8)
  assert tokens["packed"][1] == tokens["padded"][1]  # every completion has its own prompt
  assert tokens["packed"][0] == (4, 26) and tokens["packed"][2] == [2, 2, 4, 0]
  # One copy of each prompt: 6 + 20 and 4 + 4 tokens.
  assert tokens["shared"] == ((2, 26), 34, [1, 1])


def test_sizes_come_from_a_short_list():
  """However long the completions are, a step is compiled for a few shapes only."""
  rng = np.random.default_rng(0)
  shapes = collections.Counter()
  limits = packing.Limits(packing.PACKED, PROMPT, COMPLETION, 33, buckets=4)
  for seed in range(200):
    sizes = rng.integers(1, rng.integers(2, COMPLETION + 2), 16)
    rows, _ = packing.lay_out([completions_of([(3, sizes)], seed)], limits)
    shapes[rows.tokens.shape + rows.sources.shape] += 1
  assert 2 <= len(shapes) <= 16
  one = packing.Limits(packing.PACKED, PROMPT, COMPLETION, 33)
  found = {
    packing.lay_out([completions_of([(3, [k] * 16)])], one)[0].tokens.shape for k in range(1, 6)
  }
  assert found == {(1, 6, 33)}


def with_local_layers(window: int):
  if not window:
    return CONFIG
  local = dict(local_layers=(True, False, True), local_rope_theta=100.0)
  return dataclasses.replace(CONFIG, sliding_window=window, **local)


def stats_and_gradient(config, completions, limits, chosen):
  """Log-probabilities and entropies of tokens, and the gradient of their sum with random weights.

  `chosen(places)`: those of the tokens, from `places` [completions, tokens] of `packing.lay_out`.
  """
  rows, places = packing.lay_out([completions], limits)
  rows, places = jax.tree.map(lambda x: x[0], rows), chosen(places[0])
  weights = np.random.default_rng(1).normal(size=(2, *places.shape))

  def total(params):
    stats = policy.token_stats(config, params, rows, 0.8)
    of_chosen = [x.reshape(-1)[places] for x in (stats.logprobs, stats.entropy)]
    return sum((w * x).sum() for w, x in zip(weights, of_chosen, strict=True)), of_chosen

  (_, stats), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(random_params(config))
  return stats, gradient


def assert_same(found, expected):
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize(("layout", "window"), some([(packing.SHARED, 3)], [(packing.PACKED, 0)]))
def test_the_model_says_the_same_of_all_layouts(layout, window):
  """Values and gradients, up to rounding; with local layers, too."""
  config = with_local_layers(window)
  completions = completions_of([(6, [5, 4, 1]), (2, [3, 3, 5, 2]), (5, [1, 5])], seed=3)
  written = np.arange(COMPLETION) < np.array([[c.tokens.size] for c in completions])
  plain, other = (
    stats_and_gradient(config, completions, limits, lambda places: places[written])
    for limits in (
      packing.Limits(packing.PADDED, PROMPT, COMPLETION, 11),
      packing.Limits(layout, PROMPT, COMPLETION, 25),
    )
  )
  assert_same(other, plain)


@pytest.mark.parametrize(("layout", "window"), some([(packing.SHARED, 3)], [(packing.PADDED, 0)]))
def test_what_a_context_has_dropped_is_not_read(layout, window):
  """Each token as in a sequence of its own that has only what it sees; gradients, too."""
  config = with_local_layers(window)
  completions = completions_of([(4, [5, 4, 5]), (2, [3, 5])], seed=5, rewinds=True)
  assert sum(len(c.rewinds) for c in completions) >= 5

  apart = [
    (n, t)
    for n, completion in enumerate(completions)
    for t in range(completion.tokens.size)
    if all(rewind.at != t for rewind in completion.rewinds)
  ]
  alone = [
    packing.Completion(
      k, np.array(seen_before(completions[n], t), np.int32), completions[n].tokens[t : t + 1]
    )
    for k, (n, t) in enumerate(apart)
  ]
  limits = packing.Limits(layout, PROMPT, COMPLETION, 26 if window else 11)
  index = tuple(np.transpose(apart))
  found = stats_and_gradient(config, completions, limits, lambda places: places[index])
  limits = packing.Limits(packing.PADDED, PROMPT + COMPLETION, 1, 12)
  expected = stats_and_gradient(config, alone, limits, lambda places: places[:, 0])
  assert_same(found, expected)
