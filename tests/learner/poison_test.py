"""Groups that make a loss infinite are left out by name; everything else goes on to the bit."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.learner import loop, poison, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner.update import Update
from offpolicy_rl.model import sharding
from offpolicy_rl.replay import packing
from tests.learner.step_test import CONFIG, choices, first_state, random_batch, same_prompts_batch
from tests.run_system import assert_identical

SAMPLERS = ("good~1", "good~1", "bad~7", "good~2")


def with_reward(value, *groups, parts=1) -> types.Batch:
  batch = random_batch(parts=parts)
  for group in groups:
    batch.rewards.reshape(-1)[4 * group] = value
  return batch


def without(batch, *groups) -> types.Batch:
  """The same, in NumPy: no token of these groups counts."""
  gone = np.isin(batch.group_ids, groups)
  batch.loss_mask[gone], batch.sampler_logprobs[gone] = False, 0.0
  batch.rewards[gone] = batch.verdicts[gone] = 0.0
  return batch


def leaves(state) -> dict:
  found = jax.tree_util.tree_flatten_with_path(state)[0]
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in found}


class Learner:
  """Makes one update and keeps what it prints."""

  def __init__(self, made, mesh=None):
    section = SimpleNamespace(prompts_per_step=4, audit_every=0, mismatch_alarm=0.0)
    config = SimpleNamespace(learner=section, lag=SimpleNamespace(max_lag=0))
    self.mesh, self.said = mesh or sharding.make_mesh(), []
    self.update = Update(made, self.mesh, None, config, self.said.append)

  def step(self, batch, at=0):
    """(state, row) after the step `at` from fresh parameters."""
    groups = [
      types.FinishedGroup(
        SimpleNamespace(ticket_id=f"train/{at}/{i}"), types.Group("", (), sampler_id=SAMPLERS[i]), 0
      )
      for i in range(4)
    ]
    state = first_state(self.mesh)
    with jax.sharding.set_mesh(self.mesh):
      placed = state_lib.place_batch(self.mesh, batch)
      consumed = loop.StepBatch(placed, frozenset({0}), tuple(groups))
      state, row = self.update(at, state, consumed)
    row = {name: x if np.ndim(x) else np.asarray(x).item() for name, x in row.items()}
    loop.check_finite(at, row, consumed)
    return state, row


@pytest.fixture(scope="module")
def two_devices():
  """One that works on two devices, with batches of two parts."""
  return Learner(dataclasses.replace(choices(), shown=4), sharding.make_mesh(2, 1, 1))


def test_a_step_is_made_without_the_groups_that_poison_it(two_devices):
  """By the compiled step's own bits; what is logged of the batch is of the others."""
  two_devices.said.clear()
  state, row = two_devices.step(with_reward(3e38, 0, 2, parts=2))
  said, batch = list(two_devices.said), random_batch(parts=2)
  _, whole = two_devices.step(batch)
  rest = np.isin(batch.group_ids, (1, 3))
  assert row["reward"] == pytest.approx(batch.rewards[rest].mean())
  assert row["completion_tokens"] == pytest.approx(batch.loss_mask[rest].sum(-1).mean())
  np.testing.assert_array_equal(row["policy_logprobs"], whole["policy_logprobs"])  # of group 0
  expected, its_row = two_devices.step(without(batch, 0, 2))
  assert_identical(leaves(state), leaves(expected))
  assert row["loss"] == its_row["loss"] and row["poisoned_groups"] == 2
  assert (
    two_devices.said
    == said
    == [
      f"step 0: the group of ticket train/0/{i}, by {SAMPLERS[i]}, makes the loss or its gradient "
      "infinite or nan, and is left out"
      for i in (0, 2)
    ]
  )


def test_when_every_group_is_to_blame_it_stops_with_the_samplers(two_devices):
  two_devices.said.clear()
  with pytest.raises(
    loop.NonFiniteError, match=r"step 0: .*samplers bad~7, good~1, good~2.*diverg"
  ):
    two_devices.step(with_reward(3e38, 0, 1, 2, 3, parts=2))
  assert two_devices.said == []


@pytest.mark.long
def test_a_skipped_update_leaves_the_state_as_it_was():
  """Wherever it rests between updates."""
  mesh = sharding.make_mesh()
  optimizer = state_lib.make_optimizer(learning_rate=1e-2, num_steps=10, in_host_memory=True)
  made = dataclasses.replace(choices(), optimizer=optimizer)
  fresh = lambda: state_lib.from_params(
    state_lib.create_params(CONFIG, mesh, seed=0), optimizer, mesh
  )
  with jax.sharding.set_mesh(mesh):
    compiled = step.compile_step(made, state_lib.shardings(CONFIG, mesh, optimizer))
    place = lambda batch: state_lib.place_batch(mesh, batch)
    before, _ = compiled(fresh(), place(random_batch()), None)
    kept = leaves(before)
    after, row = compiled(before, place(with_reward(3e38, 2)), None)
  assert int(row["updates_skipped"]) == 1 and int(after.step) == 1
  assert_identical(leaves(after), kept)


@pytest.mark.long
def test_of_several_updates_only_the_poisoned_minibatch_is_skipped():
  made = dataclasses.replace(choices(), minibatches=2, epochs=2)
  me = Learner(made)
  state, row = me.step(with_reward(3e38, 2, parts=2))
  assert row["updates_skipped"] == 2 and row["poisoned_groups"] == 1
  assert int(state.step) == 1 and np.isfinite(row["loss"])
  assert "train/0/2, by bad~7" in me.said[0]
  [count] = {int(x) for name, x in leaves(state.opt_state).items() if "count" in name}
  assert count == 2  # of four


def test_candidates_go_with_their_completions():
  batch = same_prompts_batch(packing.PACKED, candidates=3)
  left = poison.only(batch, np.array([True, False, True, False]))
  stay = batch.loss_mask & (batch.group_ids % 2 == 0)[..., None]
  np.testing.assert_array_equal(left.loss_mask, stay)
  expected = np.where(stay[..., None], batch.candidate_logprobs, 0.0)
  np.testing.assert_array_equal(left.candidate_logprobs, expected)
  assert expected.any() and not np.array_equal(expected, batch.candidate_logprobs)


@given(st.sets(st.integers(0, 12)), st.integers(1, 13))
def test_the_search_finds_exactly_those_to_blame_and_asks_little(bad, count):
  bad = {group for group in bad if group < count}
  asked = []

  def is_finite(groups):
    asked.append(groups)
    return not bad & set(groups)

  if bad:
    assert poison.culprits(is_finite, list(range(count))) == sorted(bad)
    assert len(asked) <= 2 * len(bad) * (count.bit_length() + 1)


def test_groups_that_are_too_much_only_together_go_together():
  together = lambda groups: not {1, 6} <= set(groups)
  assert poison.culprits(together, list(range(8))) == list(range(8))
  assert poison.culprits(lambda groups: not {4, 5} <= set(groups), list(range(8))) == [4, 5]
