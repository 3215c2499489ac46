"""The three lag modes as tables."""

import pytest

from offpolicy_rl.replay import schedule
from offpolicy_rl.replay.lag import LagControl


@pytest.mark.parametrize(
  ("mode", "bound", "expected"),
  [
    # (min, max) version for steps 0..6
    ("fixed", 0, [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]),
    ("fixed", 2, [(0, 0), (0, 0), (0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
    ("periodic", 3, [(0, 0), (0, 0), (0, 0), (3, 3), (3, 3), (3, 3), (6, 6)]),
    ("async", 2, [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]),
  ],
)
def test_versions_per_step(mode, bound, expected):
  lag = LagControl(mode, bound)
  assert [lag.versions_for(step) for step in range(7)] == expected


@pytest.mark.parametrize("mode", ["fixed", "periodic", "async"])
@pytest.mark.parametrize("bound", [1, 2, 5])
def test_no_admitted_version_exceeds_the_bound_or_comes_from_the_future(mode, bound):
  lag = LagControl(mode, bound)
  for step in range(40):
    low, high = lag.versions_for(step)
    assert 0 <= low <= high <= step
    assert step - low <= (bound if mode != "periodic" else bound - 1)


def test_a_step_is_admitted_once_its_oldest_version_exists():
  lag = LagControl("async", 3)
  assert [step for step in range(10) if lag.admits(step, newest=4)] == list(range(8))
  assert [step for step in range(10) if LagControl("fixed", 0).admits(step, newest=4)] == list(
    range(5)
  )
  periodic = LagControl("periodic", 4)
  assert [step for step in range(10) if periodic.admits(step, newest=3)] == list(range(4))
  assert [step for step in range(10) if periodic.admits(step, newest=4)] == list(range(8))


def test_a_replay_asks_for_the_recorded_version_of_each_group():
  recorded = schedule.Schedule("{}", [[0, 0], [1, 0], [0, 2]], [[], [], []], [0, 0, 0, 3], [])
  lag = LagControl("replay", recorded=recorded)
  assert [[lag.versions_for(s, g) for g in (0, 1)] for s in range(3)] == [
    [(0, 0), (0, 0)],
    [(1, 1), (0, 0)],
    [(0, 0), (2, 2)],
  ]
  assert [[lag.admits(s, newest) for s in range(3)] for newest in (0, 1, 2)] == [
    [True, False, False],
    [True, True, False],
    [True, True, True],
  ]
  assert [kept(lag, s) for s in range(4)] == [[0], [0, 1], [0, 1, 2], [3]]


@pytest.mark.parametrize("mode", ["fixed", "periodic", "async"])
def test_later_steps_never_need_a_version_that_was_dropped(mode):
  lag = LagControl(mode, 3)
  for newest in range(20):
    for step in range(newest, 30):
      # The version a sampler would take: the newest there is that the step allows.
      taken = min(lag.versions_for(step)[1], max(newest, lag.versions_for(step)[0]))
      assert lag.is_needed(taken, newest)


def kept(lag: LagControl, newest: int) -> list[int]:
  return [version for version in range(newest + 1) if lag.is_needed(version, newest)]


def test_no_more_versions_are_kept_than_steps_may_need():
  assert kept(LagControl("fixed", 3), 7) == [4, 5, 6, 7]
  assert kept(LagControl("fixed", 3, kept=2), 7) == [7]
  assert kept(LagControl("periodic", 3), 8) == [6, 8]
  assert kept(LagControl("async", 3), 8) == [8]
