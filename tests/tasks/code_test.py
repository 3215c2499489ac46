"""Programs as answers: forms of tests, comparing, and programs that want to look right."""

import contextlib
import json
import time

import pytest

from offpolicy_rl.sandbox import inside, outcomes, programs
from offpolicy_rl.tasks import code, scoring, verifiers
from tests.sandbox import here

ADD = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
CALLS = {"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}
STATED = {"assertions": ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]}
FORMS = {"streams": ADD, "calls": CALLS, "assertions": STATED}
RIGHT = {
  "streams": "a, b = map(int, input().split())\nprint(a + b)",
  "calls": "def add(a, b): return a + b",
  "assertions": "def add(a, b): return a + b",
}
# As LiveCodeBench has them.
FUNCTIONAL = [{"input": "[1]\n[2]", "output": "[1, 2]", "testtype": "functional"}]


def no_sandbox():
  raise outcomes.SandboxError("there is no bwrap on this machine")


def judge(program: str, tests) -> float:
  return code.code(f"Here it is:\n```python\n{program}\n```\n", json.dumps(tests))


# ---------------------------------------------------------------- forms


@here.needs_sandbox
@pytest.mark.parametrize("form", FORMS)
def test_a_right_program_is_right_and_a_wrong_one_is_wrong(form):
  assert judge(RIGHT[form], FORMS[form]) == 1.0
  assert judge(RIGHT[form], json.dumps(FORMS[form])) == 1.0, "as JSON in a text"
  assert judge(RIGHT[form].replace("+ b", "+ b * (a == 1)"), FORMS[form]) == 0.0
  for broken in ("", "def", "raise ValueError", "exit(0)", RIGHT[form] + "\n1 / 0"):
    assert judge(broken, FORMS[form]) == 0.0


@here.needs_sandbox
@pytest.mark.long
@pytest.mark.parametrize(
  ("program", "tests"),
  [
    ("class Solution:\n  def add(self, a, b): return a + b", CALLS),
    ("class Solution:\n  def add(self, a, b): return a + b", STATED),
    ("def add(a, b):\n  print('debugging')\n  return a + b", CALLS),
    ("def add(a, b):\n  print('debugging')\n  return a + b", STATED),
    ("def f(x): return (1, (2,))", {"inputs": [[0]], "outputs": [[1, [2]]], "fn_name": "f"}),
    ("def f(x): return [1]", {"inputs": [[0]], "outputs": [[[1]]], "fn_name": "f"}),
    ("def f(x): return {1: 2}", {"inputs": [[0]], "outputs": [{"1": 2}], "fn_name": "f"}),
    ("def f(x): return 0.1 + 0.2", {"inputs": [[0]], "outputs": [0.3], "fn_name": "f"}),
    ("def f(a, b): return a + b", {"inputs": ["[1]\n[2]"], "outputs": ["[1, 2]"], "fn_name": "f"}),
    ("print(input())", {"inputs": [["a", "b"]], "outputs": [["a"]]}),
    ("print(input())", [{"input": "a\nb\n", "output": "a\n", "testtype": "stdin"}]),
    ("def f(a, b): return a + b", {"tests": json.dumps(FUNCTIONAL), "fn_name": "f"}),
    (
      "import collections\ndef f(x): return collections.Counter(x)",
      ["assert f('aab') == {'a': 2, 'b': 1}"],
    ),
    ("def f(x): return {(1, 'a'), (2, b'b')}", ["assert f(0) == {(1, 'a'), (2, b'b')}"]),
    ("def f(x): return x, -x", ["assert f(float('inf')) == (float('inf'), -float('inf'))"]),
    ("def f(x): return x", ["x = 10 ** 5000", "assert f(x) == x and type(f(1j)) is complex"]),
    (
      "def f(x):\n  if x < 0: raise ValueError('negative')\n  return x ** 0.5",
      "import math\ntry:\n  f(-1)\n  assert False\nexcept ValueError: pass\n"
      "assert math.isclose(f(2), 1.41421356, rel_tol=1e-6)",
    ),
    (
      "def area(shape): return shape['a'] * SIDE",
      {"assertions": "assert area(shape=dict(a=2)) == 2 * SIDE", "setup": "SIDE = 3"},
    ),
    (  # as HumanEval has it: the prompt defines a function that its check uses
      "def root(xs): return -xs[0] / xs[1]",
      {
        "setup": "def poly(xs, x): return sum(c * x ** i for i, c in enumerate(xs))\n"
        "def root(xs):\n  '''Finds it.'''",
        "assertions": "def check(candidate):\n  for i in range(1, 4):\n"
        "    assert abs(poly([i, 2], candidate([i, 2]))) < 1e-4\ncheck(root)",
        "fn_name": "root",
      },
    ),
  ],
)
def test_forms_of_values_and_tests(program, tests):
  if isinstance(tests, str):
    tests = {"assertions": tests}
  assert judge(program, tests) == 1.0
  name = program.split("def ")[-1].partition("(")[0] if "def " in program else ""
  other = f"def {name}(*a, **k): return 'nothing'" if name else "print('nothing')"
  assert judge(other, tests) == 0.0


@pytest.mark.parametrize(
  ("completion", "program"),
  [
    ("```python\na\n```", "a\n"),
    ("```\na\n```\nor\n```py\nb\n\n```", "b\n\n"),
    ("print(1)", "print(1)"),
    ("<think>```python\na\n```</think>print(2)", "print(2)"),
    ("<think>```python\na\n```", None),
    ("```python\na", None),
    ("1. so:\n   ```python\n   a\n   ```", "   a\n"),
  ],
)
def test_the_program_of_a_completion(completion, program):
  assert code.program(completion) == program


@pytest.mark.parametrize(
  ("printed", "expected", "same"),
  [
    ("1\n2\n", "1\n2", True),
    ("1 \n2\n\n", "1\n2", True),
    ("1 2", "1\n2", True),
    ("12", "1\n2", False),
    ("1", "1\n2", False),
    ("", "1", False),
    ("0.3333333", "0.333333333", True),
    ("0.33333", "0.333333333", False),
    ("1000000.5", "1000000.0", True),
    ("1000002.5", "1000000.0", False),
    ("1000000008", "1000000007", False),
    ("1.0", "1", False),
    ("1", "1.0", True),
    ("nan", "1.0", False),
    ("nan", "nan", True),
    ("1e999999999", "1.0", False),
    ("inf", "1.5", False),
    ("yes", "YES", False),
    ("x.", "y.", False),
  ],
)
def test_comparing_what_is_printed(printed, expected, same):
  assert code.same_output(printed, expected) == same


@pytest.mark.parametrize(
  ("tests", "problem"),
  [
    (3, "tests: got 3, expected an object"),
    ({}, "expected inputs and outputs, two lists, or assertions"),
    ({"inputs": [], "outputs": []}, "got 0 inputs and 0 outputs"),
    ({"inputs": ["1"], "outputs": []}, "got 1 inputs and 0 outputs"),
    ({"inputs": [1], "outputs": ["1"]}, "inputs: got 1, expected a text or a list of lines"),
    ({"inputs": [1], "outputs": [1], "fn_name": "f"}, "inputs: got 1, expected a list"),
    ([{"input": "1"}], "tests: got {'input': '1'}, expected input, output and testtype stdin"),
    (FUNCTIONAL, "expected input, output and testtype stdin, without fn_name"),
    ({"tests": ["1"], "fn_name": "f"}, "tests: got ['1'], expected a list of objects"),
    ({"assertions": []}, "assertions: got '', expected some about a function"),
    ({"assertions": ["assert 1 == 1"]}, "expected some about a function"),
    ({"assertions": ["assert f("]}, "assertions: "),
    ({"assertions": [1]}, "expected a text or a list of texts"),
    ({"assertions": ["f()"], "setup": 1}, "setup: got 1, expected a text"),
    (ADD | {"seconds": 0}, "seconds: got 0, expected a number above 0"),
  ],
)
def test_data_without_tests_are_named(tests, problem):
  for answer in (json.dumps(tests), json.dumps(json.dumps(tests))):
    assert problem in str(verifiers.why_unusable("code", answer))
  with pytest.raises(ValueError):
    judge("pass", tests)


def test_data_with_tests_are_usable():
  assert "Expecting value" in str(verifiers.why_unusable("code", '"no JSON"'))
  for tests in FORMS.values():
    assert verifiers.why_unusable("code", json.dumps(tests)) is None


@here.needs_sandbox
@pytest.mark.parametrize("mixed", [False, True])
def test_a_demonstration_has_to_pass_the_tests(mixed):
  name, answer = "code", json.dumps(ADD)
  if mixed:
    name, answer = verifiers.MIXTURE, verifiers.mixture_answer(verifiers.NAMED[name], answer)
  assert verifiers.why_unusable(name, answer, RIGHT["streams"]) is None
  why = verifiers.why_unusable(name, answer, "print(3)")
  assert why == "its demonstration does not pass its tests"


def test_a_learner_without_a_sandbox_reads_the_tests(monkeypatch):
  monkeypatch.setattr(programs, "check", no_sandbox)
  assert verifiers.why_unusable("code", json.dumps(ADD), "print(3)") is None
  assert "expected an object" in verifiers.why_unusable("code", "3", "print(3)")


# ---------------------------------------------------------------- programs that want to look right

EQUAL = """
class Right(str):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  __hash__ = str.__hash__
  def __getattr__(self, name): return Right()
  def __call__(self, *a, **k): return Right()
  def __bool__(self): return True
  def __repr__(self): return "3"
"""
FORGERIES = {
  "early": "import sys; sys.exit(0)",
  "hard exit": "import os; os._exit(0)",
  "exit in the call": "import os\ndef add(a, b): os._exit(0)",
  "exit by exception": "def add(a, b): raise SystemExit(0)",
  "at the end": "import atexit, os; atexit.register(os._exit, 0)",
  "ends a loop": "def add(a, b): raise StopIteration",
  "looks expected": "def add(a, b): raise AssertionError",
  "equal to all": EQUAL + "def add(a, b): return Right()",
  "an integer": EQUAL.replace("str", "int") + "def add(a, b): return Right()",
  "says so": """
import sys
print("passed", "PASSED", 1.0, True, "OK")
print(".\\n-----\\nRan 2 tests in 0.000s\\n\\nOK", file=sys.stderr)
""",
  "other builtins": """
import builtins
builtins.abs = builtins.all = lambda *a: 1
builtins.len = lambda x: 2
def add(a, b): return 0
def abs(x): return 0
def check(f): pass
def isclose(*a): return True
""",
  "other modules": """
import json, math
json.dumps = lambda *a: '["returned", true]'
math.isclose = lambda *a: True
def add(a, b): return 0
""",
  "reads the tests": """
import os
for name in ("/tests.json", "/setup.py", "/tests.py", "/program.py"):
  if os.path.exists(name):
    text = open(name).read()
def add(a, b): return 3 if "== 3" in text.partition("def add")[0] else text
""",
  "looks around": """
import gc, sys
def add(a, b):
  frame, seen = sys._getframe(), []
  while frame:
    seen.append({k: v for k, v in frame.f_locals.items() if k != "code"})
    frame = frame.f_back
  texts = [x for x in gc.get_objects() if type(x) in (list, tuple, dict)]
  return 3 if "assert " + "add" in repr(seen) + repr(texts) else 0
""",
  "writes answers": """
import os
for number in range(20):
  for line in (b'["returned", 1]\\n', b"3\\n", b'["returned", true]\\n'):
    try: os.write(number, line * 2)
    except OSError: pass
os._exit(0)
""",
  "garbage": """
import os
def add(a, b):
  for number in range(20):
    for line in (b"\\xff{" * 99999, b"[" * 99999 + b"\\n"):
      try: os.write(number, line)
      except OSError: pass
""",
  "not a number": "def add(a, b): return float('nan')",
  "kills": """
import os
for number in range(2, 999 if os.getpid() == 1 else 0):
  try: os.kill(number, 9)
  except OSError: pass
""",
}


@here.needs_sandbox
@pytest.mark.long
@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_but_right_answers_is_right(form, forgery):
  program = FORGERIES[forgery]
  if form == "streams" and "def add" in program:
    program += "\nprint(add(1, 2))"
  assert judge(program, FORMS[form]) == 0.0
  assert not here.processes()


@here.needs_sandbox
@pytest.mark.long
@pytest.mark.parametrize(
  "tests",
  [
    "assert all(x == y for x, y in zip(map(add, [1, 2], [2, 3]), [3, 5]))",
    "assert abs(add(1, 2) - 3) < 1e-6",
    "import math\nassert math.isclose(add(1, 2), 3)",
    "assert add(1, 2) == 3 and len([add(1, 1)]) == 1",
    "def check(f):\n  assert f(1, 2) == 3\ncheck(add)",
    "try:\n  add(1, 'a')\n  assert 0\nexcept TypeError: pass\nassert add(1, 2) == 3",
    "import unittest\nclass T(unittest.TestCase):\n  def test(s): s.assertEqual(add(1, 2), 3)\n"
    "T('test').debug()",
  ],
)
def test_no_form_of_assertions_can_be_fooled(tests):
  told = {"assertions": tests}
  assert judge(RIGHT["assertions"], told) == 1.0
  assert {name: judge(program, told) for name, program in FORGERIES.items()} == dict.fromkeys(
    FORGERIES, 0.0
  )


@here.needs_sandbox
def test_leaving_is_no_exception_that_a_test_waits_for():
  tests = ["try:\n  add(1, 2)\n  assert 0\nexcept ValueError: pass"]
  assert judge("def add(a, b): raise ValueError", tests) == 1.0
  assert judge("import os\ndef add(a, b): os._exit(0)", tests) == 0.0


def test_only_the_tests_say_which_functions_are_the_programs():
  assert inside.free("assert abs(f(1) - g) < 1e-6\ndef check(c): return c(x)", {"g": 1}) == {
    "f",
    "x",
  }
  source = (
    "import math as m, os.path\nfor i in range(3):\n  y = f(i)\n  assert m.isclose(y, os.path)"
  )
  assert inside.free(source, {}) == {"f"}


@pytest.mark.parametrize(
  "value",
  [
    None,
    True,
    3,
    -1.5,
    "é",
    b"\0",
    1 + 2j,
    [1, [2]],
    (1, ("a",)),
    {1, 2},
    frozenset({3}),
    {1: {"a": ()}},
  ],
)
def test_plain_data_come_as_they_went(value):
  line = json.dumps(["returned", inside.encode(value)])
  kind, found = inside.answer(line)
  assert (kind, found) == ("returned", value) and type(found) is type(value)


@pytest.mark.parametrize(
  "line",
  [
    "",
    "{}",
    "[]",
    '["returned"]',
    '["returned", {"float": []}]',
    '["returned", {"set": [[]]}]',
    '["returned", {"eval": "1"}]',
    '["raised", 3]',
    '["called", 3]',
    '["returned", {"a": 1, "b": 2}]',
    "[" * 100_000,
    '["returned", ' + "[" * 900 + "]" * 900 + "]",
  ],
)
def test_what_is_no_answer_is_named(line):
  with contextlib.suppress(ValueError):
    kind, value = inside.answer(line)
    assert kind == "returned" and isinstance(value, list), "deep, but data"


# ---------------------------------------------------------------- in workers


@here.needs_sandbox
@pytest.mark.long
def test_a_program_that_hangs_costs_its_completion_and_is_no_failure():
  programs = [
    "while True: pass",
    RIGHT["streams"],
    "import os\nfor _ in range(10_000): os.write(2, b'x' * 9999)",
  ]
  completions = [f"```python\n{program}\n```" for program in programs]
  with scoring.Scorer(verifiers.NAMED["code"], workers=1, time_limit=8.0, memory_mb=512) as scorer:
    judged = scorer.judgements(scorer.submit(completions, json.dumps(json.dumps(ADD))))
  assert [(one.reward, one.failed) for one in judged] == [(0.0, False), (1.0, False), (0.0, False)]
  assert not here.processes()


@here.needs_sandbox
@pytest.mark.long
def test_workers_that_are_closed_leave_no_program():
  scorer = scoring.Scorer(verifiers.NAMED["code"], workers=2, time_limit=60.0)
  for _ in range(2):
    scorer.submit(["```python\nwhile True: pass\n```"], json.dumps(ADD))
  end = 200
  while len(here.processes()) < 4 and (end := end - 1):
    time.sleep(0.1)
  assert len(here.processes()) == 4, "bwrap and Python, twice"
  scorer._pool.close()
  assert not here.processes()


def test_without_a_sandbox_no_scorer_begins(monkeypatch):
  monkeypatch.setattr(code.code, "offpolicy_rl_needs", no_sandbox)
  message = "verifier: got offpolicy_rl.tasks.code:code: there is no bwrap"
  with pytest.raises(ValueError, match=message):
    scoring.Scorer(verifiers.NAMED["code"], workers=1, time_limit=1.0)
