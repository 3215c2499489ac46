"""Supervised steps before reinforcement learning."""

import numpy as np

from offpolicy_rl.learner import warm_start
from offpolicy_rl.model import sharding
from offpolicy_rl.replay import batching, packing
from tests.learner.step_test import choices, first_state


def test_the_warm_start_learns_a_constant_answer():
  """Every demonstration is token 5 then 1: the loss falls to almost nothing."""
  pairs = [(np.array([2 + i, 3], np.int32), np.array([5, 1], np.int32)) for i in range(8)]
  batch = batching.demonstration_batch(pairs, packing.Limits(packing.PADDED, 2, 3, 5))
  seen = []
  state = first_state(sharding.make_mesh())
  warm_start.run(
    choices(),
    state,
    num_steps=30,
    next_batch=lambda _: batch,
    write=lambda _, loss: seen.append(loss),
  )
  assert len(seen) == 30 and seen[0] > 2 and seen[-1] < 0.05


def test_the_warm_start_ends_at_the_loss_asked_for():
  pairs = [(np.array([2 + i, 3], np.int32), np.array([5, 1], np.int32)) for i in range(8)]
  batch = batching.demonstration_batch(pairs, packing.Limits(packing.PADDED, 2, 3, 5))
  seen = []
  state = first_state(sharding.make_mesh())
  state, _ = warm_start.run(
    choices(),
    state,
    num_steps=100,
    next_batch=lambda _: batch,
    write=lambda _, loss: seen.append(loss),
    stop_loss=0.5,
  )
  smoothed = seen[0]
  for i, loss in enumerate(seen[1:]):
    assert smoothed >= 0.5, i
    smoothed = 0.9 * smoothed + 0.1 * loss
  assert smoothed < 0.5 and int(state.step) == len(seen) < 100
