"""The calculator computes arithmetic and nothing else."""

import json

import pytest

from offpolicy_rl.environments import calculator
from offpolicy_rl.environments.environment import Turn


@pytest.mark.parametrize(
  ("expression", "value"),
  [("12 + 34", 46), ("2*(3-5)", -4), (" 7/2 ", 3.5), ("-3", -3), ("+1.5 * 2", 3.0)],
)
def test_arithmetic_is_computed(expression, value):
  assert calculator.calculate(expression) == value


@pytest.mark.parametrize(
  ("expression", "why"),
  [
    ("", "no arithmetic expression"),
    ("2 +", "no arithmetic expression"),
    ("x", "only numbers"),
    ("2 ** 99", "only numbers"),
    ("__import__('os')", "only numbers"),
    ("'a' * 9", "only numbers"),
    ("True + 1", "only numbers"),
    ("1+" * 101 + "1", "203 characters, expected at most 200"),
  ],
)
def test_anything_else_is_refused(expression, why):
  with pytest.raises(ValueError, match=why):
    calculator.calculate(expression)


def test_a_sum_with_the_calculator():
  played = calculator.Calculator()
  entry = {"question": "", "answer": "46", "metadata": {"source_dataset": "chain_sum"}}
  played.reset(json.dumps({"dataset": "chain_sum", "entry": entry}), 0)
  call = '<tool_call>{"name": "calculate", "arguments": {"expression": "12 + 34"}}</tool_call>'
  assert played.step(call) == Turn("46", role="tool")
  assert played.step("46") == Turn(reward=1.0, done=True)
  assert played.step("47").reward < 1


def test_a_sum_in_plain_text():
  played = calculator.PlainCalculator()
  entry = {"question": "", "answer": "46", "metadata": {"source_dataset": "chain_sum"}}
  played.reset(json.dumps({"dataset": "chain_sum", "entry": entry}), 0)
  assert played.step('[calculate(expression="12 + 34")]\n') == Turn("46\nAnswer:")
  assert played.step("[calculate(12)]\n").text.endswith("name(argument=value, ...)\nAnswer:")
  assert played.step(" 46\n") == Turn(reward=1.0, done=True)
