"""What the samplers last said about themselves."""

import collections
import threading
import time
from collections.abc import Callable

from offpolicy_rl import types

_REMEMBERED = 1024  # samplers
_RECENT_SECONDS = 10.0


class Pulse:
  """The last heartbeat of each sampler. Thread-safe; forgets those it has not heard of longest."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._lock = threading.Lock()
    self._last: collections.OrderedDict[str, tuple[float, dict]] = collections.OrderedDict()

  def hear(self, sampler_id: str, stats: dict[str, float]) -> None:
    """Remembers a heartbeat."""
    with self._lock:
      self._last[sampler_id] = (self._clock(), stats)
      self._last.move_to_end(sampler_id)
      if len(self._last) > _REMEMBERED:
        self._last.popitem(last=False)

  def forget(self, sampler_id: str) -> None:
    """It left."""
    with self._lock:
      self._last.pop(sampler_id, None)

  def heard_of(self, seconds: float) -> list[dict[str, float]]:
    """What those said that gave a sign of life so lately."""
    with self._lock:
      since = self._clock() - seconds
      return [stats for at, stats in self._last.values() if at > since]

  def ids(self, seconds: float) -> list[str]:
    """Samplers heard of so lately, the last one last."""
    with self._lock:
      since = self._clock() - seconds
      return [sampler_id for sampler_id, (at, _) in self._last.items() if at > since]

  def metrics(self) -> dict[str, float]:
    """Over the samplers heard of in the last ten seconds.

    sampler/count; sampler/tokens_per_second, completion tokens of all of them; sampler/waiting,
    share of their time in which they have nothing to generate, where any of them says so.
    """
    heard = self.heard_of(_RECENT_SECONDS)
    waiting = [stats["waiting"] for stats in heard if "waiting" in stats]
    return {
      "sampler/count": len(heard),
      "sampler/tokens_per_second": sum(stats.get("tokens_per_second", 0.0) for stats in heard),
      **({"sampler/waiting": sum(waiting) / len(waiting)} if waiting else {}),
    }

  def each(self) -> list[types.SamplerStatus]:
    """The last word of every sampler that is remembered."""
    with self._lock:
      now = self._clock()
      return [types.SamplerStatus(name, now - at, s) for name, (at, s) in self._last.items()]
