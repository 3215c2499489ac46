"""Where the time of a completion goes: the way of its ticket, by the learner's clock.

Only shown and written, never part of an update.
"""

import math
from collections.abc import Sequence

import numpy as np

from offpolicy_rl import types

_UNKNOWN = types.Marks(*[math.nan] * len(types.Marks._fields))


def journeys(groups: Sequence[types.FinishedGroup], taken: float) -> list[types.Journey]:
  """The ways of a batch's groups, which were taken at this time; the update is still to come."""
  return [
    types.Journey(
      finished.ticket.ticket_id,
      finished.group.sampler_id,
      (finished.queued, *(finished.group.marks or _UNKNOWN), finished.arrived, taken, math.nan),
    )
    for finished in groups
  ]


def used(ways: Sequence[types.Journey], at: float) -> list[types.Journey]:
  """The same ways, with the time at which their update was complete."""
  return [way._replace(times=(*way.times[:-1], at)) for way in ways]


def metrics(ways: Sequence[types.Journey]) -> dict[str, float]:
  """Mean seconds of each stage over the groups for which it is known."""
  # Two clocks never agree entirely: no stage is shorter than nothing.
  seconds = np.maximum(np.diff(np.array([way.times for way in ways]), axis=1), 0.0)
  means = {}
  for stage, values in zip(types.STAGES, seconds.T, strict=True):
    known = values[np.isfinite(values)]
    if known.size:
      means[f"ticket/{stage}"] = float(known.mean())
  return means
