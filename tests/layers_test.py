"""Imports point one way; heavy packages stay where they belong."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "offpolicy_rl"

# folder or top-level module -> what it may import from the package
BASE = {"types"}
ALLOWED = {
  "types": set(),
  "files": set(),
  "system": set(),
  "chat_api": set(),
  "sandbox": set(),
  "tasks": BASE | {"sandbox", "system"},
  "environments": BASE | {"chat_api", "sandbox", "tasks"},
  "model": BASE,
  "losses": BASE,
  "replay": BASE,
  "transport": BASE | {"files"},
  "config": BASE | {"losses", "model", "replay", "tasks", "transport"},
  "observe": BASE | {"config", "system"},
  "report": {"config", "observe"},
  "evaluation": BASE | {"tasks"},
  "sampler": BASE | {"chat_api", "environments", "model", "tasks"},
  "learner": BASE | {"files", "losses", "model", "replay"},
  "sweep": BASE | {"cli", "config", "observe", "system"},
  "roles": None,  # everything
  "planning": None,
  "cli": None,
}


def imports(path: pathlib.Path) -> set[str]:
  """Dotted names that a file imports, at any depth of the code: a.b.c for `from a.b import c`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def imported_rooms(path: pathlib.Path) -> set[str]:
  """First parts below offpolicy_rl that a file imports."""
  names = (name for name in imports(path) if name.startswith("offpolicy_rl."))
  return {name.split(".")[1] for name in names} - {"__version__"}


def room(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if "_pb2" not in p.name and room(p) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_rule(path):
  allowed = ALLOWED[room(path)]
  if allowed is not None:
    assert imported_rooms(path) - {room(path)} <= allowed


def test_every_room_is_covered_and_has_files():
  assert {room(path) for path in FILES} == set(ALLOWED)


def test_few_files_import_tensorflow_and_seqio():
  heavy = {"seqio", "tensorflow", "tensorflow_datasets"}
  found = {path for path in FILES if heavy & {name.split(".")[0] for name in imports(path)}}
  names = {"seqio_reader", "seqio_tasks", "seqio_vocabulary", "tfds"}
  assert found == {PACKAGE / f"tasks/{name}.py" for name in names}


def module_imports(package: pathlib.Path) -> dict[str, set[str]]:
  """Module -> the modules of the package that it imports, inside functions, too."""
  files = [path for path in package.rglob("*.py") if "_pb2" not in path.name]
  dotted = lambda path: ".".join(path.relative_to(package.parent).with_suffix("").parts)
  modules = {dotted(path).removesuffix(".__init__"): path for path in files}
  graph = {}
  for module, path in modules.items():
    names = {n if n in modules else n.rpartition(".")[0] for n in imports(path)}
    graph[module] = names & modules.keys() - {module}
  return graph


def in_cycles(graph: dict[str, set[str]]) -> set[str]:
  """Modules of cycles, and those between two: what is left without the first and the last."""
  graph = dict(graph)
  while loose := {m for m in graph if not graph[m] & graph.keys()}:
    graph = {m: imported for m, imported in graph.items() if m not in loose}
  while loose := graph.keys() - set().union(*graph.values()):
    graph = {m: imported for m, imported in graph.items() if m not in loose}
  return set(graph)


def test_modules_import_each_other_without_cycles():
  assert in_cycles(module_imports(PACKAGE)) == set()


def test_cycles_are_found():
  assert in_cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
  assert in_cycles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"b", "c"}


def test_a_client_needs_no_server():
  graph, reached, todo = module_imports(PACKAGE), set(), {"offpolicy_rl.transport.client"}
  while todo:
    reached |= todo
    todo = set().union(*(graph[module] for module in todo)) - reached
  assert "offpolicy_rl.transport.protocol" in reached
  assert "offpolicy_rl.transport.server" not in reached


def loaded_after(statement: str) -> set[str]:
  code = f"import sys; {statement}; print(*sys.modules)"
  output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
  return set(output.stdout.split())


def test_a_sampler_never_loads_tensorflow_or_what_only_a_learner_needs():
  loaded = loaded_after("import offpolicy_rl.roles.sampler")
  assert "jax" in loaded
  assert not loaded & {"tensorflow", "seqio", "orbax", "tensorstore"}


def test_a_learner_loads_tensorflow_only_for_its_prompts():
  assert not loaded_after("import offpolicy_rl.roles.learner") & {"tensorflow", "seqio"}


def test_checking_a_configuration_loads_no_jax():
  modules = "offpolicy_rl.cli.main, offpolicy_rl.config, offpolicy_rl.config.evaluation"
  assert not loaded_after(f"import {modules}") & {"jax", "tensorflow"}


def test_the_wire_needs_no_jax():
  assert "jax" not in loaded_after("import offpolicy_rl.transport.client")
