"""Tools that a policy calls: typed Python functions, in the formats that models write calls in.

    def add(a: int, b: int) -> int:
      \"\"\"Adds two numbers.\"\"\"
      return a + b

    @environment.environment
    class Sums(tools.ToolEnvironment):
      format, tools = "hermes", (add,)

      def judge(self, answer: str) -> float:
        return float(answer.strip() == json.loads(self.problem))

Parsers are strict: a call that is not as its format says is answered with what is wrong, and the
episode goes on.
"""

import ast
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.sandbox import outcomes

MAX_CALLS = 16  # in a turn
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
_NONE = type(None)


class MalformedCall(ValueError):
  """A call is not as its format says; the message is for the policy."""


class Call(NamedTuple):
  """A call that a policy has written."""

  name: str
  arguments: dict[str, Any]


class Format(NamedTuple):
  """The way in which a family of models writes calls and reads results."""

  parse: Callable[[str], list[Call]]  # [] = the text has no call; raises MalformedCall
  role: str  # of the messages with results
  result: str = "{}"  # how a result is put into its message

  def told(self, results: Iterable[str], role: str = "") -> list[str]:
    """Texts of the messages with results: one each, or one for all if it is the user's.

    Some templates take no two messages of the user in a row. `role`: "" = that of the format.
    """
    texts = [self.result.format(result) for result in results]
    return ["\n".join(texts)] if (role or self.role) == "user" else texts


# ---------------------------------------------------------------- what is called


def describe(function: types.FunctionType) -> dict[str, Any]:
  """The JSON schema of a function, as chat templates take it in `tools`.

  From annotations (str, int, float, bool, dict, list[...], Literal, ... | None), the docstring's
  first paragraph, and its section Args.

  Raises:
    TypeError: a parameter has no annotation, or another one.
  """
  hints = typing.get_type_hints(function)
  parameters = inspect.signature(function).parameters
  about, meanings = _docstring(inspect.getdoc(function) or "")
  properties = {}
  for name in parameters:
    if name not in hints:
      raise TypeError(f"{function.__name__}: parameter {name} has no annotation")
    schema = _schema(hints[name], f"{function.__name__}: parameter {name}")
    properties[name] = schema | ({"description": meanings[name]} if name in meanings else {})
  required = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
  return {
    "type": "function",
    "function": {
      "name": function.__name__,
      "description": about,
      "parameters": {"type": "object", "properties": properties, "required": required},
    },
  }


def _docstring(text: str) -> tuple[str, dict[str, str]]:
  """(first paragraph, {parameter: meaning})."""
  about = " ".join(text.split("\n\n")[0].split())
  section = re.search(r"^Args:\n((?:[ \t]+.*\n?)+)", text, re.MULTILINE)
  lines = re.findall(r"^[ \t]+(\w+): (.+)$", section[1], re.MULTILINE) if section else []
  return about, dict(lines)


def _schema(hint: Any, where: str) -> dict[str, Any]:
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if hint in _KINDS:
    return {"type": _KINDS[hint]}
  if hint is list or origin is list:
    return {"type": "array"} | ({"items": _schema(inner[0], where)} if inner else {})
  if origin is typing.Literal and len({type(value) for value in inner}) == 1:
    return _schema(type(inner[0]), where) | {"enum": list(inner)}
  if origin in (typing.Union, types.UnionType) and len(inner) == 2 and _NONE in inner:
    [kept] = set(inner) - {_NONE}
    return _schema(kept, where) | {"nullable": True}
  expected = "str, int, float, bool, dict, list[...], Literal or ... | None"
  raise TypeError(f"{where}: got {hint!r:.60}, expected {expected}")


def why_wrong(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
  """Says why a function with this schema can't be called so; "" = it can."""
  parameters = schema["function"]["parameters"]
  known = parameters["properties"]
  for name in arguments:  # in their order: that of a set is another one in every process
    if name not in known:
      return f"unknown argument {name!r:.60}, expected {', '.join(known) or 'none'}"
  for name in parameters["required"]:
    if name not in arguments:
      return f"missing argument {name!r}"
  problems = (_why_not(value, known[name], name) for name, value in arguments.items())
  return next(filter(None, problems), "")


def _why_not(value: Any, schema: Mapping[str, Any], where: str) -> str:
  if value is None and schema.get("nullable"):
    return ""
  kinds = {kind: name for kind, name in _KINDS.items() if name == schema["type"]}
  kind = next(iter(kinds), list)
  fits = type(value) is kind or (kind is float and type(value) is int)
  if not fits or value not in schema.get("enum", [value]):
    expected = " or ".join(map(repr, schema["enum"])) if "enum" in schema else schema["type"]
    return f"{where}: got {value!r:.60}, expected {expected}"
  if kind is list and "items" in schema:
    inner = (_why_not(x, schema["items"], f"{where}[{i}]") for i, x in enumerate(value))
    return next(filter(None, inner), "")
  return ""


# ---------------------------------------------------------------- formats


def _json(text: str) -> Any:
  def refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")

  try:
    return json.loads(text, parse_constant=refuse)
  except (ValueError, RecursionError) as error:
    raise MalformedCall(f"a call is not JSON: {error!s:.100}") from None


def _call(given: Any, arguments: str) -> Call:
  """The call of {"name": ..., arguments: {...}}."""
  if not isinstance(given, dict) or given.keys() != {"name", arguments}:
    raise MalformedCall(f'a call has to be {{"name": ..., "{arguments}": {{...}}}}')
  if not isinstance(given["name"], str) or not isinstance(given[arguments], dict):
    raise MalformedCall(f"a call's name has to be a text, its {arguments} an object")
  return Call(given["name"], given[arguments])


def hermes(text: str) -> list[Call]:
  """Calls as Hermes, Qwen2.5 and Qwen3 write them.

  <tool_call>
  {"name": "add", "arguments": {"a": 1, "b": 2}}
  </tool_call>
  """
  blocks = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
  if text.count("<tool_call>") != len(blocks) or text.count("</tool_call>") != len(blocks):
    raise MalformedCall("every <tool_call> needs its </tool_call>")
  return [_call(_json(block), "arguments") for block in blocks]


def llama3(text: str) -> list[Call]:
  """Calls as Llama 3.1 to 3.3 write them: the turn is JSON objects, separated by ";".

  {"name": "add", "parameters": {"a": 1, "b": 2}}
  """
  rest, calls = text.strip().removeprefix("<|python_tag|>").strip(), []
  if not rest.startswith("{"):
    return []
  decoder = json.JSONDecoder()
  while rest:
    try:
      _, end = decoder.raw_decode(rest)
    except (ValueError, RecursionError) as error:
      raise MalformedCall(f"a call is not JSON: {error!s:.100}") from None
    calls.append(_call(_json(rest[:end]), "parameters"))
    rest = rest[end:].strip()
    if rest and not rest.startswith(";"):
      raise MalformedCall(f'behind a call: got {rest[:20]!r}, expected ";" or the end')
    rest = rest.removeprefix(";").strip()
  return calls


def gemma(text: str) -> list[Call]:
  """Calls as Gemma is asked to write them: Python calls with literal arguments, in a block.

      ```tool_code
      add(a=1, b=2)
      ```

  A turn that is only a list, [add(a=1, b=2)], counts, too.
  """
  blocks = re.findall(r"```tool_code\n(.*?)```", text, re.DOTALL)
  if text.count("```tool_code") != len(blocks):
    raise MalformedCall("every ```tool_code needs its ```")
  return [call for block in blocks for call in _python_calls(block)] or pythonic(text)


def pythonic(text: str) -> list[Call]:
  """Calls as Llama 3.2 and 4 can write them: the turn is a list, [add(a=1, b=2)]."""
  alone = text.strip()
  if not (alone.startswith("[") and alone.endswith("]")):
    return []
  listed = _python(alone, "eval").body
  return list(map(_python_call, listed.elts if isinstance(listed, ast.List) else [listed]))


def _python(source: str, mode: str) -> Any:
  try:
    return ast.parse(source, mode=mode)
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise MalformedCall(f"a call is not Python: {error!s:.100}") from None


def _python_calls(source: str) -> list[Call]:
  calls = []
  for statement in _python(source.strip(), "exec").body:
    value = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
    calls += [_python_call(x) for x in (value.elts if isinstance(value, ast.Tuple) else [value])]
  return calls


def _python_call(node: ast.AST | None) -> Call:
  named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
  if not named or any(word.arg is None for word in node.keywords):
    raise MalformedCall("a call has to be name(argument=value, ...)")
  try:
    arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
  except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
    raise MalformedCall("a call's arguments have to be literals: 1, 'a', [1, 2], ...") from None
  return Call(node.func.id, arguments)


FORMATS = {
  "hermes": Format(hermes, "tool"),
  "llama3": Format(llama3, "tool"),
  "pythonic": Format(pythonic, "tool"),
  "gemma": Format(gemma, "user", "```tool_output\n{}\n```"),
}
_FORMATS = f"one of {', '.join(FORMATS)}"


# ---------------------------------------------------------------- the environment


def roles(made_by: Any, *, shown: bool) -> tuple[str, ...]:
  """The roles in which an environment or agent may answer: user, and tool if it reads calls so.

  `shown`: the prompts show tools.
  """
  form = getattr(made_by, "form", None)  # of an agent
  if isinstance(made_by, type) and issubclass(made_by, ToolEnvironment):
    role = made_by.role or FORMATS[made_by.format].role
  else:
    role = form.role if shown and isinstance(form, Format) else "user"
  return tuple(dict.fromkeys(("user", role)))


class ToolEnvironment:
  """An environment in which the policy calls tools until it says its answer: a turn without a call.

  Subclasses set `format` and `tools`, and judge the answer.
  """

  format = "hermes"  # of FORMATS
  tools: Sequence[types.FunctionType] = ()  # typed functions
  role = ""  # of messages with results; "" = as the format says
  problem = ""
  seed = 0

  def __init_subclass__(cls, **arguments: Any) -> None:
    """Raises TypeError if a subclass's `format` or `tools` can't be used."""
    super().__init_subclass__(**arguments)
    if cls.format not in FORMATS:
      raise TypeError(f"{cls.__name__}.format: got {cls.format!r:.60}, expected {_FORMATS}")
    if isinstance(cls.tools, property):  # known to its objects only
      return
    if not isinstance(cls.tools, list | tuple):
      got = f"got {cls.tools!r:.60}, expected a tuple of typed functions"
      raise TypeError(f"{cls.__name__}.tools: {got}")
    for function in cls.tools:
      describe(function)

  def judge(self, answer: str) -> float:
    """The reward of the policy's answer, thought included (`thoughts.removed` takes it off)."""
    raise NotImplementedError(f"{type(self).__name__} has no method judge(answer)")

  def reset(self, problem: str, seed: int) -> Turn:
    """Keeps both for tools and judge."""
    self.problem, self.seed = problem, seed
    self._tools = {function.__name__: (function, describe(function)) for function in self.tools}
    return Turn()

  def step(self, action: str) -> Turn:
    """Answers calls; judges a turn without any."""
    form = FORMATS[self.format]
    role = self.role or form.role
    try:
      calls = form.parse(action)
      if len(calls) > MAX_CALLS:
        raise MalformedCall(f"{len(calls)} calls in one turn, at most {MAX_CALLS} are allowed")
    except MalformedCall as error:
      return Turn(form.result.format(f"error: {error}"), role=role)
    if not calls:
      return Turn(reward=self.judge(action), done=True)
    first, *more = form.told(map(self._result, calls), role)
    return Turn(first, role=role, more=tuple(more))

  def _result(self, call: Call) -> str:
    if call.name not in self._tools:
      known = ", ".join(self._tools) or "none"
      return f"error: there is no tool {call.name!r:.60}, there are {known}"
    function, schema = self._tools[call.name]
    why = why_wrong(call.arguments, schema)
    if why:
      return f"error: {why}"
    try:
      text = _as_text(function(**call.arguments))
      text.encode()  # half of a surrogate pair, from a call's JSON, can't be said to the model
      return text
    except outcomes.SandboxError:  # nothing that the policy has done
      raise
    except Exception as error:  # of the tool; the policy is told
      return f"error: {type(error).__name__}: {error!s:.200}"


def _as_text(result: Any) -> str:
  if isinstance(result, str):
    return result
  if isinstance(result, float) and not math.isfinite(result):
    return str(result)
  return json.dumps(result, ensure_ascii=False, default=str)
