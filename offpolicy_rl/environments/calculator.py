"""A calculator for arithmetic problems: the policy may call it before it says its answer."""

import ast
import operator
from collections.abc import Callable

from offpolicy_rl.environments import environment, tools
from offpolicy_rl.tasks import verifiers

_OPERATIONS: dict[type, Callable[..., float]] = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.USub: operator.neg,
  ast.UAdd: operator.pos,
}
_MOST_CHARACTERS = 200  # of an expression; without powers, its value has hardly more digits


def calculate(expression: str) -> float:
  """Computes an arithmetic expression.

  Args:
    expression: numbers, + - * / and parentheses, e.g. "12 + 34 * (5 - 6)".
  """
  if len(expression) > _MOST_CHARACTERS:
    raise ValueError(f"{len(expression)} characters, expected at most {_MOST_CHARACTERS}")
  try:
    return _value(ast.parse(expression.strip(), mode="eval").body)
  except (SyntaxError, RecursionError, MemoryError):
    raise ValueError("this is no arithmetic expression") from None


def _value(node: ast.AST) -> float:
  number = node.value if isinstance(node, ast.Constant) else None
  if isinstance(number, int | float) and not isinstance(number, bool):
    return number
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
    return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
  if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
    return _OPERATIONS[type(node.op)](_value(node.operand))
  raise ValueError("only numbers, + - * / and parentheses are allowed")


@environment.environment
class Calculator(tools.ToolEnvironment):
  """For problems of reasoning-gym, e.g. task.name=chain_sum."""

  tools = (calculate,)

  def judge(self, answer: str) -> float:
    """The verdict of the task's own verifier."""
    return verifiers.reasoning_gym(answer, self.problem)


@environment.environment
class PlainCalculator(Calculator):
  """The same for a model that continues text: [calculate(expression="1 + 2")], then its answer."""

  format, role = "pythonic", "user"

  def step(self, action: str) -> environment.Turn:
    """Puts "Answer:" behind the results of calls."""
    turn = super().step(action)
    results = "\n".join((turn.text, *turn.more))
    return turn if turn.done else environment.Turn(f"{results}\nAnswer:")
