"""The lag laboratory measures what it says: exact evaluation, exact lag, the study end to end."""

import dataclasses
import functools
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lag_entries, lag_lab, lag_page, lag_training
from benchmarks import lag_world as world
from benchmarks.lag_entries import Growth
from offpolicy_rl import losses
from offpolicy_rl.losses import advantages, reductions

TINY = lag_entries.Study(
  entries=("grpo", "mean"),
  settings=((0, False), (64, True)),
  tuning_seeds=(5, 6),
  seeds=(0, 1),
  learning_rates=(3e-3, 1e-2),
  values=1,
  extensions=1,
  steps=96,
)
SEEN = lag_training.Seen(
  jnp.tile(jnp.array([0.0, 1.0]), (world.PROMPTS_PER_STEP, world.GROUP_SIZE // 2)),
  jnp.zeros(world.PROMPTS_PER_STEP * world.GROUP_SIZE),
  jnp.float32(20),
)
by_entry = pytest.mark.parametrize("entry", lag_entries.ENTRIES, ids=lambda e: e.label)


def test_no_algorithm_is_studied_twice():
  """Whatever their numbers are set to, two entries never have the same gradient up to a factor."""
  sizes = {"group_size": world.GROUP_SIZE, "max_tokens": world.LENGTH}
  found = {}
  for entry in lag_entries.ENTRIES:
    if entry.kind == "rule":  # its choices change from batch to batch
      continue
    set_to = [
      lag_training.with_value(entry.choices(), entry.tuned, value, SEEN) for value in entry.values
    ]
    found[entry.label] = {
      reductions.reduced(dataclasses.replace(choices, **sizes)).choices for choices in set_to
    }
  for (a, of_a), (b, of_b) in itertools.combinations(found.items(), 2):
    assert not of_a & of_b, f"{a} and {b}"


def test_exact_evaluation_equals_enumeration(monkeypatch):
  """All 8^3 completions of 3 tokens, one by one."""
  monkeypatch.setattr(world, "LENGTH", 3)
  teacher = world.make_teacher(jax.random.key(0))
  prompts = world.draw_prompts(teacher, jax.random.key(1), 4)._replace(
    needed=jnp.array([0, 1, 2, 3])
  )
  params = jax.tree.map(lambda x: 3 * x, world.init_policy(jax.random.key(2)))
  exact = world.evaluate(params, prompts)
  tables, good = np.asarray(world.tables(params, prompts.features)), np.asarray(prompts.good)
  for p in range(4):
    chances, right = [], []
    for tokens in itertools.product(range(world.VOCABULARY), repeat=3):
      steps = list(zip((world.START, *tokens), tokens, strict=False))
      chances.append(math.exp(sum(tables[p, a, b] for a, b in steps)))
      right.append(sum(good[p, a, b] for a, b in steps) >= p)
    chances, right = np.array(chances), np.array(right)
    among = chances[right] / chances[right].sum()
    assert chances.sum() == pytest.approx(1, rel=1e-4)
    assert exact.accuracy[p] == pytest.approx(chances[right].sum(), rel=1e-4)
    assert exact.entropy[p] == pytest.approx(-(chances * np.log(chances)).sum(), rel=1e-4)
    assert exact.entropy_correct[p] == pytest.approx(-(among * np.log(among)).sum(), rel=1e-4)


@pytest.mark.long
def test_samples_follow_the_policy():
  teacher = world.make_teacher(jax.random.key(0))
  params = jax.tree.map(lambda x: 2 * x, world.init_policy(jax.random.key(2)))
  keys = jax.random.split(jax.random.key(3), 300)
  batch = jax.vmap(lambda key: world.sample(params, teacher, key, 0))(keys)
  prompts = world.draw_prompts(teacher, jax.random.key(4), 3000)
  exact = world.evaluate(params, prompts)
  drawn = -batch.logprobs.sum(-1)
  error = 4 * drawn.std() / math.sqrt(300 * world.PROMPTS_PER_STEP)
  assert drawn.mean() == pytest.approx(float(exact.entropy.mean()), abs=float(error))
  spread = 4 * batch.rewards.std() / math.sqrt(300 * world.PROMPTS_PER_STEP)
  assert batch.rewards.mean() == pytest.approx(float(exact.accuracy.mean()), abs=float(spread))
  again = jax.vmap(lambda b: world.logprobs(params, b))(batch)
  np.testing.assert_allclose(again, batch.logprobs, rtol=1e-5)


@pytest.mark.long
def test_every_lane_has_exactly_its_lag():
  lanes = [(0, False), (4, False), (64, False), (16, True), (64, True)]
  lag, periodic = zip(*lanes, strict=True)
  zeros = jnp.zeros(5)
  history = lag_training.train(
    losses.choose("reinforce"),
    96,
    "",
    lag_training.Lane(
      jnp.zeros(5, int), jnp.array(lag), jnp.array(periodic), jnp.full(5, 1e-3), zeros, zeros
    ),
  )
  for lane, found in zip(lanes, history.lag, strict=True):
    steps = np.arange(96)
    used = steps % lane[0] if lane[1] else np.minimum(steps, lane[0])
    np.testing.assert_allclose(found[1:], used.reshape(3, 32).mean(axis=1), err_msg=str(lane))
  # At lag 0 the batch is the policy's own.
  np.testing.assert_allclose(history.ess[0, 1:], 1.0, rtol=1e-4)
  assert history.ess[2, 3] < 0.999


@by_entry
def test_a_value_may_differ_from_lane_to_lane(entry):
  """Every entry can be traced with its value as an array; a field nobody reads would be a typo."""
  params = jax.eval_shape(world.init_policy, jax.random.key(0))
  batch = jax.eval_shape(
    lambda params: world.sample(
      params, world.make_teacher(jax.random.key(0)), jax.random.key(1), jnp.int32(0)
    ),
    params,
  )
  step = functools.partial(lag_training._gradient, entry.choices(), entry.tuned)
  gradient, _ = jax.eval_shape(step, jnp.float32(0.7), params, batch, jnp.int32(20))
  assert gradient == params
  before = entry.choices()
  after = lag_training.with_value(before, entry.tuned, 0.3, SEEN)
  changed = {
    f.name for f in dataclasses.fields(after) if getattr(after, f.name) != getattr(before, f.name)
  }
  assert changed <= after.used() and bool(changed) == bool(entry.tuned)


def test_a_rule_sets_what_its_name_says():
  mean = losses.choose("beta_shift", kappa=0.0, beta=0.01)
  set_to = lambda tuned, value, lag: lag_training.with_value(
    mean, tuned, value, SEEN._replace(lag=jnp.float32(lag))
  )
  assert set_to("beta_x_lag", 1.0, 20).beta == pytest.approx(0.05)
  assert set_to("beta_x_lag", 1.0, 200).beta == pytest.approx(0.01)
  assert set_to("beta_x_lag", 1.0, 0).beta == pytest.approx(1.0)
  assert set_to("shift_x_lag", 1.0, 20).shift == pytest.approx(0.05)
  both = set_to("beta=beta1", 0.3, 20)
  assert both.beta == both.beta1 == 0.3
  assert set_to("beta=beta1, or mean", 0.3, 20).beta1 == lag_training.MEAN_BETA1
  below = SEEN._replace(log_ratios=SEEN.log_ratios - 2)  # lambda: 0.5 - 0.8 + 0.6
  assert lag_training.with_value(mean, "beta=beta1, or mean", 0.3, below).beta1 == np.float32(0.3)
  assert set_to("shift", 0.3, 20) == dataclasses.replace(mean, shift=0.3)


def test_the_mean_replaces_vhat_only_where_lambda_is_negative():
  """The rule's lambda is that which the objective measures; past the switch vhat is the mean."""
  key = jax.random.key(3)
  rewards = jax.random.bernoulli(key, 0.4, SEEN.rewards.shape).astype(jnp.float32)
  groups = jnp.repeat(jnp.arange(len(rewards)), world.GROUP_SIZE)
  beta = 0.05
  advantage = advantages.vhat(rewards.ravel(), groups, beta1=beta)
  assert jnp.mean(advantage) < 0
  border = jnp.mean(advantage) / beta  # at this mean log-ratio lambda is 0
  for u, kept in ((border - 0.01, True), (border + 0.01, False)):
    seen = SEEN._replace(rewards=rewards, log_ratios=jnp.full(rewards.size, u))
    choices = losses.choose("oapl")
    beta1 = lag_training.with_value(choices, "beta=beta1, or mean", beta, seen).beta1
    assert (float(beta1) == pytest.approx(beta)) == kept
  found = advantages.vhat(rewards.ravel(), groups, beta1=lag_training.MEAN_BETA1)
  mean = rewards - jnp.mean(rewards, axis=1, keepdims=True)
  np.testing.assert_allclose(found, mean.ravel(), atol=2e-4)


@pytest.mark.long
def test_values_of_lanes_do_what_values_of_choices_do():
  """One program with the number per lane trains as programs with the number compiled in."""
  lanes = lag_training.Lane(
    *(jnp.zeros(2, int), jnp.full(2, 4), jnp.zeros(2, bool), jnp.full(2, 1e-2)),
    value=jnp.array([0.01, 0.1]),
    kappa=jnp.array([0.0, 1.0]),
  )
  mean = losses.choose("beta_shift", kappa=0.0)
  together = lag_training.train(mean, 64, "beta", lanes)
  for i, (beta, kappa) in enumerate([(0.01, 0.0), (0.1, 1.0)]):
    alone = dataclasses.replace(mean, beta=beta, kappa=kappa)
    plain = lanes._replace(kappa=jnp.zeros(2))
    found = lag_training.train(alone, 64, "", plain)
    np.testing.assert_allclose(together.accuracy[i], found.accuracy[i], rtol=1e-4)
    np.testing.assert_allclose(together.lambda_hat[i, 1:], found.lambda_hat[i, 1:], atol=1e-5)


@pytest.mark.long
def test_a_small_study_runs_resumes_and_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(lag_lab, "LANES", 4)
  pytest.importorskip("matplotlib")
  folder = tmp_path / "tiny"
  folder.mkdir()
  assert "time is up" in lag_lab.run_entry("mean", TINY, folder, 0.0)
  for label in TINY.entries:
    assert "done before" not in lag_lab.run_entry(label, TINY, folder, math.inf)
    assert "done before" in lag_lab.run_entry(label, TINY, folder, time.time())
  longer = dataclasses.replace(TINY, steps=128)
  assert lag_lab.saved("mean", longer, folder) is None, "run under other settings"
  results = [lag_lab.saved(label, TINY, folder) for label in TINY.entries]
  lag_page.write(results, "x", TINY, tmp_path, "tiny")
  page = (tmp_path / "tiny.md").read_text()
  grpo, mean = (result["reports"] for result in results)
  row = mean["tuned"][1]
  assert row["setting"] == [64, True] and row["value"] == 0.003
  assert f"{sum(row['accuracy']) / 2:.3f} ±" in page and "periodic 64" in page
  assert mean["triple"][1]["rate"] == pytest.approx(3 * row["rate"], rel=1e-2)
  assert "published" in grpo and "published" not in mean, "shift_1 stands for the preset"
  assert results[1]["kappas"]["1.0"][1]["entropy"] != row["entropy"]
  tried = {(r["value"], r["rate"]) for r in results[1]["tuning"]}
  assert len(tried) == 3 and len(results[1]["extensions"]) == 1, "the best of two is at an edge"
  assert (tmp_path / "tiny_curves.png").stat().st_size > 10_000


@by_entry
def test_every_entry_has_a_grid_of_the_same_size(entry):
  grid = lag_entries.grid(entry, lag_entries.Study())
  points = grid.points()
  assert len(points) == len(set(points)) == 20
  assert list(grid.rates) == sorted(grid.rates) and list(entry.values) == [*grid.values]


def test_a_grid_grows_where_the_best_lies_at_its_edge():
  assert lag_entries.beyond((1.0, 2.0, 6.0), 6.0) == 18.0
  assert lag_entries.beyond((1.0, 2.0, 6.0), 1.0) == 0.5
  assert lag_entries.beyond((1.0, 2.0, 6.0), 2.0) is None
  assert lag_entries.beyond((None,), None) is None
  grid = lag_entries.Grid((1.0, 2.0), (0.1, 0.2, 0.4))
  near, far, still = (0, False), (64, False), (256, False)
  start = Growth({near: grid, far: grid, still: grid._replace(values=(0.5, 1.0, 2.0))})
  best = {near: (1.0, 0.4), far: (1.0, 0.2), still: (1.0, 0.2)}
  once = lag_entries.grown(start, best, 2)
  assert once.extensions == (("values", 0.5), ("rates", 0.8))
  assert once.grids[near] == ((0.5, 1.0, 2.0), (0.1, 0.2, 0.4, 0.8))
  assert once.grids[far] == ((0.5, 1.0, 2.0), (0.1, 0.2, 0.4))
  assert once.grids[still] == start.grids[still]
  again = lag_entries.grown(once, {near: (0.5, 0.2), far: (1.0, 0.4)}, 2)
  assert again.extensions == once.extensions, "no more than two"
  assert again.grids[near] == once.grids[near]
  assert again.grids[far].rates == (0.1, 0.2, 0.4, 0.8), "an extension made before is free"


def test_the_best_point_is_chosen_by_the_mean_over_tuning_seeds():
  near, far = (0, False), (64, False)
  row = lambda setting, value, scores: dict(setting=setting, value=value, rate=0.1, scores=scores)
  tuning = lag_lab.Tuning(
    [
      *(row(near, 1.0, [0.1, 0.9]), row(near, 2.0, [0.6, 0.6]), row(near, 3.0, [0.0, 0.1])),
      *(row(far, 1.0, [0.8, 0.6]), row(far, 2.0, [0.1, 0.2])),
      row(far, 4.0, [1.0, 1.0]),  # beyond an edge of this setting's grid alone
    ],
    (),
  )
  assert tuning.best() == {near: (2.0, 0.1), far: (4.0, 0.1)}
  assert tuning.best_on_average() == (1.0, 0.1), "of those tried at every setting"
  assert tuning.score(near, (1.0, 0.1)) == pytest.approx(0.5)
