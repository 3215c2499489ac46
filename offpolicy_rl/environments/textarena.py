"""Games of TextArena for one player, https://github.com/LeonGuertler/TextArena, as episodes.

A problem is a game with a seed; its question is what the game says first.
"""

import functools
import importlib
import json
import random
from typing import Any

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import apart, catalog, sources, splits, verifiers
from offpolicy_rl.tasks.rows import TaskError

_PLAYER, _GAME = 0, -1  # who says something


def task(settings: Any, label: str) -> splits.Task:
  """The game `label`; `settings`: the section `task`, of which `size` counts the games."""
  options = catalog.json_object("task.options", settings.options)

  def check() -> None:
    sources.check_package("textarena", "textarena", extra="textarena")
    apart.call(_openings, label, options, 1)

  def problems() -> list[sources.Problem]:
    openings = apart.call(_openings, label, options, settings.size)
    # Some games say the same at the beginning of each; every question has to be another one.
    numbered = len(set(openings)) < len(openings)
    return [
      sources.Problem(
        f"{opening}\n(Game {seed})" if numbered else opening,
        json.dumps({"game": label, "options": options, "seed": seed}),
      )
      for seed, opening in enumerate(openings)
    ]

  return splits.Task(
    settings.name,
    functools.cache(problems),
    verifiers.NAMED["exact"],
    check=check,
    slow=True,
    environment=f"{__name__}:Game",
  )


def _openings(label: str, options: dict[str, Any], size: int) -> list[str]:
  """The first words of the games with the first seeds; TaskError if there is no such game."""
  game = Game()
  return [game.open(label, options, seed) for seed in range(size)]


@environment.environment
class Game:
  """One game; its reward is the package's, which comes at its end."""

  def reset(self, problem: str, _seed: int) -> Turn:
    """Begins the game of the problem, whose seed decides everything."""
    given = json.loads(problem)
    self.open(given["game"], given["options"], given["seed"])
    return Turn()

  def open(self, label: str, options: dict[str, Any], seed: int) -> str:
    """Begins a game and returns what it says; TaskError if it is none for one player."""
    textarena: Any = importlib.import_module("textarena")  # an extra
    if label not in textarena.envs.registration.ENV_REGISTRY:
      raise TaskError(f"task.name: got 'textarena:{label:.60}', expected a game of the package")
    try:
      self._game = textarena.make(label, **options)
      self._game.reset(num_players=1, seed=seed)
    except (Exception, SystemExit) as error:  # a game of several players, a package it needs, ...
      why = " ".join(f"{type(error).__name__}: {error}".split())
      raise TaskError(f"task.name: 'textarena:{label}' can't be played here: {why:.200}") from None
    self._dice = random.getstate()
    self._inner = self._game
    while isinstance(self._inner, textarena.Wrapper):  # they repeat earlier turns
      self._inner = self._inner.env
    if not isinstance(self._inner.state, textarena.SinglePlayerState):
      raise TaskError(f"task.name: 'textarena:{label}' is no game for one player")
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
