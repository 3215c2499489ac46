"""Scores of a rubric over the wire, and their means in a step's metrics."""

import math

import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import batching
from offpolicy_rl.transport import codec
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.transport.codec_test import a_group, a_ticket, a_trajectory, same


def graded(*parts: float) -> types.Trajectory:
  return a_trajectory(parts=parts)


def test_scores_come_back_also_where_some_completions_have_none():
  group = a_group(graded(0.5, 1.0), graded(), graded(0.25, 0.0))
  message = pb.Group.FromString(codec.encode_group(group).SerializeToString())
  assert same(codec.decode_group(message), group)
  assert not codec.encode_group(a_group(graded())).part_counts


@pytest.mark.parametrize(
  ("change", "error"),
  [
    (
      lambda m: m.part_counts.pop(),
      r"group.part_counts: got '1 values', expected 2, as in lengths",
    ),
    (lambda m: m.part_scores.pop(), r"group.part_scores: got '3 values', expected 4"),
    (lambda m: m.part_scores.__setitem__(1, math.nan), "group.part_scores: got nan, expected at"),
    (
      lambda m: m.part_scores.__setitem__(1, 1e9),
      "group.part_scores: got 1000000000.0, expected at",
    ),
  ],
)
def test_malformed_scores_are_refused(change, error):
  message = codec.encode_group(a_group(graded(0.5, 1.0), graded(0.25, 0.0)))
  change(message)
  with pytest.raises(codec.WireError, match=error):
    codec.decode_group(message)


def test_metrics_have_the_mean_of_each_part_over_those_that_were_graded():
  groups = [a_group(graded(0.5, 1.0), graded()), a_group(graded(0.25, 0.0), graded(0.0, 0.5))]
  finished = [types.FinishedGroup(a_ticket(), group, 0) for group in groups]
  found = batching.rubric_metrics(finished, ["clear", "right"])
  assert found == {"rubric": {"clear": 0.25, "right": 0.5}}
  assert batching.rubric_metrics(finished, []) == {}
  assert batching.rubric_metrics(finished[:0], ["clear", "right"]) == {}
