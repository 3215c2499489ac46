"""How a run stands while it goes on: told to watchers on the wire, and in RUN/live.json."""

import contextlib
import pathlib
import threading
import time

from offpolicy_rl import types
from offpolicy_rl.observe import metrics, watch
from offpolicy_rl.roles.sampler_service import Front
from offpolicy_rl.transport import names

_SECONDS = 2.0  # between two versions of the file
_LAST_SECONDS = 5.0  # for the last version: a hung disk must not keep a run from ending
_SHOWN_SECONDS = 300.0  # samplers silent for longer are not spoken of


class Live:
  """The learner's status. Nothing is done per step: whoever looks makes it."""

  def __init__(self, run_dir: pathlib.Path, session: str, config, front: Front):
    self._run_dir, self._session, self._front = run_dir, session, front
    self._about, self._num_steps = watch.about(config), config.learner.steps
    self._ended, self._over = "", threading.Event()
    self._writer = threading.Thread(target=self._keep_writing, daemon=True)

  def begin(self) -> None:
    """From now on the file is there and kept up to date."""
    self._writer.start()

  def status(self) -> types.RunStatus:
    """As it is now."""
    samplers = [s for s in self._front.pulse.each() if s.silent_seconds < _SHOWN_SECONDS]
    shown = names.shown(sampler.name for sampler in samplers)
    measured = lambda sampler: sampler.stats | self._front.makers.stats(sampler.name)
    samplers = [s._replace(name=shown[s.name], stats=measured(s)) for s in samplers]
    return types.RunStatus(
      session=self._session,
      run_id=self._run_dir.absolute().name,
      about=self._about,
      at=time.time(),
      ended=self._ended,
      num_steps=self._num_steps,
      tickets=self._front.book.audit(),
      samplers=tuple(sorted(samplers)),
    )

  def news(self, session: str, position: int, wait_seconds: float) -> types.News:
    """See `server.Handlers.watch`: waits, but not longer than the run."""
    self._over.wait(wait_seconds)
    return self.look(session, position)

  def look(self, session: str, position: int) -> types.News:
    """The same, now."""
    return metrics.news(self._run_dir, self.status(), session, position)

  def end(self, how: str) -> None:
    """The run is over: "finished", "stopped" or "failed"."""
    self._ended = how
    self._over.set()
    self._writer.join(_LAST_SECONDS)

  def _keep_writing(self) -> None:
    while True:
      status = self.status()
      with contextlib.suppress(OSError):  # a full disk must not end a run for this
        watch.write_status(self._run_dir, status)
      if status.ended:
        return
      self._over.wait(_SECONDS)
