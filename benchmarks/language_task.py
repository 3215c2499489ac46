"""A task with many right answers: reach a number with seven digits, each used once.

"3572914=9" asks for an expression of all the digits before "=", in any order, with + or - between
them, that makes 9, such as "9+7-5-2+3-4+1". Every problem has hundreds or thousands of right
answers of 13 characters, so a policy can lose entropy without losing accuracy, and the other way
round. Prompts do not come twice in a run.
"""

import json
import random
import re

from offpolicy_rl.tasks import catalog, sources, verifiers

DIGITS = 7
_EXPRESSION = re.compile(rf"\d(?:[+-]\d){{{DIGITS - 1}}}")


def problems(count: int = 14_000) -> list[sources.Problem]:
  """Different problems, always the same ones; the demonstration is a random right answer."""
  chance = random.Random(0)
  made: dict[str, sources.Problem] = {}
  while len(made) < count:
    digits = [chance.randint(1, 9) for _ in range(DIGITS)]
    expression = str(digits[0]) + "".join(f"{chance.choice('+-')}{d}" for d in digits[1:])
    target = value(expression)
    if target < 0:
      continue
    question = f"{''.join(map(str, sorted(digits)))}={target}"
    answer = json.dumps({"digits": sorted(digits), "target": target})
    made.setdefault(question, sources.Problem(question, answer, expression))
  return list(made.values())


def value(expression: str) -> int:
  """The value of an expression of digits, + and -."""
  return sum(int(term) for term in re.findall(r"[+-]?\d", expression))


@verifiers.verifier
def verify(completion: str, answer: str) -> float:
  """1.0 for an expression that has all the digits and the value, else 0.0."""
  wanted = json.loads(answer)
  if not _EXPRESSION.fullmatch(completion):
    return 0.0
  digits = sorted(int(digit) for digit in completion[::2])
  return float(digits == wanted["digits"] and value(completion) == wanted["target"])


@catalog.task
def countdown() -> catalog.Task:
  """Held-out problems: one in eight, by the hash of the question."""
  return catalog.Task("countdown", problems, "benchmarks.language_task:verify")
