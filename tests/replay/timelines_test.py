"""The timeline of a ticket, from the queue to the end of its step."""

import math

import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import timelines

NAN = math.nan


def finished(*, queued, marks, arrived) -> types.FinishedGroup:
  ticket = types.Ticket("train/0/0", types.TRAIN, 0, 0, None, "", 0, 0, 2, 1.0)
  group = types.Group("train/0/0", (), sampler_id="s~1", marks=marks and types.Marks(*marks))
  return types.FinishedGroup(ticket, group, 0, queued, arrived)


def test_the_stages_add_up_and_a_group_of_which_nothing_is_known_counts_for_none():
  groups = [
    finished(queued=100.0, marks=(101, 101.5, 103, 107, 108), arrived=108.25),
    finished(queued=100.0, marks=(103, 103.5, 104, 106, 106), arrived=106.75),
    finished(queued=NAN, marks=None, arrived=NAN),  # from before a restart
  ]
  done = timelines.used(timelines.timelines(groups, taken=110.0), at=112.0)
  assert [timeline.sampler_id for timeline in done] == ["s~1"] * 3
  assert done[0].times == (100, 101, 101.5, 103, 107, 108, 108.25, 110, 112)
  assert timelines.metrics(done) == pytest.approx(
    {
      "ticket/lease": 2.0,
      "ticket/weights": 0.5,
      "ticket/prefill": 1.0,
      "ticket/decode": 3.0,
      "ticket/verifier": 0.5,
      "ticket/push": 0.5,
      "ticket/queue": 2.5,
      "ticket/use": 2.0,
    }
  )


def test_two_clocks_that_disagree_a_little_make_no_negative_time():
  group = finished(queued=100.0, marks=(99.999, 101, 102, 103, 104.002), arrived=104.0)
  measured = timelines.metrics(timelines.used(timelines.timelines([group], 105.0), 106.0))
  assert measured["ticket/lease"] == 0.0 and measured["ticket/push"] == 0.0


def test_an_unknown_stage_is_left_out():
  group = finished(queued=100.0, marks=None, arrived=104.0)
  done = timelines.used(timelines.timelines([group], 105.0), 106.0)
  assert timelines.metrics(done) == {"ticket/queue": 1.0, "ticket/use": 1.0}
