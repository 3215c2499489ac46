"""Problems of reasoning-gym that may be answered again after a wrong answer."""

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import verifiers


@environment.environment
class Again:
  """For any task of reasoning-gym, e.g. task.name=reasoning_gym:gcd; a right answer is worth 1."""

  def reset(self, problem: str, _seed: int) -> Turn:
    """Keeps the problem."""
    self._problem = problem
    return Turn()

  def step(self, action: str) -> Turn:
    """Ends with a right answer, by the task's own verifier."""
    if verifiers.reasoning_gym(action, self._problem) == 1.0:
      return Turn(reward=1.0, done=True)
    return Turn("That is wrong. Try again.")
