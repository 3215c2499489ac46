"""Checkpoints: what was saved comes back, into its sharding; half a checkpoint is none."""

import jax
import numpy as np
import pytest

from offpolicy_rl.learner import checkpoint, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import sharding
from tests.learner.step_test import OPTIMIZER, choices, random_batch
from tests.model.decoder_test import CONFIG


def equal(a, b) -> bool:
  return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


def host(tree):
  return jax.tree.map(np.array, tree)


@pytest.fixture
def mesh():
  return sharding.make_mesh(2, 2, 2)


@pytest.fixture
def shardings(mesh):
  return state_lib.shardings(CONFIG, mesh, OPTIMIZER)


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path, mesh, shardings):
  """Saves while training goes on with donated buffers; the restored run repeats the rest."""
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  state = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=0)
  with jax.sharding.set_mesh(mesh):
    compiled = step.compile_step(choices(), shardings)
    for i in range(6):
      if i == 3:
        saved.save(3, state)
        at_three = host(state)
      state, _ = compiled(state, state_lib.place_batch(mesh, random_batch(seed=i)), None)
    saved.close()
    reopened = checkpoint.Checkpoints(tmp_path, keep=2)
    assert reopened.latest() == 3
    fresh = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=9)
    restored = reopened.restore(3, fresh, shardings)
    assert equal(host(restored), at_three)
    assert all(
      jax.tree.leaves(
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), restored, shardings)
      )
    )
    for i in range(3, 6):
      restored, _ = compiled(restored, state_lib.place_batch(mesh, random_batch(seed=i)), None)
    assert equal(host(restored), host(state))


def test_only_the_newest_are_kept(tmp_path, mesh):
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  state = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=0)
  for number in (1, 2, 3, 4):
    saved.save(number, state)
  saved.close()
  assert sorted(p.name for p in (tmp_path / "steps").iterdir() if p.name.isdigit()) == ["3", "4"]


def test_an_unfinished_checkpoint_is_not_seen(tmp_path, mesh):
  saved = checkpoint.Checkpoints(tmp_path, keep=2)
  state = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=0)
  saved.save(5, state)
  saved.close()
  (
    tmp_path / "steps" / "9.orbax-checkpoint-tmp"
  ).mkdir()  # what a crash in the middle leaves behind
  assert checkpoint.Checkpoints(tmp_path, keep=2).latest() == 5


def test_the_initial_policy_is_kept_apart(tmp_path, mesh, shardings):
  state = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=0)
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  saved.save_initial(state.params)
  other = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=1)
  assert equal(host(saved.restore_initial(other.params, shardings.params)), host(state.params))


def test_no_checkpoint_is_none(tmp_path):
  assert checkpoint.Checkpoints(tmp_path, keep=1).latest() is None


def test_equal_can_fail():
  a = {"x": np.zeros(3)}
  assert equal(a, {"x": np.zeros(3)}) and not equal(a, {"x": np.array([0, 0, 1e-9])})
