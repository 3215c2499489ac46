"""Pairs within groups against plain loops, in batches and in slices that keep the batch's ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import masked, pairs
from tests.losses.objectives_test import PAIRWISE, arrays, build
from tests.losses.slow_reference import random_inputs
from tests.params import some

# group ids of a batch, or of a slice of a batch of 100 rows
GROUPS = (
  [0, 0, 0, 0, 1, 1, 1, 1],
  [0, 1, 0, 1, 1, 0, 1, 7],  # odd: the last row of each is alone
  [2, 2, 0, 1, 1, 1, 1, 1],  # one row in group 0
  [3, 1, 2, 0, 7, 5, 6, 4],
  [5, 5, 5, 5, 5, 5, 5, 5],
  [99, 7, 99, 7, 7, 42, 99, 99],
)


def rows_of_groups(ids) -> list[list[int]]:
  return [[n for n, other in enumerate(ids) if other == one] for one in dict.fromkeys(ids)]


def pairs_found(partner, leads) -> set[tuple[int, int]]:
  return {(n, int(partner[n])) for n in range(len(leads)) if leads[n]}


@pytest.mark.parametrize("ids", GROUPS, ids=str)
def test_adjacent_rows_of_each_group(ids):
  expected = {
    (group[i], group[i + 1]) for group in rows_of_groups(ids) for i in range(0, len(group) - 1, 2)
  }
  partner, leads = pairs.adjacent(jnp.array(ids))
  assert pairs_found(partner, leads) == expected
  count = max(len(expected), 1)
  weights = pairs.row_weights("pair_squares", jnp.zeros(len(ids)), jnp.array(ids))
  np.testing.assert_allclose(weights, np.full(len(ids), 1 / count), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ids", GROUPS, ids=str)
def test_best_and_worst_row_of_each_group(ids, seed):
  rewards = np.random.default_rng(seed).integers(0, 3, len(ids)).astype(np.float32)  # ties
  expected = set()
  for group in rows_of_groups(ids):
    best, worst = max(group, key=rewards.__getitem__), min(group, key=rewards.__getitem__)
    expected |= {(best, worst)} if rewards[best] > rewards[worst] else set()
  partner, wins = pairs.extremes(jnp.array(rewards), jnp.array(ids))
  assert pairs_found(partner, wins) == expected
  count = max(len(expected), 1)
  weights = pairs.row_weights("pair_dpo", jnp.array(rewards), jnp.array(ids))
  np.testing.assert_allclose(weights, np.full(len(ids), 1 / count), rtol=1e-6)


@pytest.mark.parametrize("ids", GROUPS, ids=str)
def test_renumbered_groups_are_the_same_groups(ids):
  found = np.array(jax.jit(masked.renumbered)(jnp.array(ids)))
  np.testing.assert_array_equal(found[:, None] == found, np.equal.outer(ids, ids))
  assert found.min() >= 0 and found.max() < len(ids)
  weights = pairs.row_weights("centred_squares", jnp.zeros(len(ids)), jnp.array(ids))
  np.testing.assert_allclose(weights, np.full(len(ids), 1 / len(set(ids))), rtol=1e-6)


@pytest.mark.parametrize("order", some([0], [1, 2]))
@pytest.mark.parametrize("name", [*PAIRWISE, "gepo", "vcpo"])
def test_slices_of_whole_groups_add_up_in_any_order(name, order):
  """Rows may be dealt out group by group; within a group their order must stay."""
  with jax.enable_x64(True):
    x, objective = arrays(random_inputs(3, equal_group=order)), build(name)
    prepared = objective.prepare(x)
    whole = objective.loss(x, prepared)
    rows = [np.flatnonzero(x.group_ids == g) for g in np.random.default_rng(order).permutation(3)]
    slices = [rows[0], np.concatenate(rows[1:])]
    parts = [jax.tree.map(lambda v, at=at: v[at], (x, prepared)) for at in slices]
    np.testing.assert_allclose(sum(objective.loss(*part) for part in parts), whole, rtol=1e-12)


@pytest.mark.parametrize("name", [*PAIRWISE, "gepo", "vcpo"])
def test_the_batch_has_one_loss_whatever_the_numbers_of_its_groups(name):
  x, objective = random_inputs(2), build(name)
  renamed = x._replace(group_ids=np.array([8, 2, 11])[x.group_ids])
  np.testing.assert_allclose(objective(arrays(x))[0], objective(arrays(renamed))[0], rtol=1e-6)


def test_copg_of_groups_in_their_definition_as_pairs():
  """Mean over the group's pairs of (beta du - dr)^2 / (4 beta), then over groups."""
  x, beta = random_inputs(6), 0.3
  u = np.where(x.loss_mask, x.policy_logprobs - x.sampler_logprobs, 0).sum(-1)
  e = beta * u - x.rewards
  means = []
  for g in range(3):
    rows = np.flatnonzero(x.group_ids == g)
    means.append(np.mean([(e[i] - e[j]) ** 2 / (4 * beta) for i in rows for j in rows if i < j]))
  with jax.enable_x64(True):
    loss, _ = losses.objective("copg", beta=beta)(arrays(x))
  np.testing.assert_allclose(loss, np.mean(means), rtol=1e-12)
