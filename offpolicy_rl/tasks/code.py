"""The verifier `code`: runs the completion's program on a problem's tests, in the sandbox.

The answer data hold the tests, an object or a text with its JSON:

    {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                  stdin and stdout
    {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}      a function, or a method of Solution
    {"assertions": ["assert add(1, 2) == 3"], "setup": ""}      statements about functions

The first two are the forms of APPS and TACO. A list of objects with input, output and testtype, as
LiveCodeBench has it, is one of these; for testtype functional it stands beside fn_name as "tests".
A list of assertions, as MBPP has it, is the third. There, names that nobody else defines are those
of the program, and `fn_name`, too. Outputs are compared here and assertions run in a sandbox of
their own, so that a program can't see what is expected, nor say that it was right.
"""

import decimal
import functools
import json
import pathlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from offpolicy_rl.sandbox import inside, outcomes, programs
from offpolicy_rl.tasks import named, pool, scoring, thoughts

_SHARE = 0.75  # of the time for a completion: what is left is for the judge and a busy machine
_SECONDS, _MEMORY_MB = 10.0, 1024  # outside of worker processes; the most that a program gets
_TOLERANCE = decimal.Decimal("1e-6")  # of numbers with a fraction, relative above 1
_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


class Tests(NamedTuple):
  """The tests of a problem."""

  cases: Sequence[tuple[Any, Any]] = ()  # (stdin, stdout) or (arguments, value)
  function: str = ""  # its name; "" = the program reads stdin
  assertions: str = ""  # a program; "" = there are cases
  setup: str = ""  # Python before the assertions, and before the program that they test
  seconds: float = _SECONDS  # of CPU time, for a program


@scoring.verifier
@named.needs(programs.check)
def code(completion: str, answer: str) -> float:
  """1.0 when the program in the completion passes all tests of the problem."""
  tests, written = tests_of(json.loads(answer)), program(completion)
  if written is None:
    return 0.0
  if tests.assertions:
    return float(_holds(written, tests))
  return float(_returns(written, tests) if tests.function else _prints(written, tests))


def program(completion: str) -> str | None:
  """The program of a completion: its last ``` block, or all behind the thought; None in one."""
  text = thoughts.removed(completion)
  if text is None:
    return None
  blocks = _BLOCK.findall(text)
  return blocks[-1] if blocks else None if "```" in text else text


def limits(cpu_seconds: float = _SECONDS) -> outcomes.Limits:
  """Limits of a program that runs now: what the call of this worker process has left.

  Raises:
    TimeoutError: nothing is left.
  """
  call, memory_mb = pool.call_limits(), _MEMORY_MB
  seconds = _SECONDS
  if call is not None:
    seconds = _SHARE * (call.end - time.monotonic())
    memory_mb = min(call.memory_mb or _MEMORY_MB, _MEMORY_MB)
  if seconds <= 0:
    raise TimeoutError
  return outcomes.Limits(seconds, min(cpu_seconds, seconds), memory_mb)


def tests_of(data: Any) -> Tests:
  """The tests in answer data; ValueError names what is wrong with them."""
  data = _object_of(json.loads(data) if isinstance(data, str) else data)
  function, setup = (data.get(name) or "" for name in ("fn_name", "setup"))
  for name, text in (("fn_name", function), ("setup", setup)):
    if not isinstance(text, str):
      raise ValueError(f"{name}: got {text!r:.60}, expected a text")
  seconds = data.get("seconds", _SECONDS)
  if type(seconds) not in (int, float) or not 0 < seconds < 1e6:
    raise ValueError(f"seconds: got {seconds!r:.60}, expected a number above 0")
  assertions, cases = "", []
  if "assertions" in data:
    assertions = _statements(data["assertions"], function)
  else:
    cases = _cases(data, function)
  return Tests(cases, function, assertions, setup, float(seconds))


def why_unusable(answer: str, demonstration: str = "") -> str | None:
  """Reason why answer data can't judge a program; None if they can.

  `demonstration`: a completion that has to pass the tests; "" = there is none. It is tried only
  where there is a sandbox: a learner may be without.
  """
  try:
    tests_of(json.loads(answer))
  except ValueError as error:
    return str(error)
  try:
    programs.check()
  except outcomes.SandboxError:
    return None
  fails = demonstration and code(demonstration, answer) != 1.0
  return "its demonstration does not pass its tests" if fails else None


def _object_of(data: Any) -> dict[str, Any]:
  """The tests as an object with columns, or with assertions."""
  if isinstance(data, list):
    data = {"tests" if data and isinstance(data[0], dict) else "assertions": data}
  if not isinstance(data, dict):
    raise ValueError(f"tests: got {data!r:.60}, expected an object")
  return data | _columns(data["tests"], data.get("fn_name")) if "tests" in data else data


def _columns(cases: Any, function: Any) -> dict[str, list]:
  """Inputs and outputs of cases as LiveCodeBench has them."""
  cases = json.loads(cases) if isinstance(cases, str) else cases
  kind = "functional" if function else "stdin"
  if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
    raise ValueError(f"tests: got {cases!r:.60}, expected a list of objects")
  for case in cases:
    if not case.keys() >= {"input", "output"} or case.get("testtype", kind) != kind:
      beside = "beside" if function else "without"
      raise ValueError(
        f"tests: got {case!r:.60}, expected input, output and testtype {kind}, {beside} fn_name"
      )
  return {name: [case[name[:-1]] for case in cases] for name in ("inputs", "outputs")}


def _statements(given: Any, function: str) -> str:
  lines = [given] if isinstance(given, str) else given
  if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
    raise ValueError(f"assertions: got {given!r:.60}, expected a text or a list of texts")
  text = "\n".join(lines)
  try:
    names = inside.free(text, {})
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise ValueError(f"assertions: {error!s:.100}") from None
  if not names and not function:
    raise ValueError(f"assertions: got {text!r:.60}, expected some about a function")
  return text


def _cases(data: dict, function: str) -> Sequence[tuple[Any, Any]]:
  inputs, outputs = data.get("inputs"), data.get("outputs")
  if not isinstance(inputs, list) or not isinstance(outputs, list):
    raise ValueError("tests: expected inputs and outputs, two lists, or assertions")
  if len(inputs) != len(outputs) or not inputs:
    raise ValueError(f"tests: got {len(inputs)} inputs and {len(outputs)} outputs, expected pairs")
  pair = _call if function else _streams
  return [pair(*case) for case in zip(inputs, outputs, strict=True)]


def _call(given: Any, expected: Any) -> tuple[list, Any]:
  """(arguments, value); as texts they are JSON, an argument per line."""
  if isinstance(given, str):
    given = [json.loads(line) for line in given.splitlines() if line.strip()]
    expected = json.loads(expected) if isinstance(expected, str) else expected
  if not isinstance(given, list):
    raise ValueError(f"inputs: got {given!r:.60}, expected a list of arguments")
  return given, expected


def _streams(given: Any, expected: Any) -> tuple[str, str]:
  return _text(given, "inputs"), _text(expected, "outputs")


def _text(given: Any, name: str) -> str:
  if isinstance(given, list):  # lines
    given = "\n".join(_text(line, name) for line in given)
  if not isinstance(given, str):
    raise ValueError(f"{name}: got {given!r:.60}, expected a text or a list of lines")
  return given


# ---------------------------------------------------------------- judging


def _prints(written: str, tests: Tests) -> bool:
  with programs.together() as run:
    for stdin, expected in tests.cases:
      try:
        ran = run(outcomes.Program(written), stdin, limits(tests.seconds))
      except TimeoutError:  # the cases before have used it up
        return False
      if (ran.status, ran.ended) != (0, "exit") or not same_output(ran.stdout, expected):
        return False
  return True


def same_output(printed: str, expected: str) -> bool:
  """Whether two texts have the same lines, white space at ends aside, or the same words.

  Words with a fraction in `expected` may differ by 1e-6, of the value if that is above 1.
  """
  lines, right = ([line.rstrip() for line in x.rstrip().split("\n")] for x in (printed, expected))
  if lines == right:
    return True
  words, right = printed.split(), expected.split()
  return len(words) == len(right) and all(map(_same_word, words, right))


def _same_word(word: str, right: str) -> bool:
  if word == right or "." not in right:
    return word == right
  try:
    given, expected = decimal.Decimal(word), decimal.Decimal(right)
    return _near(given, expected)
  except decimal.DecimalException:  # no numbers, or too large ones
    return False


def _near(given: decimal.Decimal, expected: decimal.Decimal) -> bool:
  if not given.is_finite() or not expected.is_finite():
    return False
  return abs(given - expected) <= _TOLERANCE * max(1, abs(expected))


def _returns(written: str, tests: Tests) -> bool:
  lines = [inside.request(tests.function, given, {}) for given, _ in tests.cases]
  main = _inside().text + inside.SERVE
  files = {inside.PROGRAM: f"{tests.setup}\n{written}"}
  ran = programs.run(outcomes.Program(main, files), "".join(lines), limits(tests.seconds))
  answers = ran.stdout.splitlines()
  if len(answers) != len(tests.cases):
    return False
  return all(
    _same_value(line, right) for line, (_, right) in zip(answers, tests.cases, strict=True)
  )


def _same_value(line: str, expected: Any) -> bool:
  try:
    kind, value = inside.answer(line)
    value = _as_json(value)
  except (ValueError, RecursionError):
    return False
  if kind != "returned":
    return False
  alone = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
  return _equal(value, expected) or _equal(value, alone)  # APPS wraps some values in a list


def _as_json(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return list(map(_as_json, value))
  if isinstance(value, dict):
    return {str(key): _as_json(inner) for key, inner in value.items()}
  return value


def _equal(value: Any, expected: Any) -> bool:
  if isinstance(value, int | float) and isinstance(expected, int | float):
    is_rounded = isinstance(value, float) or isinstance(expected, float)
    numbers = map(decimal.Decimal, (value, expected))
    return _near(*numbers) if is_rounded else value == expected
  if isinstance(value, list) and isinstance(expected, list):
    return len(value) == len(expected) and all(map(_equal, value, expected))
  if isinstance(value, dict) and isinstance(expected, dict):
    return value.keys() == expected.keys() and all(_equal(value[k], expected[k]) for k in expected)
  return type(value) is type(expected) and value == expected


def _holds(written: str, tests: Tests) -> bool:
  source, setup = _inside().text, tests.setup
  functions = [tests.function] if tests.function else []
  told = {"setup": setup, "tests": tests.assertions, "functions": functions}
  judge = outcomes.Program(source + inside.JUDGE, {inside.TESTS: json.dumps(told)})
  judged = outcomes.Program(source + inside.SERVE, {inside.PROGRAM: f"{setup}\n{written}"})
  ran = programs.converse(judge, judged, limits(tests.seconds))
  return (ran.status, ran.ended) == (0, "exit")


@functools.cache
def _inside() -> outcomes.Program:
  return outcomes.Program(pathlib.Path(inside.__file__).read_text(encoding="utf-8"))
