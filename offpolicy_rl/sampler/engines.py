"""Several engines, each on its devices, used like one."""

import concurrent.futures
from collections.abc import Sequence

from offpolicy_rl import types
from offpolicy_rl.sampler.engine import Engine
from offpolicy_rl.sampler.served import ServedEngine


class Engines:
  """The interface of `Engine`, with one tree of parameters per engine."""

  def __init__(self, engines: Sequence[Engine | ServedEngine]):
    self._engines = engines
    self._pool = concurrent.futures.ThreadPoolExecutor(len(engines))

  @property
  def room(self) -> int:
    return sum(max(engine.room, 0) for engine in self._engines)

  @property
  def busy(self) -> int:
    return sum(engine.busy for engine in self._engines)

  @property
  def room_soon(self) -> int:
    return sum(max(engine.room_soon, 0) for engine in self._engines)

  @property
  def progress(self) -> dict[str, int]:
    return {name: n for engine in self._engines for name, n in engine.progress.items()}

  def pop_started(self, ticket_id: str) -> float | None:
    """The same as `Engine.pop_started`."""
    times = (engine.pop_started(ticket_id) for engine in self._engines)
    return next((at for at in times if at is not None), None)

  def add(self, tickets: list[types.Ticket]) -> None:
    """Gives each ticket to the engine with most room."""
    for ticket in tickets:
      max(self._engines, key=lambda engine: engine.room).add([ticket])

  def step(self, params: Sequence, version: int) -> list:
    """Steps all engines at the same time, see `Engine.step`."""
    groups = self._pool.map(lambda engine, p: engine.step(p, version), self._engines, params)
    return [group for some in groups for group in some]

  def refresh(self, params: Sequence) -> None:
    list(self._pool.map(lambda engine, p: engine.refresh(p), self._engines, params))
