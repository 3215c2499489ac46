"""The house rules that can be counted: sizes, docstrings, no defaults beside the configuration, and
nothing that nobody uses: functions, methods, keys. (Ruff finds unused arguments and variables.)
"""

import ast
import collections
import os
import pathlib
import re
import subprocess

import pytest
import yaml

from offpolicy_rl.config import keys
from tests.conftest import ROOT

FOLDERS = ("offpolicy_rl", "configs", "benchmarks", "tests")
FILES = [
  p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in p.name
]
PACKAGE = [p for p in FILES if p.is_relative_to(ROOT / "offpolicy_rl")]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
NESTS = ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith
MOST_LINES, MOST_FILE, MOST_NESTING, MOST_ARGUMENTS = 60, 450, 3, 8
# The keyword arguments of a loss are keys of the objective: what one needs stands in its signature.
KEYED = {f"offpolicy_rl/losses/functions.py:{name}" for name in ("ppo_clip", "probability_gap")}
TABLES = {"tests/tasks/symbolic_test.py"}  # files that are mostly a table, an entry per line

# Public, and used by name only, by tools elsewhere, or by people with a question.
USED_ELSEWHERE = {
  "environments/again.py:Again": "for environment.name of users",
  "environments/agents.py:agent": "for functions of users that environment.name names",
  "environments/openenv.py:task": "loaded by tasks/catalog.py",
  "environments/textarena.py:task": "loaded by tasks/catalog.py",
  "environments/verifiers.py:Rollout": "named by the task beside it",
  "environments/python.py:Python": "for environment.name of users",
  "sandbox/inside.py:judge": "called by the text inside.JUDGE, in the sandbox",
  "sandbox/inside.py:serve": "called by the text inside.SERVE, in the sandbox",
  "losses/objectives.py:objective": "losses.objective, loaded by losses/__init__.py",
  "observe/prometheus.py:LearnerCollector.describe": "called by prometheus_client",
  "observe/prometheus.py:SamplerCollector.describe": "called by prometheus_client",
  "tasks/seqio_vocabulary.py:of_checkpoint": "for Tasks of users that make token ids",
  "tasks/seqio_vocabulary.py:of_fresh_model": "for Tasks of users that make token ids",
  "tasks/seqio_tasks.py:register": "for pipelines elsewhere that read seqio's registries",
  "sampler/vllm_worker.py:Worker": "named by vLLM's --worker-extension-cls",
  "sampler/vllm_worker.py:Worker.load_again": "called by name through vLLM's collective_rpc",
}
AXES = ("choice", "draws", "log_uniform", "uniform", "zipped")
USED_ELSEWHERE |= {f"sweep/axes.py:{name}": "what sweep files are written with" for name in AXES}


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
  assert len(path.read_text().splitlines()) <= MOST_FILE or where(path) in TABLES
  for function in functions(path):
    name = f"{where(path)}:{function.name}"
    assert lines(function) <= MOST_LINES, name
    assert arguments(function) <= MOST_ARGUMENTS or name in KEYED, name
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
  public = [node for node in tree.body if not getattr(node, "name", "_").startswith("_")]
  for node in _outside_of_functions(ast.Module(public)):
    if not node.name.startswith("_") and not _is_trivial(node):
      assert ast.get_docstring(node), f"line {node.lineno}: {node.name}"


def _is_trivial(node) -> bool:
  """Whether it is a function of one line, whose name says what there is to say."""
  [first, *others] = node.body
  return isinstance(node, FUNCTION) and not others and first.lineno == first.end_lineno


def test_docstrings_begin_with_a_verb_or_what_is_returned():
  offenders = []
  for path in PACKAGE:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, FUNCTION | ast.ClassDef | ast.Module):
        text = ast.get_docstring(node) or ""
        if text.startswith(("What ", "Of ", "How ", "As ", "See ")):
          offenders.append(f"{where(path)}:{getattr(node, 'lineno', 1)}: {text.splitlines()[0]}")
  assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("path", PACKAGE, ids=where)
def test_public_functions_have_types(path):
  tree = ast.parse(path.read_text())
  public = [node for node in tree.body if not getattr(node, "name", "_").startswith("_")]
  for function in _outside_of_functions(ast.Module(public)):
    is_special = function.name.startswith("__")
    if isinstance(function, FUNCTION) and (is_special or not function.name.startswith("_")):
      assert _untyped(function) == [], f"line {function.lineno}: {function.name}"


def _untyped(function) -> list[str]:
  """Arguments without a type, and "return" where it has none; __init__ returns nothing."""
  given = function.args
  named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
  names = [a.arg for a in named if a and not a.annotation and a.arg not in ("self", "cls")]
  return names + ["return"] * (function.returns is None and function.name != "__init__")


def test_a_missing_type_is_found():
  source = "def f(self, a, b: int, *c, d=1, **e: str): ...\nasync def __init__(self): ..."
  first, second = ast.parse(source).body
  assert _untyped(first) == ["a", "d", "c", "return"] and _untyped(second) == []


def test_a_commit_is_checked_as_make_lint_checks():
  settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
  hooks = [hook["entry"] for repository in settings["repos"] for hook in repository["hooks"]]
  made = subprocess.run(
    ["make", "--dry-run", "lint"],
    cwd=ROOT,
    env={"PATH": os.environ["PATH"]},
    stdout=subprocess.PIPE,
  )
  assert made.stdout.decode().splitlines()[-1].split(" && ") == hooks


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


def test_the_encoding_of_files_does_not_depend_on_the_machine():
  found = [f"{where(p)}:{line}" for p in PACKAGE for line in unencoded(ast.parse(p.read_text()))]
  assert not found, "\n".join(found)


def unencoded(tree) -> list[int]:
  """Lines that read or write a text file without saying its encoding."""
  calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_of_text(node)]
  return [call.lineno for call in calls if "encoding" not in {k.arg for k in call.keywords}]


def _is_of_text(call) -> bool:
  function = ast.unparse(call.func)
  texts = [x.value for x in (*call.args, *(k.value for k in call.keywords)) if _is_mode(x)]
  opens = function == "open" or (function.endswith(".open") and texts)
  return function.endswith((".read_text", ".write_text")) or (opens and "b" not in "".join(texts))


def _is_mode(node) -> bool:
  return isinstance(node, ast.Constant) and bool(re.fullmatch("[rwax][bt+]*", str(node.value)))


def test_a_file_without_an_encoding_is_found():
  source = 'a.read_text()\nopen(a)\na.open("w")\nopen(a, mode="r+")\na.write_text(b)'
  assert unencoded(ast.parse(source)) == [1, 2, 3, 4, 5]
  source = 'os.open(a, os.O_RDWR)\na.open("rb")\nopen(a, "wb")\na.read_text(encoding="utf-8")'
  assert unencoded(ast.parse(source)) == []


def test_everything_public_is_used():
  """In the package, a card or a benchmark, other than by itself."""
  trees = {p: ast.parse(p.read_text()) for p in FILES if not p.is_relative_to(ROOT / "tests")}
  package = {path: tree for path, tree in trees.items() if path in PACKAGE}
  assert unused(package, trees) - USED_ELSEWHERE.keys() == set()
  stale = USED_ELSEWHERE.keys() - unused(package, trees)
  assert not stale, "these are used, or gone"


def test_what_is_unused_is_found():
  def found(module: str, other: str = "") -> set[str]:
    package = {ROOT / "offpolicy_rl/one.py": ast.parse(module)}
    return unused(package, package | {ROOT / "offpolicy_rl/two.py": ast.parse(other)})

  function = "def used(): used()\n"
  assert found(function) == {"one.py:used"}
  assert found(function, "used()\nother.used()\nimport other\nother.used()") == {"one.py:used"}
  assert not found(function, "from offpolicy_rl import one\none.used()")
  assert not found(function, "from offpolicy_rl import one as two\ntwo.used()")
  assert not found(function, "from offpolicy_rl.one import used as mine\nmine()")
  assert not found(function, "name = 'offpolicy_rl.one:used'")
  assert not found(function + "used()")
  kept = "class _Kept:\n  def used(self): self.used()\n"
  assert found(kept) == {"one.py:_Kept.used"}
  assert found(kept, "import json\njson.used()") == {"one.py:_Kept.used"}
  assert not found(kept, "anything.used()")
  assert not found("import io\nclass Sink(io.IOBase):\n  def writable(self): ...\nSink()")


# Folders that take whole sections (`**config.model`), and there name the keys without the section.
SECTIONS_OF_A_FOLDER = {"model": "model", "objective": "losses"}


def test_every_key_is_read():
  trees = {str(p.relative_to(ROOT / "offpolicy_rl")): ast.parse(p.read_text()) for p in PACKAGE}
  assert unread(keys.all_keys(), trees) == []


def test_a_key_that_nobody_reads_is_found():
  def found(key: str, source: str, file: str = "roles/learner.py") -> bool:
    return unread([key], {file: ast.parse(source)}) == [key]

  assert found("learner.steps", "config.learner.rows")
  assert found("learner.steps", "config.learner.steps = 3")
  assert found("learner.steps", "config.evaluation.steps")
  assert not found("learner.steps", "settings = config.learner\nprint(settings.steps)")
  assert not found("learner.steps", "def make(learner): return learner['steps']")
  assert not found("learner.steps", "check('learner.steps')")
  assert found("objective.clip_low", "def make(clip_low): ...")
  assert not found("objective.clip_low", "def ppo_clip(*, clip_low): ...", "losses/functions.py")


def unread(names, trees: dict) -> list[str]:
  """Keys ("section.name") that no file (path -> tree) reads; in one, both parts must be named."""
  files = {path: _words(tree) for path, tree in trees.items()}

  def reads(path: str, key: str) -> bool:
    section, _, name = key.rpartition(".")
    near = section in files[path] or not section
    whole = path.partition("/")[0] == SECTIONS_OF_A_FOLDER.get(section)
    return key in files[path] or (name in files[path] and (near or whole))

  return [key for key in names if not any(reads(path, key) for path in files)]


def _words(tree) -> set[str]:
  """Attributes and names that are read, arguments, and short texts."""
  words = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      words.add(node.attr)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
      words.add(node.id)
    elif isinstance(node, ast.arg):
      words.add(node.arg)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      words.add(node.value)
  return words


def unused(package: dict, users: dict) -> set[str]:
  """ "file:name" and "file:Class.method" of `package` that `users` (path -> tree) do not name.

  Functions and classes count under the module that they come from. Methods count by name, but not
  where the name is looked up in a module; those of classes with a base from outside are called from
  there.
  """
  names, attributes, passed_on = [], [], []
  for path, tree in users.items():
    _collect(_module(path), tree, names, attributes, passed_on)
  named = _by_key(names)
  for importer, module, name in passed_on:  # from a import b: whoever names importer.b uses a.b
    named[module, name] += named[importer, name]
  attributes = _by_key(attributes)
  missing = set()
  for path, tree in package.items():
    short = str(path.relative_to(ROOT / "offpolicy_rl"))
    for node in _outside_of_functions(tree):
      if isinstance(node, ast.ClassDef):
        methods = [m for m in node.body if isinstance(m, FUNCTION) and _is_of_ours(node, tree)]
        missing |= {
          f"{short}:{node.name}.{m.name}"
          for m in methods
          if not m.name.startswith("_") and _is_not_named(m, attributes[m.name])
        }
    missing |= {
      f"{short}:{node.name}"
      for node in tree.body
      if isinstance(node, FUNCTION | ast.ClassDef)
      and not node.name.startswith("_")
      and _is_not_named(node, named[_module(path), node.name])
    }
  return missing


def _module(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_of_ours(node: ast.ClassDef, tree) -> bool:
  """Whether all methods of a class are called by us: no base but of this module, or plain data."""
  here = {n.name for n in tree.body if isinstance(n, ast.ClassDef)} | {"NamedTuple", "Exception"}
  return all(ast.unparse(base) in here for base in node.bases)


def _by_key(pairs: list) -> dict:
  found = collections.defaultdict(list)
  for key, node in pairs:
    found[key].append(node)
  return found


def _is_not_named(definition, uses: list) -> bool:
  inside = {id(node) for node in ast.walk(definition)} if uses else set()
  return all(id(node) in inside for node in uses)


def _collect(module: str, tree, names: list, attributes: list, passed_on: list) -> None:
  """Adds ((module, name), node) and (attribute, node) of one file, and what it imports by name."""
  modules, own = {}, {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        known = alias.asname or alias.name
        modules[known], own[known] = f"{node.module}.{alias.name}", (node.module, alias.name)
        passed_on.append((module, node.module, alias.name))
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
      names.append((own.get(node.id, (module, node.id)), node))
    elif isinstance(node, ast.Attribute):
      inside = modules.get(ast.unparse(node.value))
      (names if inside else attributes).append(((inside, node.attr) if inside else node.attr, node))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
      names.append((tuple(node.value.partition(":")[::2]), node))  # "module:function"
