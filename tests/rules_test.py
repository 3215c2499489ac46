"""The house rules that can be counted: sizes, docstrings, no defaults beside the configuration, and
nothing that nobody uses.
"""

import ast
import itertools
import pathlib
import re

import pytest

from tests.conftest import ROOT

FOLDERS = ("offpolicy_rl", "configs", "benchmarks", "tests")
FILES = [
  p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in p.name
]
PACKAGE = [p for p in FILES if p.is_relative_to(ROOT / "offpolicy_rl")]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
NESTS = ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith
MOST_LINES, MOST_FILE, MOST_NESTING, MOST_ARGUMENTS = 60, 400, 3, 8
LONG = {"configs/base.py:get_config"}  # one statement per key; parts would hide the whole

# Public, and used by name only, by tools elsewhere, or by people with a question.
USED_ELSEWHERE = {
  "losses/links.py": "all of them are named by objective.fn",
  "losses/induced_target.py:minima": "every minimum of a regime in which there are several",
  "losses/induced_target.py:forward_kl": "the divergence that the pessimistic regularizer adds",
  "sampler/vllm_worker.py:Worker": "named by vLLM's --worker-extension-cls",
  "sweep/axes.py": "what sweep files are written with",
  "tasks/symbolic.py:math_verify": "named by task.verifier",
}


def where(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


def functions(path: pathlib.Path) -> list:
  return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTION)]


def lines(function) -> int:
  """Without the docstring."""
  first = function.body[0]
  described = ast.get_docstring(function) is not None
  return (
    function.end_lineno - function.lineno + 1 - described * (first.end_lineno - first.lineno + 1)
  )


def nesting(body: list) -> int:
  """The deepest level of control flow; `elif` is none, functions inside count for themselves."""
  return max((_levels(node) for node in body if isinstance(node, NESTS)), default=0)


def _levels(node) -> int:
  orelse = getattr(node, "orelse", [])
  chained = isinstance(node, ast.If) and len(orelse) == 1 and isinstance(orelse[0], ast.If)
  inside = [node.body] if hasattr(node, "body") else []
  inside += [getattr(node, "finalbody", []), [] if chained else orelse]
  inside += [part.body for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ()))]
  below = 1 + max(map(nesting, inside))
  return max(below, _levels(orelse[0])) if chained else below


def arguments(function) -> int:
  found = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
  return len(found) - (found[:1] in (["self"], ["cls"])) + len(function.args.kwonlyargs)


@pytest.mark.parametrize("path", FILES, ids=where)
def test_nothing_is_too_large(path):
  assert len(path.read_text().splitlines()) <= MOST_FILE
  for function in functions(path):
    name = f"{where(path)}:{function.name}"
    assert lines(function) <= MOST_LINES or name in LONG, name
    assert arguments(function) <= MOST_ARGUMENTS, name
    deep = nesting(function.body)
    assert deep <= MOST_NESTING or where(path).startswith("tests/"), f"{name}: {deep} levels"


def test_the_measures_measure():
  [function] = ast.parse('def f(self, a, *, b):\n  """x\n  y"""\n  return a\n').body
  assert (lines(function), arguments(function), nesting(function.body)) == (2, 2, 0)
  deep = "if a:\n  b\nelif c:\n  for d in e:\n    try:\n      f\n    except G:\n      while h: i"
  assert nesting(ast.parse(deep).body) == 4
  assert nesting(ast.parse("with a:\n  def f():\n    if b:\n      pass").body) == 1


@pytest.mark.parametrize("path", PACKAGE, ids=where)
def test_what_is_public_says_what_it_is(path):
  tree = ast.parse(path.read_text())
  assert ast.get_docstring(tree) is not None
  for node in _outside_of_functions(tree):
    if not node.name.startswith("_"):
      assert ast.get_docstring(node), f"line {node.lineno}: {node.name}"


def _outside_of_functions(tree) -> list:
  """Functions and classes of a module, and what is in the classes."""
  own = [node for node in tree.body if isinstance(node, FUNCTION | ast.ClassDef)]
  return own + [
    x for node in own if isinstance(node, ast.ClassDef) for x in _outside_of_functions(node)
  ]


def test_a_configuration_is_read_without_defaults():
  owner = re.compile(r"(^|\.)(c|config|settings|learner|sampler|task|objective)$")
  for path in PACKAGE:
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.Call):
        continue
      called, given = ast.unparse(node.func), [ast.unparse(a) for a in node.args]
      reads = called.endswith(".get") and owner.search(called.removesuffix(".get"))
      asks = called == "getattr" and len(given) == 3 and owner.search(given[0])
      assert not asks and not (reads and len(given) > 1), f"{where(path)}:{node.lineno}"


def test_everything_public_is_used():
  """In the package, a card or a benchmark, other than by itself; methods, too, by their names."""
  users = [p for p in FILES if not p.is_relative_to(ROOT / "tests")]
  trees = {path: ast.parse(path.read_text()) for path in users}
  uses = [name for tree in trees.values() for name in _names(tree)]
  unused = set()
  for path, node in itertools.chain(*([(p, n) for n in trees[p].body] for p in PACKAGE)):
    if not isinstance(node, FUNCTION | ast.ClassDef) or node.name.startswith("_"):
      continue
    if uses.count(node.name) <= list(_names(node)).count(node.name):
      unused.add(f"{path.relative_to(ROOT / 'offpolicy_rl')}:{node.name}")
  known = lambda name: name in USED_ELSEWHERE or name.split(":")[0] in USED_ELSEWHERE
  assert not {name for name in unused if not known(name)}
  stale = {name for name in USED_ELSEWHERE if ":" in name} - unused
  assert not stale, "these are used, or gone"


def _names(tree):
  """Names that are read, as such or as attributes."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      yield node.id
    elif isinstance(node, ast.Attribute):
      yield node.attr
