"""Plays environments in worker processes.

Each process holds several environments and answers for one at a time; what waits for it travels in
one message. One that hangs, crashes or
hoards memory costs its own episode only: its process is replaced, and the others that it held are
played again there, action by action. They go on if they answer as before, else they have failed.
"""

import dataclasses
import functools
import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Sampled, Turn
from offpolicy_rl.tasks import pool


class Action(NamedTuple):
  """A turn of the policy."""

  text: str
  sampled: Sampled | None  # for agents


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
    self._answers: queue.SimpleQueue = queue.SimpleQueue()
    workers = [pool.Worker(prepare, seconds, memory_mb) for _ in range(processes)]
    self._homes = [_Home(worker, self._answers.put) for worker in workers]
    self._begun = 0

  def begin(self, name: str, problem: str, seed: int) -> Played:
    """Begins an episode where fewest are played; its first turn is among the answers to come."""
    home = min(self._homes, key=lambda home: len(home.held))
    played = Played(self._begun, name, problem, seed, home)
    self._begun += 1
    home.held.add(played)
    home.asked.put(_Asked(played))
    return played

  def act(self, played: Played, text: str, sampled: Sampled | None = None) -> None:
    """Gives the policy's turn to an environment; its answer is among the answers to come.

    `sampled`: for agents.
    """
    played.home.asked.put(_Asked(played, Action(text, sampled)))

  def end(self, played: Played) -> None:
    """Lets go of an environment."""
    played.home.held.discard(played)
    played.home.asked.put(_Asked(played, over=True))

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
      pass
    for _, answer in found:
      if isinstance(answer, pool.PoolError):
        raise answer
    return found

  def close(self) -> None:
    """Ends all processes, and everything that they started, at once."""
    for home in self._homes:
      home.worker.close()
      home.asked.put(None)


class _Asked(NamedTuple):
  played: Played
  action: Action | None = None  # None = it is reset
  over: bool = False  # or let go of, which nobody waits for

  def call(self) -> tuple:
    played = self.played
    if self.over:
      return _drop, played.number
    if self.action is None:
      return _play, played.number, None, played.name, played.problem, played.seed
    return _play, played.number, tuple(self.action)


class _Home:
  """A process and the environments in it, served by a thread."""

  def __init__(self, worker: pool.Worker, answer: Callable[[tuple[Played | None, Any]], None]):
    """`answer`: takes an environment and its answer, or None and why there is none."""
    self.worker, self.held = worker, set()
    self.asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()  # None = no more
    self._answer = answer
    self._start = 0  # number of the process, which counts up when it is replaced
    threading.Thread(target=self._serve, daemon=True).start()

  def _serve(self) -> None:
    while True:
      asked = [self.asked.get()]
      while not self.asked.empty():
        asked.append(self.asked.get())
      try:
        self._serve_all([a for a in asked if a])
      except pool.PoolError as error:
        self._answer((None, error))
      if None in asked:
        return

  def _serve_all(self, asked: Sequence[_Asked]) -> None:
    while asked:
      first = asked[0]
      if self._is_here(first):
        asked = asked[self._serve_together(list(itertools.takewhile(self._is_here, asked))) :]
      elif first.over:  # it went with its process
        asked = asked[1:]
      elif problem := self._play_again(first.played):
        self._answer((first.played, problem))
        asked = asked[1:]

  def _is_here(self, asked: _Asked) -> bool:
    """Whether it is to begin, or is played in the process that runs."""
    is_reset = asked.action is None and not asked.over
    return is_reset or asked.played.start == self._start

  def _serve_together(self, asked: Sequence[_Asked]) -> int:
    """The number of those served before the process was replaced, if it was."""
    served, start = 0, self._start
    attempts = self.worker.attempts(_call, [a.call() for a in asked])
    for (answer, replaced), a in zip(attempts, asked, strict=False):
      served += 1
      self._start += bool(replaced)
      if not a.over:
        a.played.start = start
        self._answer((a.played, _remembered(a, answer)))
    return served

  def _play_again(self, played: Played) -> pool.Failed | None:
    """Why an environment can't be played again in the process that runs; None = it was."""
    again = [_Asked(played), *(_Asked(played, action) for action in played.actions)]
    played.start = self._start
    found = list(self.worker.attempts(_call, [a.call() for a in again]))
    replaced = bool(found[-1][1])
    self._start += replaced
    answers = [answer for answer, _ in found]
    if failed := next((x for x in answers if isinstance(x, pool.Failed)), None):
      return failed
    if replaced:
      return pool.Failed("its process was replaced, and ran out of memory when it was played again")
    if [Turn(*answer) for answer in answers] != played.turns:
      return pool.Failed("its process was replaced, and it answered otherwise when played again")
    return None


def _remembered(asked: _Asked, answer: Any) -> Turn | pool.Failed:
  """The answer as a turn, kept for when it has to be played again."""
  if isinstance(answer, pool.Failed):
    return answer
  turn, played = Turn(*answer), asked.played
  played.turns.append(turn)
  if asked.action is not None:
    played.actions.append(asked.action)
  return turn


_MAKE: dict[str, Callable[[], environment.Environment]] = {}  # classes by name, in a process
_PLAYED: dict[int, environment.Environment] = {}


def _allow(names: Sequence[str]) -> None:
  _MAKE.update((name, environment.resolve(name)) for name in names)


def _call(function: Callable, *arguments: Any) -> Any:
  return function(*arguments)


def _play(
  number: int, action: tuple | None, name: str = "", problem: str = "", seed: int = 0
) -> tuple:
  if action is None:
    _PLAYED[number] = _MAKE[name]()
    return tuple(environment.checked(_PLAYED[number].reset(problem, seed)))
  text, sampled = action
  more = [] if sampled is None else [sampled]  # agents alone take it
  return tuple(environment.checked(_PLAYED[number].step(text, *more)))


def _drop(number: int) -> None:
  played = _PLAYED.pop(number, None)
  close = getattr(played, "close", None)
  if close is not None:
    close()
