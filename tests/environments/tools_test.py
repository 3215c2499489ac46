"""Calls of tools: read strictly, checked against the functions' types, answered when wrong."""

import json
import re
from typing import Literal

import pytest

from offpolicy_rl.environments import tools
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.environments.tools import Call
from tests.environments import games, harnesses


def add(a: int, b: float, unit: Literal["m", "km"] = "m", tags: list[str] | None = None) -> str:
  """Adds two lengths,
  in one unit.

  Args:
    a: the first one.
    unit: of both.
  """
  return f"{a + b:g} {unit}" + "".join(tags or [])


def divide(a: int, b: int) -> float:
  """Divides."""
  return a / b


def test_a_function_is_described_as_templates_expect():
  assert tools.describe(add) == {
    "type": "function",
    "function": {
      "name": "add",
      "description": "Adds two lengths, in one unit.",
      "parameters": {
        "type": "object",
        "properties": {
          "a": {"type": "integer", "description": "the first one."},
          "b": {"type": "number"},
          "unit": {"type": "string", "enum": ["m", "km"], "description": "of both."},
          "tags": {"type": "array", "items": {"type": "string"}, "nullable": True},
        },
        "required": ["a", "b"],
      },
    },
  }


def test_a_function_without_types_can_not_be_described():
  with pytest.raises(TypeError, match="<lambda>: parameter x has no annotation"):
    tools.describe(lambda x: x)

  def odd(x: set) -> None: ...

  with pytest.raises(TypeError, match=r"odd: parameter x: got <class 'set'>, expected str, int"):
    tools.describe(odd)


@pytest.mark.parametrize(
  ("arguments", "why"),
  [
    ({"a": 1, "b": 2}, ""),
    ({"a": 1, "b": 2.5, "unit": "km", "tags": None}, ""),
    ({"a": 1, "b": 2, "tags": ["x"]}, ""),
    ({"a": 1}, "missing argument 'b'"),
    ({"a": 1, "b": 2, "c": 3}, "unknown argument 'c', expected a, b, unit, tags"),
    ({"a": "1", "b": 2}, "a: got '1', expected integer"),
    ({"a": True, "b": 2}, "a: got True, expected integer"),
    ({"a": 1.0, "b": 2}, "a: got 1.0, expected integer"),
    ({"a": 1, "b": 2, "unit": "cm"}, "unit: got 'cm', expected 'm' or 'km'"),
    ({"a": 1, "b": 2, "tags": ["x", 3]}, "tags[1]: got 3, expected string"),
    ({"a": 1, "b": None}, "b: got None, expected number"),
  ],
)
def test_arguments_have_the_functions_types(arguments, why):
  assert tools.why_wrong(arguments, tools.describe(add)) == why


def test_of_several_unknown_arguments_the_first_is_named_in_every_process():
  for first in "cdefgh":
    named = dict.fromkeys([first, *"cdefgh"], 1)
    assert tools.why_wrong(named, tools.describe(add)).startswith(f"unknown argument '{first}'")


ADD = Call("add", {"a": 1, "b": 2})
ONE = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
LLAMA = '{"name": "add", "parameters": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
  ("form", "text", "calls"),
  [
    ("hermes", "The sum is 3.", []),
    ("pythonic", "The sum is 3.", []),
    ("pythonic", "[add(a=1, b=2)]\n", [ADD]),
    ("pythonic", "[add(a=1, b=2),\n add(a=1, b=2)]", [ADD, ADD]),
    ("pythonic", '[f(x="""a\n  b""")]', [Call("f", {"x": "a\n  b"})]),
    ("pythonic", "[]", []),
    ("pythonic", "```tool_code\nadd(a=1, b=2)\n```", []),
    ("hermes", f"<tool_call>\n{ONE}\n</tool_call>", [ADD]),
    ("hermes", f"I add.\n<tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>", [ADD, ADD]),
    ("llama3", "It is {3}.", []),
    ("llama3", LLAMA, [ADD]),
    ("llama3", f"<|python_tag|>{LLAMA}; {LLAMA}\n", [ADD, ADD]),
    ("gemma", "It is [3].", []),
    ("gemma", "First:\n```tool_code\nadd(a=1, b=2)\n```", [ADD]),
    ("gemma", "```tool_code\nadd(a=1, b=2)\nadd(a=1,\n  b=2)\n```", [ADD, ADD]),
    ("gemma", "[add(a=1, b=2), add(a=1, b=2)]", [ADD, ADD]),
    ("gemma", "```tool_code\nf(x=[1, 'a'], y=-2.5)\n```", [Call("f", {"x": [1, "a"], "y": -2.5})]),
  ],
)
def test_calls_are_read(form, text, calls):
  assert tools.FORMATS[form].parse(text) == calls


@pytest.mark.parametrize(
  ("form", "text", "why"),
  [
    ("hermes", f"<tool_call>{ONE}", "every <tool_call> needs its </tool_call>"),
    ("hermes", f"{ONE}</tool_call>", "every <tool_call> needs its </tool_call>"),
    ("hermes", f"<tool_call><tool_call>{ONE}</tool_call>", "every <tool_call> needs"),
    ("hermes", "<tool_call>add(1, 2)</tool_call>", "a call is not JSON: Expecting value"),
    ("hermes", "<tool_call>[1]</tool_call>", 'a call has to be {"name": ..., "arguments": {...}}'),
    ("hermes", f"<tool_call>{LLAMA}</tool_call>", "a call has to be"),
    ("hermes", ONE.join(["<tool_call>", "x</tool_call>"]), "a call is not JSON: Extra data"),
    ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>', "name has to be a text"),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "NaN is no JSON"),
    ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "a call is not JSON"),
    ("llama3", "{add}", "a call is not JSON"),
    ("llama3", f"{LLAMA} {LLAMA}", "behind a call: got '{"),
    ("llama3", ONE, 'a call has to be {"name": ..., "parameters": {...}}'),
    ("gemma", "```tool_code\nadd(a=1, b=2)", "every ```tool_code needs its ```"),
    ("gemma", "```tool_code\nadd(1, 2)\n```", "a call has to be name(argument=value, ...)"),
    ("gemma", "```tool_code\nos.system(a='ls')\n```", "a call has to be name(argument=value"),
    ("gemma", "```tool_code\nadd(a=b, b=2)\n```", "arguments have to be literals"),
    ("gemma", "```tool_code\nimport os\n```", "a call has to be name"),
    ("gemma", "```tool_code\nadd(a=\n```", "a call is not Python"),
    ("gemma", "[add(**{'a': 1})]", "a call has to be name"),
    ("gemma", "[" + "(" * 10_000 + "]", "a call is not Python"),
    ("pythonic", "[add(a=1, b=2)]; [add(a=1, b=2)]", "a call is not Python"),
    ("pythonic", "[add(a=1, b=2)][add(a=1, b=2)]", "a call has to be name"),
  ],
)
def test_malformed_calls_say_what_is_wrong(form, text, why):
  with pytest.raises(tools.MalformedCall) as error:
    tools.FORMATS[form].parse(text)
  assert why in str(error.value)


class Sums(tools.ToolEnvironment):
  """Two tools; the answer is the problem's number."""

  tools = (add, divide)

  def judge(self, answer: str) -> float:
    return float(answer.strip() == json.loads(self.problem))


def call(name: str, **arguments) -> str:
  return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_an_episode_with_tools():
  played = Sums()
  assert played.reset('"3 m"', 7) == Turn()
  assert played.step(call("add", a=1, b=2)) == Turn("3 m", role="tool")
  both = call("add", a=1, b=2) + call("divide", a=1, b=4)
  assert played.step(both) == Turn("3 m", role="tool", more=("0.25",))
  wrong = {
    "<tool_call>": "error: every <tool_call> needs its </tool_call>",
    call("subtract", a=1): "error: there is no tool 'subtract', there are add, divide",
    call("add", a=1): "error: missing argument 'b'",
    call("divide", a=1, b=0): "error: ZeroDivisionError: division by zero",
    call("divide", a=1, b=1) * 17: "error: 17 calls in one turn, at most 16 are allowed",
  }
  for action, text in wrong.items():
    assert played.step(action) == Turn(text, role="tool")
  assert played.step(" 3 m\n") == Turn(reward=1.0, done=True)
  assert played.step("4") == Turn(reward=0.0, done=True)


def test_what_can_not_be_said_to_the_model_is_an_error_of_the_tool():
  def echo(text: str) -> str:
    return text

  class Echo(Sums):
    tools = (echo,)

  played = Echo()
  played.reset('""', 0)
  said = played.step(call("echo", text="\ud83d"))  # JSON can write half of a surrogate pair
  assert said.text.startswith("error: UnicodeEncodeError: ") and said.text.isascii()


def test_gemma_reads_results_as_the_users():
  class Gemma(Sums):
    format = "gemma"

  played = Gemma()
  played.reset('""', 0)
  said = played.step("```tool_code\ndivide(a=1, b=2)\n```")
  assert said == Turn("```tool_output\n0.5\n```", role="user")
  said = played.step("[divide(a=1, b=2), divide(a=1, b=1)]")  # its template takes turns strictly
  assert said == Turn("```tool_output\n0.5\n```\n```tool_output\n1.0\n```", role="user")


def test_the_roles_of_its_answers_are_known_before_it_plays():
  plain = type("Plain", (Sums,), {"role": "user"})
  gemma = type("Gemma", (Sums,), {"format": "gemma"})
  for made_by, found in ((Sums, ("user", "tool")), (plain, ("user",)), (gemma, ("user",))):
    assert tools.roles(made_by, shown=False) == found
  for shown, found in ((True, ("user", "tool")), (False, ("user",))):
    assert tools.roles(harnesses.calls, shown=shown) == found
    assert tools.roles(games.Adds, shown=shown) == tools.roles(None, shown=shown) == ("user",)
  told = plain()
  told.reset('""', 0)
  assert told.step(call("nothing")).role == told.step("<tool_call>").role == "user"


@pytest.mark.parametrize(
  ("attributes", "why"),
  [
    ({"format": "openai"}, "Faulty.format: got 'openai', expected one of hermes, llama3, "),
    ({"tools": min}, "Faulty.tools: got <built-in function min>, expected a tuple of typed"),
    ({"tools": (lambda x: x,)}, "parameter x has no annotation"),
  ],
)
def test_a_class_that_no_episode_could_use_is_refused_where_it_is_written(attributes, why):
  with pytest.raises(TypeError, match=re.escape(why)):
    type("Faulty", (tools.ToolEnvironment,), attributes)


def test_tools_may_be_known_to_an_object_only():
  class Late(Sums):
    @property
    def tools(self):
      return Sums.tools

  late = Late()
  late.reset('"3"', 0)
  assert late._tools.keys() == {function.__name__ for function in Sums.tools}


def test_a_class_without_a_judge_says_so():
  with pytest.raises(NotImplementedError, match="ToolEnvironment has no method judge"):
    tools.ToolEnvironment().judge("5")
