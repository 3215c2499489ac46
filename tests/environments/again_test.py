"""A second answer counts as much as the first."""

from offpolicy_rl.environments.again import Again
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import sources


def test_a_problem_is_answered_until_it_is_right():
  problem = sources.reasoning_gym("gcd", 1)[0]
  game = Again()
  assert game.reset(problem.answer, 0) == Turn()
  for wrong in ("", "no idea", str(int(problem.demonstration) + 1)):
    assert game.step(wrong) == Turn("That is wrong. Try again.")
  assert game.step(problem.demonstration) == Turn(reward=1.0, done=True)
