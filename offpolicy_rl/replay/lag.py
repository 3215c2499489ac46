"""The versions that may sample the groups of a step: lag is bounded by admission, not discarding.

While step s runs, s is also the newest version. A group for step s that was sampled with version v
has lag s - v. Nothing here depends on where a run started, so a resumed run makes the same choices.
"""

import dataclasses

from offpolicy_rl.replay import schedule

ASYNC, FIXED, PERIODIC, REPLAY = "async", "fixed", "periodic", "replay"
MODES = (ASYNC, FIXED, PERIODIC, REPLAY)


@dataclasses.dataclass(frozen=True)
class LagControl:
  """One of four modes, each an interval of versions per group.

  async:    any version in [step - bound, step]; samplers take the newest they can get.
  fixed:    exactly step - bound; reproducible to the bit.
  periodic: exactly bound * floor(step / bound), as in OAPL; reproducible to the bit.
  replay:   exactly the version that a recorded run used for this group.
  """

  mode: str
  bound: int = 0  # max_lag (async), lag (fixed) or period (periodic), in versions
  recorded: schedule.Schedule | None = None  # replay only
  kept: int = 0  # fixed only: versions that tickets may need at a time; 0 = all are kept

  def versions_for(self, step: int, group: int = 0) -> tuple[int, int]:
    """(min, max) version that may sample group `group` of `step`, both inclusive."""
    if self.mode == ASYNC:
      return max(0, step - self.bound), step
    if self.recorded is not None:
      exact = self.recorded.versions[step][group]
    elif self.mode == FIXED:
      exact = max(0, step - self.bound)
    else:
      exact = self.bound * (step // self.bound)
    return exact, exact

  def attempt(self, step: int, group: int) -> int:
    """Number of a group's first ticket: 0, or in a replay that of the ticket used."""
    return self.recorded.attempts[step][group] if self.recorded is not None else 0

  def admits(self, step: int, newest: int) -> bool:
    """Whether the tickets of `step` may go out now that version `newest` exists."""
    if self.recorded is not None:
      return max(self.recorded.versions[step]) <= newest
    return self.versions_for(step)[0] <= newest

  def is_needed(self, version: int, step: int) -> bool:
    """Whether a version is kept for `step` and later ones, now that version `step` exists.

    Beside those of open tickets: for steps that are not admitted yet, which in a replay may need
    old versions, and for groups that may be lost with the disk that they are on.
    """
    if version >= step:
      return True
    if self.recorded is not None:
      return version >= self.recorded.oldest[step]
    if self.mode == FIXED:
      return not self.kept and version >= self.versions_for(step)[1]
    return version == self.versions_for(step)[1]
