"""Shaped rewards against hand-computed ones."""

import pytest

from offpolicy_rl.tasks import shaping
from offpolicy_rl.tasks.scoring import Judgement

RIGHT, WRONG = Judgement(1.0, True, False), Judgement(0.0, True, False)
UNFORMED, FAILED = Judgement(1.0, False, False), Judgement(0.0, False, True)


def test_nothing_is_added_unless_asked():
  assert shaping.rewards([RIGHT, WRONG, UNFORMED, FAILED], [1, 9, 3, 4], shaping.NONE) == [
    1.0,
    0.0,
    1.0,
    0.0,
  ]


def test_the_length_reward_is_kimis():
  # Lengths in a span of 30: 1/2, 1/6, -1/2; a wrong answer earns nothing by being short.
  assert shaping.length_rewards([True, True, True], [10, 20, 40]) == pytest.approx(
    [0.5, 1 / 6, -0.5]
  )
  assert shaping.length_rewards([False, False, False], [10, 20, 40]) == pytest.approx([0, 0, -0.5])
  assert shaping.length_rewards([True, False], [7, 7]) == [0.0, 0.0]


def test_terms_add_up():
  shape = shaping.Shaping(format_reward=0.2, length_weight=0.5)
  found = shaping.rewards([RIGHT, UNFORMED, WRONG], [10, 40, 40], shape)
  assert found == pytest.approx([1 + 0.2 + 0.25, 1 - 0.25, 0.2 - 0.25])


def test_a_failed_completion_gets_nothing_or_the_others_mean():
  shape = shaping.Shaping(format_reward=0.2, failed=shaping.MEAN)
  assert shaping.rewards([RIGHT, WRONG, FAILED], [3, 3, 3], shape) == pytest.approx([1.2, 0.2, 0.7])
  assert shaping.rewards([FAILED, FAILED], [3, 3], shape) == [0.0, 0.0]
  assert shaping.rewards([RIGHT, FAILED], [3, 3], shaping.Shaping()) == [1.0, 0.0]
