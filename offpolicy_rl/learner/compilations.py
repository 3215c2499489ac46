"""How often and how long XLA compiled, so that a step that compiles anew is seen."""

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
  """Counts from its beginning to `close`, over all threads of the process."""

  def __init__(self):
    self._number, self._seconds = 0, 0.0
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, seconds: float, **_) -> None:
    if event == _EVENT:
      self._number, self._seconds = self._number + 1, self._seconds + seconds

  def taken(self) -> dict[str, float]:
    """Since the last call: compilations, seconds/compiling."""
    found = {"compilations": self._number, "seconds/compiling": self._seconds}
    self._number, self._seconds = 0, 0.0
    return found

  def close(self) -> None:
    """Counts no more."""
    jax.monitoring.unregister_event_duration_listener(self._hear)
