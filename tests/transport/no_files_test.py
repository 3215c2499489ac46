"""What comes over the wire runs no code and opens no file: judged by the package's source."""

import ast

import pytest

from tests.conftest import ROOT

RUNS_CODE = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
OPENS = ("open", "memmap", "mkdir", "rmtree")
OPENS += ("read_bytes", "read_text", "write_bytes", "write_text")
IN_THE_SANDBOX = ROOT / "offpolicy_rl" / "sandbox" / "inside.py"  # see below
MAY_OPEN = {
  "security.py": "certificates, keys and tokens: paths from flags",
  "weights_dir.py": "the path comes from --weights_dir, never from the wire: see the test below",
}


def calls(tree: ast.AST):
  """(name, node) of everything that is called."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      yield getattr(node.func, "id", getattr(node.func, "attr", "")), node


def imports(tree: ast.AST) -> set[str | None]:
  """Modules, and what is taken out of them."""
  nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
  taken = {alias.name for node in nodes for alias in node.names}
  return taken | {getattr(node, "module", None) for node in nodes}


@pytest.mark.parametrize(
  "path", sorted((ROOT / "offpolicy_rl").rglob("*.py")), ids=lambda p: p.stem
)
def test_nothing_is_unpickled_or_evaluated_and_the_wire_opens_no_files(path):
  tree = ast.parse(path.read_text())
  assert not imports(tree) & set(RUNS_CODE)
  for name, node in calls(tree):
    runs = isinstance(node.func, ast.Name) and name in ("eval", "exec")
    assert not runs or path == IN_THE_SANDBOX
    assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}
    assert not (name in OPENS and path.parent.name == "transport" and path.name not in MAY_OPEN)


def test_what_runs_programs_is_called_in_the_sandbox_only():
  """Its text is handed to the sandbox; called outside, it would run the policy's programs."""
  inside = {n for n in ast.parse(IN_THE_SANDBOX.read_text()).body if isinstance(n, ast.FunctionDef)}
  runs = {f.name for f in inside if {"exec", "eval"} & {name for name, _ in calls(f)}}
  assert runs
  while more := {f.name for f in inside if runs & {name for name, _ in calls(f)}} - runs:
    runs |= more
  others = set((ROOT / "offpolicy_rl").rglob("*.py")) - {IN_THE_SANDBOX}
  called = {
    node.func.attr
    for path in others
    for _, node in calls(ast.parse(path.read_text()))
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "inside"
  }
  assert called and not called & runs


def test_no_path_of_the_weights_directory_comes_from_a_message():
  """It sees no message, adds only numbers to its path, and gets that from the flag alone."""
  package = ROOT / "offpolicy_rl"
  tree = ast.parse((package / "transport" / "weights_dir.py").read_text())
  own = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and "offpolicy" in n.module]
  assert [(n.module, [name.name for name in n.names]) for n in own] == [
    ("offpolicy_rl", ["files"])  # options of the library that writes
  ]
  joined = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div)]
  added = {ast.unparse(node.right) for node in joined}
  assert added == {"str(version)", "_INDEX", "f'{_INDEX}.tmp'"}
  assert [ast.unparse(n.args[0]) for name, n in calls(tree) if name == "Path"] == ["directory"]
  given = {
    ast.unparse(node.args[0])
    for path in package.rglob("*.py")
    for _, node in calls(ast.parse(path.read_text()))
    if ast.unparse(node.func) in ("weights_dir_lib.WeightsDirectory", "weights_dir.pull")
  }
  # In roles/: build_learner.make_store, weights._Stored.
  assert given == {"weights_dir", "self._directory"}
  command_line = ast.parse((package / "cli" / "training.py").read_text())
  passed = [k for _, n in calls(command_line) for k in n.keywords if k.arg == "weights_dir"]
  assert {ast.unparse(k.value) for k in passed} == {"flags.weights_dir"}
