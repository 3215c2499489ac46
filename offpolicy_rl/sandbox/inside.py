"""Runs inside of the sandbox: one program calls functions of another one, which it doesn't trust.

`serve` runs the policy's program and calls its functions as it is asked to; `judge` runs the tests,
for which these functions look like its own. Between them go lines of JSON: plain data only, so that
whatever the policy's program returns is compared as the tests' own data are. Nothing else of the
program reaches the tests, and nothing of the tests but the arguments reaches the program.

This file is the beginning of /main.py there: it imports the standard library only, and as little of
it as it can, because it begins anew for every completion.
"""

from __future__ import annotations  # without `typing`, which takes as long as all the rest

import builtins
import json
import math
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Any, TextIO

SINK = 3  # where nothing may be opened to write: the descriptor of /dev/null
LONGEST_LINE = 1 << 22  # characters
SERVE, JUDGE = "\nserve()\n", "\njudge()\n"  # ends of /main.py
PROGRAM, TESTS = "program.py", "tests.json"  # files beside it
_DIGITS = 100_000  # of an integer
_COLLECTIONS = {"tuple": tuple, "set": set, "frozenset": frozenset}
_ENDS = (StopIteration, StopAsyncIteration)  # would end a loop of the tests without a word


def encode(value: Any) -> Any:
  """Plain data as JSON; objects of derived types become those of the base.

  Raises:
    TypeError: it has something else.
  """
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, str):
    return "".join(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else {"float": repr(float(value))}
  if isinstance(value, list):
    return list(map(encode, value))
  for name, kind in _COLLECTIONS.items():
    if isinstance(value, kind):
      return {name: list(map(encode, value))}
  if isinstance(value, dict):
    return {"dict": [[encode(key), encode(inner)] for key, inner in value.items()]}
  if isinstance(value, bytes):
    return {"bytes": value.hex()}
  if isinstance(value, complex):
    return {"complex": [encode(value.real), encode(value.imag)]}
  raise TypeError(f"got {type(value).__name__}, expected plain data")


def decode(value: Any) -> Any:
  """Inverse of `encode`; any error of a built-in type for what is no encoded data."""
  if isinstance(value, list):
    return list(map(decode, value))
  if not isinstance(value, dict):
    return value
  [(name, inner)] = value.items()
  if name == "dict":
    return {decode(key): decode(one) for key, one in inner}
  if name == "bytes":
    return bytes.fromhex(inner)
  if name == "complex":
    return complex(*map(decode, inner))
  return float(inner) if name == "float" else _COLLECTIONS[name](map(decode, inner))


def request(name: str, arguments: list, named: dict[str, Any]) -> str:
  """A line that asks for a call."""
  return json.dumps([name, encode(arguments), encode(named)]) + "\n"


def answer(line: str) -> tuple[str, Any]:
  """("returned", the function's value) or ("raised", the name of an exception).

  Raises:
    ValueError: it is no such line.
  """
  try:
    kind, value = json.loads(line)
    if kind == "raised" and isinstance(value, str):
      return kind, value
    if kind == "returned":
      return kind, decode(value)
  except (ValueError, TypeError, LookupError, RecursionError):
    pass
  raise ValueError("the program gave no answer")


def _channel() -> tuple[TextIO, TextIO]:
  """(what the other side says, what it hears); loses what is printed from now on."""
  heard, said = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  try:
    sink = os.open(os.devnull, os.O_WRONLY)
  except PermissionError:  # in a pod
    sink = SINK
  os.dup2(sink, 1)
  sys.set_int_max_str_digits(_DIGITS)
  return heard, said


def serve() -> None:
  """Runs the program, then answers calls until there are no more."""
  heard, said = _channel()
  with open(PROGRAM, encoding="utf-8") as file:
    code = compile(file.read(), f"/{PROGRAM}", "exec")
  module = sys.modules["program"] = type(sys)("program")
  namespace = vars(module)
  exec(code, namespace)
  for line in heard:
    said.write(json.dumps(_called(namespace, *json.loads(line))) + "\n")
    said.flush()


def _called(namespace: dict[str, Any], name: str, arguments: Any, named: Any) -> list:
  try:
    function = namespace[name] if name in namespace else getattr(namespace["Solution"](), name)
    return ["returned", encode(function(*decode(arguments), **decode(named)))]
  except Exception as error:
    return ["raised", type(error).__name__]


def judge() -> None:
  """Runs the tests; ends with an exception when one fails."""
  heard, said = _channel()
  with open(TESTS, encoding="utf-8") as file:
    tests = json.load(file)
  namespace: dict[str, Any] = {"__name__": "tests"}
  exec(compile(tests["setup"], "/setup.py", "exec"), namespace)
  for name in free(tests["tests"], namespace) | set(tests["functions"]):
    namespace[name] = _function(name, heard, said)
  exec(compile(tests["tests"], "/tests.py", "exec"), namespace)


def free(source: str, namespace: dict[str, Any]) -> set[str]:
  """Names that a program uses and nobody has defined: the functions that it tests."""
  import ast

  nodes = list(ast.walk(ast.parse(source)))
  known = {node.arg for node in nodes if isinstance(node, ast.arg)}
  known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
  aliases = [node for node in nodes if isinstance(node, ast.alias)]
  known |= {(node.asname or node.name).partition(".")[0] for node in aliases}
  names = [node for node in nodes if isinstance(node, ast.Name)]
  known |= {node.id for node in names if not isinstance(node.ctx, ast.Load)}
  return {node.id for node in names} - known - namespace.keys() - set(dir(builtins))


def _function(name: str, heard: TextIO, said: TextIO) -> Callable:
  def call(*arguments, **named):
    said.write(request(name, list(arguments), named))
    said.flush()
    try:
      kind, value = answer(heard.readline(LONGEST_LINE))
    except ValueError:
      os._exit(1)  # no test can take it for an exception that it waits for
    if kind == "returned":
      return value
    kind = getattr(builtins, value, None)
    expected = isinstance(kind, type) and issubclass(kind, Exception)
    raise kind(name) if expected and not issubclass(kind, _ENDS) else RuntimeError(value)

  return call
