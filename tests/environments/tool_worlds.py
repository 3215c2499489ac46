"""Tools for tests: a calculator in every format, and sums as an environment and as a task."""

import json

from offpolicy_rl.environments import environment, tools
from offpolicy_rl.environments.calculator import Calculator
from offpolicy_rl.tasks import catalog, sources, verifiers
from tests.environments.harnesses import add


@environment.environment
class Llama(Calculator):
  format = "llama3"


@environment.environment
class Gemma(Calculator):
  format = "gemma"


@environment.environment
class Sums(tools.ToolEnvironment):
  """The agent openai_harnesses.with_sdk as an environment."""

  tools = (add,)

  def judge(self, answer: str) -> float:
    return float(answer == json.loads(self.problem))


@catalog.task
def sums() -> catalog.Task:
  """Of two digits each."""
  problems = [
    sources.Problem(f"{a} + {b}?", json.dumps(str(a + b))) for a in range(1, 5) for b in range(1, 6)
  ]
  return catalog.Task("sums_with_tool", lambda: problems, verifiers.NAMED["exact"])
