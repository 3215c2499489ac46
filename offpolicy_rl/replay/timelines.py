"""Where the time of a completion goes: the timeline of its ticket, by the learner's clock.

Only shown and written, never part of an update.
"""

import math
from collections.abc import Sequence

import numpy as np

from offpolicy_rl import types

_UNKNOWN = types.Marks(*[math.nan] * len(types.Marks._fields))


def timelines(groups: Sequence[types.FinishedGroup], taken: float) -> list[types.Timeline]:
  """Those of a batch's groups, which were taken at this time; the update is still to come."""
  return [
    types.Timeline(
      finished.ticket.ticket_id,
      finished.group.sampler_id,
      (finished.queued, *(finished.group.marks or _UNKNOWN), finished.arrived, taken, math.nan),
    )
    for finished in groups
  ]


def used(timelines: Sequence[types.Timeline], at: float) -> list[types.Timeline]:
  """The same timelines, with the time at which their update was complete."""
  return [timeline._replace(times=(*timeline.times[:-1], at)) for timeline in timelines]


def metrics(timelines: Sequence[types.Timeline]) -> dict[str, float]:
  """Mean seconds of each stage over the groups for which it is known."""
  # Two clocks never agree entirely: no stage is shorter than nothing.
  seconds = np.maximum(np.diff(np.array([timeline.times for timeline in timelines]), axis=1), 0.0)
  means = {}
  for stage, values in zip(types.STAGES, seconds.T, strict=True):
    known = values[np.isfinite(values)]
    if known.size:
      means[f"ticket/{stage}"] = float(known.mean())
  return means
