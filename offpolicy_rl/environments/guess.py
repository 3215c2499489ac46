"""Guess a number in few questions: a game of several turns, and the task of its problems.

"a2-8:" asks for a number from 2 to 8, in game a. The policy guesses a digit; the answer is "<" if
the number is smaller, ">" if it is larger and "?" to anything but a digit.
"""

import json
import random

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import catalog, sources, verifiers

_SIZES = range(4, 8)  # numbers to choose from; three guesses are enough for seven
_GAMES = "abcdefgh"  # with the same ranges, and other numbers


@environment.environment
class GuessTheNumber:
  """The number follows from the seed; finding it is worth 1."""

  def reset(self, problem: str, seed: int) -> Turn:
    """Thinks of a number within the bounds of the problem, [low, high] in JSON."""
    self._number = random.Random(seed).randint(*json.loads(problem))
    return Turn()

  def step(self, action: str) -> Turn:
    """Says whether the number is smaller or larger than the guess."""
    if len(action) != 1 or not action.isdecimal():
      return Turn("?")
    guess = int(action)
    if guess == self._number:
      return Turn(reward=1.0, done=True)
    return Turn("<" if self._number < guess else ">")


@catalog.task
def guess_the_number() -> catalog.Task:
  """One problem for each game and range of digits, one in eight held out."""
  bounds = [(low, low + size - 1) for size in _SIZES for low in range(11 - size)]
  problems = [
    sources.Problem(f"{game}{low}-{high}:", json.dumps([low, high]), demonstration="")
    for game in _GAMES
    for low, high in bounds
  ]
  return catalog.Task("guess_the_number", lambda: problems, verifiers.NAMED["exact"])
