"""Which version may sample the groups of which step: lag is bounded by admission, not discarding.

While step s runs, s is also the newest version. A group for step s that was sampled with version v
has lag s - v.
"""

import dataclasses

ASYNC, FIXED, PERIODIC = "async", "fixed", "periodic"
MODES = (ASYNC, FIXED, PERIODIC)


@dataclasses.dataclass(frozen=True)
class LagControl:
  """One of three modes, all expressed as an interval of versions per step.

  async:    any version in [step - bound, step]; samplers take the newest they can get.
  fixed:    exactly step - bound; reproducible to the bit.
  periodic: exactly bound * floor(step / bound), as in OAPL; reproducible to the bit.

  `origin` is the oldest version that exists: 0, or the restored version after a resume.
  """

  mode: str
  bound: int  # max_lag (async), lag (fixed) or period (periodic), in versions
  origin: int = 0

  def versions_for(self, step: int) -> tuple[int, int]:
    """(min, max) version that may sample a group for `step`, both inclusive."""
    if self.mode == ASYNC:
      return max(self.origin, step - self.bound), max(self.origin, step)
    if self.mode == FIXED:
      exact = max(self.origin, step - self.bound)
    else:
      exact = max(self.origin, self.bound * (step // self.bound))
    return exact, exact

  def admits(self, step: int, newest: int) -> bool:
    """Whether tickets for `step` may be handed out now that version `newest` exists."""
    return self.versions_for(step)[0] <= newest

  def oldest_needed(self, step: int) -> int:
    """Oldest version that tickets for `step` or a later step can still ask for."""
    return self.versions_for(step)[1] if self.mode == ASYNC else self.versions_for(step)[0]
