"""The lag laboratory measures what it says: exact evaluation, exact lag, the study end to end."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lag_lab, lag_training
from benchmarks import lag_world as world
from offpolicy_rl import losses
from offpolicy_rl.losses import reductions

TINY = lag_lab.Study(
  entries=("grpo", "shift_1"),
  settings=((0, False), (64, True)),
  seeds=(0, 1),
  learning_rates=(3e-3,),
  values=1,
  steps=96,
)


def test_no_algorithm_is_studied_twice():
  """Whatever their numbers are set to, two entries never have the same gradient up to a factor."""
  sizes = {"group_size": world.GROUP_SIZE, "max_tokens": world.LENGTH}
  found = {}
  for entry in lag_lab.ENTRIES:
    values = {value for value, _ in lag_lab.grid(entry, lag_lab.Study())}
    made = (dataclasses.replace(lag_lab.choices(entry, value), **sizes) for value in values)
    if entry.tuned != "target_kl":  # its beta changes from batch to batch
      found[entry.label] = {reductions.reduced(choices).choices for choices in made}
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


def test_every_lane_has_exactly_its_lag():
  lanes = [(0, False), (4, False), (64, False), (16, True), (64, True)]
  lag, periodic = zip(*lanes, strict=True)
  history = lag_training.train(
    losses.choose("reinforce"),
    96,
    0.0,
    lag_training.Lane(jnp.zeros(5, int), jnp.array(lag), jnp.array(periodic), jnp.full(5, 1e-3)),
  )
  for lane, found in zip(lanes, history.lag, strict=True):
    steps = np.arange(96)
    used = steps % lane[0] if lane[1] else np.minimum(steps, lane[0])
    np.testing.assert_allclose(found[1:], used.reshape(3, 32).mean(axis=1), err_msg=str(lane))
  # At lag 0 the batch is the policy's own.
  np.testing.assert_allclose(history.ess[0, 1:], 1.0, rtol=1e-4)
  assert history.ess[2, 3] < 0.999


@pytest.mark.long
def test_a_small_study_runs_resumes_and_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(lag_lab, "LANES", 4)
  pytest.importorskip("matplotlib")
  from benchmarks import lag_plots

  for label in TINY.entries:
    assert "done before" not in lag_lab.run_entry(label, TINY, tmp_path)
    assert "done before" in lag_lab.run_entry(label, TINY, tmp_path)
  reports = [json.loads((tmp_path / f"{label}.json").read_text()) for label in TINY.entries]
  about = {"command": "x", "machine": "y", "seconds": 1.0, "study": {"seeds": [0, 1]}}
  lag_plots.write(reports, about, tmp_path, "tiny")
  page = (tmp_path / "tiny.md").read_text()
  row = reports[1]["tuned_per_lag"][1]
  assert row["setting"] == [64, True] and row["value"] == 0.01 and row["rate"] == 3e-3
  mean = sum(row["accuracy"]) / 2
  assert f"{mean:.3f} ±" in page and "periodic 64" in page
  assert (tmp_path / "tiny_curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("entry", lag_lab.ENTRIES, ids=lambda e: e.label)
def test_every_entry_has_a_grid_of_the_same_size(entry):
  points = lag_lab.grid(entry, lag_lab.Study())
  assert len(points) == len(set(points)) == 12
  for value, _ in points:
    made = lag_lab.choices(entry, value)
    known = entry.tuned and entry.tuned != "target_kl"
    for field in lag_lab.BOTH.get(entry.tuned, (entry.tuned,)) if known else ():
      assert getattr(made, field) in (value, min(value, 1.0))
