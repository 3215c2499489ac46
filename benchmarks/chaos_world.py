"""An environment that does everything wrong now and then, always in the same places."""

import os
import random
import time

from offpolicy_rl.environments import environment, guess
from offpolicy_rl.environments.environment import Turn

SETTINGS = [
  "--config.task.name=offpolicy_rl.environments.guess:guess_the_number",
  "--config.environment.name=benchmarks.chaos_world:Unruly",
  "--config.environment.max_turns=3",
  "--config.environment.max_turn_tokens=2",
  "--config.environment.seconds=5",
  "--config.environment.memory_mb=512",
  "--config.task.max_prompt_tokens=5",
  "--config.task.max_completion_tokens=9",
  "--config.warm_start.steps=0",
]
FILE = "CHAOS_WORLD_FAULTS"  # variable: a file that gets a line for each fault
_LATE_SECONDS, _FOREVER_SECONDS = 0.3, 3600.0
_LARGE = 10_000_000  # bytes of an answer, ten times what is allowed
_HOARD = 1 << 30  # bytes, more than environment.memory_mb
# Shares of all answers; the rest is as it should be.
FAULTS = {
  "late": 0.01,
  "done": 0.03,
  "large": 0.005,
  "nonsense": 0.005,
  "raises": 0.005,
  "crashes": 0.003,
  "hoards": 0.003,
  "hangs": 0.002,
}


@environment.environment
class Unruly(guess.GuessTheNumber):
  """Guess a number; a fault is a function of the problem, the seed and what the policy said."""

  def reset(self, problem: str, seed: int) -> Turn:
    """Thinks of a number."""
    self._said = [problem, str(seed)]
    return self._fault(super().reset(problem, seed))

  def step(self, action: str) -> Turn:
    """Compares it to a guess."""
    self._said.append(action)
    return self._fault(super().step(action))

  def _fault(self, turn: Turn):
    draw = random.Random("/".join(self._said))
    kinds, shares = ["", *FAULTS], [1 - sum(FAULTS.values()), *FAULTS.values()]
    kind = draw.choices(kinds, shares)[0]
    if kind and FILE in os.environ:
      with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(f"{kind}\n")
    if kind == "done":  # also before the policy has said anything
      return turn._replace(done=True)
    if kind == "large":
      return Turn("x" * _LARGE)
    if kind == "nonsense":
      return f"not a {turn!r}"
    if kind == "raises":
      raise RuntimeError("no such guess")
    if kind == "crashes":
      os._exit(3)
    if kind == "hoards":
      self._hoard = bytearray(_HOARD)
    time.sleep({"late": _LATE_SECONDS, "hangs": _FOREVER_SECONDS}.get(kind, 0.0))
    return turn
