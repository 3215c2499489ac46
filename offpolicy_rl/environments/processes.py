"""Plays environments in worker processes.

Each process holds several environments and answers for one at a time. One that hangs, crashes or
hoards memory costs its own episode only: its process is replaced, and the others that it held are
played again there, action by action. They go on if they answer as before, else they have failed.
"""

import concurrent.futures
import dataclasses
import functools
import queue
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import pool


class Action(NamedTuple):
  """A turn of the policy."""

  text: str
  logprobs: tuple[tuple[str, float], ...]  # (token's text, nats), if they were asked for


@dataclasses.dataclass(eq=False)
class Played:
  """An environment in a process, and what has happened to it."""

  number: int
  name: str  # of the environment
  problem: str
  seed: int
  home: "_Home"
  start: int = -1  # of its process, when it was played there
  actions: list[Action] = dataclasses.field(default_factory=list)
  turns: list[Turn] = dataclasses.field(default_factory=list)


class Processes:
  """The environments of one engine."""

  def __init__(self, keys: Mapping[str, str], *, processes: int, seconds: float, memory_mb: int):
    """Starts the processes without waiting for them; ValueError if one can't be used here.

    Args:
      keys: "module:class" of each environment -> the key of the configuration that names it.
      seconds: limit of one reset or step.
      memory_mb: address space that a process may take beyond its imports; 0 = no limit.
    """
    environment.require_all(keys)  # a wrong one fails here, not in a process
    prepare = functools.partial(_allow, tuple(keys))
    self._homes = [_Home(pool.Worker(prepare, seconds, memory_mb)) for _ in range(processes)]
    self._answers: queue.SimpleQueue = queue.SimpleQueue()
    self._begun = 0

  def begin(self, name: str, problem: str, seed: int) -> Played:
    """Begins an episode where fewest are played; its first turn is among the answers to come."""
    home = min(self._homes, key=lambda home: len(home.held))
    played = Played(self._begun, name, problem, seed, home)
    self._begun += 1
    home.held.add(played)
    self._submit(played, None)
    return played

  def act(self, played: Played, text: str, logprobs: tuple[tuple[str, float], ...] = ()) -> None:
    """Gives the policy's turn to an environment; its answer is among the answers to come.

    `logprobs`: (token's text, nats), if the environment asked for them.
    """
    self._submit(played, Action(text, logprobs))

  def _submit(self, played: Played, action: Action | None) -> None:
    future = played.home.thread.submit(played.home.play, played, action)
    future.add_done_callback(lambda done: self._answers.put((played, done)))

  def end(self, played: Played) -> None:
    """Lets go of an environment."""
    played.home.held.discard(played)
    played.home.thread.submit(played.home.drop, played)

  def answers(self, seconds: float) -> list[tuple[Played, Turn | pool.Failed]]:
    """Returns the answers that have come, at least one if it comes within `seconds`.

    Raises:
      pool.PoolError: a process can't be prepared.
    """
    found = []
    try:
      found.append(self._answers.get(timeout=seconds) if seconds else self._answers.get_nowait())
      while True:
        found.append(self._answers.get_nowait())
    except queue.Empty:
      return [(played, done.result()) for played, done in found]

  def close(self) -> None:
    """Ends all processes, and everything that they started, at once."""
    for home in self._homes:
      home.worker.close()
      home.thread.shutdown(wait=False, cancel_futures=True)


class _Home:
  """A process and the environments in it."""

  def __init__(self, worker: pool.Worker):
    self.worker, self.held = worker, set()
    self.thread = concurrent.futures.ThreadPoolExecutor(1)
    self._start = 0  # number of the process, which counts up when it is replaced

  def play(self, played: Played, action: Action | None) -> Turn | pool.Failed:
    """The environment's answer to an action; None = it is reset."""
    if action is not None and played.start != self._start:
      problem = self._play_again(played)
      if problem:
        return problem
    answer = self._attempt(played, action)
    if isinstance(answer, Turn):
      played.turns.append(answer)
      if action is not None:
        played.actions.append(action)
    return answer

  def _play_again(self, played: Played) -> pool.Failed | None:
    for action, before in zip([None, *played.actions], played.turns, strict=True):
      answer = self._attempt(played, action)
      if isinstance(answer, pool.Failed):
        return answer
      if answer != before:
        return pool.Failed("its process was replaced, and it answered otherwise when played again")
    return None

  def _attempt(self, played: Played, action: Action | None) -> Turn | pool.Failed:
    start = self._start
    call: tuple[Any, ...] = (played.number, action and tuple(action))
    if action is None:
      call = (played.number, None, played.name, played.problem, played.seed)
    answer, replaced = self.worker.attempt(_play, call)
    self._start += bool(replaced)
    played.start = start
    return answer if isinstance(answer, pool.Failed) else Turn(*answer)

  def drop(self, played: Played) -> None:
    if played.start == self._start:
      _, replaced = self.worker.attempt(_drop, (played.number,))
      self._start += bool(replaced)


_MAKE: dict[str, Callable[[], environment.Environment]] = {}  # classes by name, in a process
_PLAYED: dict[int, environment.Environment] = {}


def _allow(names: Sequence[str]) -> None:
  _MAKE.update((name, environment.resolve(name)) for name in names)


def _play(
  number: int, action: tuple | None, name: str = "", problem: str = "", seed: int = 0
) -> tuple:
  if action is None:
    _PLAYED[number] = _MAKE[name]()
    return tuple(environment.checked(_PLAYED[number].reset(problem, seed)))
  text, logprobs = action
  # Only those that ask for log-probabilities take them.
  more = [logprobs] if logprobs else []
  return tuple(environment.checked(_PLAYED[number].step(text, *more)))


def _drop(number: int) -> None:
  played = _PLAYED.pop(number, None)
  close = getattr(played, "close", None)
  if close is not None:
    close()
