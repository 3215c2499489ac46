"""The learner's clock as a sampler knows it, from the times that answers to heartbeats carry."""

import collections

from offpolicy_rl.transport import bounds

_KEPT = 32  # newest heartbeats: clocks drift
_DRIFT_SECONDS = 0.1  # between these, at most


class LearnerClock:
  """Estimates the learner's time from a clock of this process.

  An answer was written at some moment between the request and its arrival. Its middle is taken for
  that moment, of the heartbeat that took least: the error is at most half of what it took. If two
  heartbeats contradict each other, a clock was set in between, and the earlier ones are forgotten.
  """

  def __init__(self):
    # (seconds between request and answer, learner's time less that of this process)
    self._seen: collections.deque[tuple[float, float]] = collections.deque(maxlen=_KEPT)

  def note(self, asked: float, answered: float, told: float) -> None:
    """Notes a heartbeat: when it was sent and answered here, and the learner's time in between."""
    if not 0 < told <= bounds.MAX_TIME:  # a learner of an older release tells none
      return
    took, ahead = answered - asked, told - (asked + answered) / 2
    if self._seen:
      least, before = min(self._seen)
      if abs(ahead - before) > (took + least) / 2 + _DRIFT_SECONDS:
        self._seen.clear()
    self._seen.append((took, ahead))

  def forget(self) -> None:
    """Forgets everything: there is another learner."""
    self._seen.clear()

  @property
  def ahead(self) -> float | None:
    """The learner's time less that of this process, in seconds; None = not known yet."""
    return min(self._seen)[1] if self._seen else None
