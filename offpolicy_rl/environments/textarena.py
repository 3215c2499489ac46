"""Games of TextArena for one player, https://github.com/LeonGuertler/TextArena, as episodes.

A problem is a game with a seed; its question is what the game says first.
"""

import functools
import importlib
import json
import random
from typing import Any

from offpolicy_rl.environments import adapted, environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import catalog, sources, splits
from offpolicy_rl.tasks.rows import TaskError

_PLAYER, _GAME = 0, -1  # who says something


def task(settings: Any, label: str) -> splits.Task:
  """The game `label`; `settings`: the section `task`, of which `size` counts the games."""
  world = {"game": label, "options": catalog.json_object("task.options", settings.options)}
  check = functools.partial(sources.check_package, "textarena", "textarena", extra="textarena")
  return adapted.of_seeds(settings, f"{__name__}:Game", _openings, world, check)


def _openings(world: dict[str, Any], size: int) -> list[str]:
  """The first words of the games with the first seeds; TaskError if there is no such game."""
  game = Game()
  return [game.open(**world, seed=seed) for seed in range(size)]


@environment.environment
class Game:
  """One game; its reward is the package's, which comes at its end."""

  def reset(self, problem: str, _seed: int) -> Turn:
    """Begins the game of the problem, whose seed decides everything."""
    given = json.loads(problem)
    self.open(**given["world"], seed=given["seed"])
    return Turn()

  def open(self, game: str, options: dict[str, Any], seed: int) -> str:
    """Begins a game and returns what it says; TaskError if it is none for one player."""
    textarena: Any = importlib.import_module("textarena")  # an extra
    if game not in textarena.envs.registration.ENV_REGISTRY:
      raise TaskError(f"task.name: got 'textarena:{game:.60}', expected a game of the package")
    try:
      self._game = textarena.make(game, **options)
      self._game.reset(num_players=1, seed=seed)
    except (Exception, SystemExit) as error:  # a game of several players, a package it needs, ...
      why = " ".join(f"{type(error).__name__}: {error}".split())
      raise TaskError(f"task.name: 'textarena:{game}' can't be played here: {why:.200}") from None
    self._dice = random.getstate()
    self._inner = self._game
    while isinstance(self._inner, textarena.Wrapper):  # they repeat earlier turns
      self._inner = self._inner.env
    if not isinstance(self._inner.state, textarena.SinglePlayerState):
      raise TaskError(f"task.name: 'textarena:{game}' is no game for one player")
    return self._said()

  def step(self, action: str) -> Turn:
    """Makes a move; the package puts it into brackets if it has none."""
    random.setstate(self._dice)  # the package draws from the process's own generator
    done, _ = self._game.step(action)
    self._dice = random.getstate()
    if done:
      rewards, _ = self._game.close()
      return Turn(reward=rewards[_PLAYER], done=True)
    return Turn(self._said())

  def _said(self) -> str:
    """The game's words since the last call, without the player's own."""
    _, messages = self._inner.get_observation()
    return "\n".join(text for sender, text, _ in messages if sender == _GAME)
