"""The world of turns.py: answers after a while, and needs no processor for it."""

import time

from offpolicy_rl.environments import environment

SECONDS, REPLY_TOKENS = 0.05, 16
TURN = environment.Turn("x" * REPLY_TOKENS)


@environment.environment
class Waiting:
  """Says the same in every turn, until the engine ends the episode."""

  def reset(self, _problem: str, _seed: int) -> environment.Turn:
    """Takes its time, too."""
    return self.step("")

  def step(self, _action: str) -> environment.Turn:
    """Waits as for a server elsewhere."""
    time.sleep(SECONDS)
    return TURN
