"""launch/colab's notebooks: clean in the repository, name what exists, run from top to bottom."""

import glob
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys

import nbclient
import nbformat
import pytest

from configs import base
from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.observe import metrics
from tests.conftest import ROOT

NOTEBOOK = ROOT / "launch" / "colab" / "offpolicy_rl_demo.ipynb"
OWN = ROOT / "launch" / "colab" / "own_objective.ipynb"
STEPS, LAG, LAG_STEPS, SEQIO_STEPS = 12, 3, 8, 6
OTHERS = {"--depth", "--editable", "--python", "--quiet", "--without-pip"}  # of git, venv and pip
pytestmark = pytest.mark.timeout(900)  # of processes one after another, on busy machines, too
SMALL = f"""

CARD = "configs/test.py"
STEPS, LAG, LAG_STEPS, SEQIO_STEPS = {STEPS}, {LAG}, {LAG_STEPS}, {SEQIO_STEPS}
RUNS = {{runs!r}}
LAG_LEARNING_RATE = 1e-2
"""


def read(path=NOTEBOOK) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def cells(notebook, kind: str) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == kind]


def settings(notebook) -> nbformat.NotebookNode:
  (found,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
  return found


def printed(notebook) -> str:
  return "".join(output.get("text", "") for c in cells(notebook, "code") for output in c.outputs)


def outputs(notebook, mime: str) -> list[str]:
  """Whatever was shown in this form."""
  shown = [output for cell in cells(notebook, "code") for output in cell.outputs]
  return [output.data[mime] for output in shown if mime in output.get("data", {})]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
  """(the notebook with its outputs, the directory of its runs); a cell that fails raises."""
  runs = tmp_path_factory.mktemp("notebook")
  return execute(NOTEBOOK, SMALL.format(runs=str(runs))), runs


def execute(path, small: str) -> nbformat.NotebookNode:
  """Runs a notebook from top to bottom with other settings."""
  notebook = read(path)
  cell = settings(notebook)
  names = lambda code: set(re.findall(r"\b[A-Z_]+\b(?=[^=\n]*=)", code))
  assert names(small) <= names(cell.source), "every setting of the test is one of the notebook"
  cell.source += small
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
  )
  client.execute()
  return notebook


@pytest.mark.long
def test_every_cell_runs_and_shows_what_it_should(executed):
  notebook, _ = executed
  code = cells(notebook, "code")
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  assert len(outputs(notebook, "image/png")) == 3  # the demo, the target, the lag experiment
  (page,) = (shown for shown in outputs(notebook, "text/html") if "<iframe" in shown)
  assert "srcdoc=" in page and "held-out" in page
  assert "\nstep 1/12 " in printed(notebook) and "\x1b" not in printed(notebook)  # plain lines


@pytest.mark.long
def test_the_accuracies_it_prints_are_those_of_its_runs(executed):
  notebook, runs = executed
  said = re.findall(
    r"(\S+)(?: at lag \d+)?: held-out pass@1 (\S+) before RL, (\S+) after (\d+) steps",
    printed(notebook),
  )
  all_steps = {"demo": STEPS, "beta_shift": LAG_STEPS, "grpo": LAG_STEPS, "doubles": SEQIO_STEPS}
  assert [row[0] for row in said] == list(all_steps)
  for name, before, after, steps in said:
    (run,) = runs.glob(f"{name}-*")
    assert int(steps) == all_steps[name]
    measured = {
      row["phase"]: f"{row['heldout/pass@1']:.3f}"
      for row in metrics.read(run)
      if row["kind"] == metrics.HELDOUT
    }
    assert (before, after) == (measured["after warm start"], measured["after"])
    asynchronous = name in ("demo", "doubles")
    assert asynchronous or before != after, "or nothing was tested"


@pytest.mark.long
def test_the_runs_at_lag_differ_in_the_objective_only(executed):
  _, runs = executed
  found = {}
  for name in ("beta_shift", "grpo"):
    (run,) = runs.glob(f"{name}-*")
    found[name] = config_lib.flatten(config_lib.from_json((run / "config.json").read_text()))
    lags = [row["lag/max"] for row in metrics.read(run) if row["kind"] == metrics.TRAIN]
    assert lags == [min(step, LAG) for step in range(LAG_STEPS)]
  different = {k for k, v in found["grpo"].items() if v != found["beta_shift"][k]}
  assert different == {"objective.name", "objective.beta", "objective.kappa"}  # the card's own


@pytest.mark.parametrize("path", [NOTEBOOK, OWN], ids=lambda path: path.stem)
def test_the_repository_has_it_without_outputs(path):
  notebook = read(path)
  nbformat.validate(notebook)
  for cell in cells(notebook, "code"):
    assert not cell.outputs and cell.execution_count is None
  assert set(notebook.metadata) - {"accelerator"} == {"colab", "kernelspec", "language_info"}


def test_both_notebooks_install_in_the_same_way():
  first, second = (cells(read(path), "code")[1].source for path in (NOTEBOOK, OWN))
  assert first == second and "def find_python" in first


def test_flags_and_files_that_the_second_one_names_exist():
  text = "\n".join(cell.source for cell in read(OWN).cells)
  [command] = re.findall(r"COMMAND = \[(.*?)\n\]", text, re.DOTALL)
  flags = re.findall(r"--[a-z]+", command)
  known = (ROOT / "benchmarks" / "own_objective.py").read_text()
  assert len(flags) == 6 and all(f'"{flag}"' in known for flag in flags)
  for name in re.findall(r"`((?:\w+/)*\w*(?:/|\.md|\.py))`", text):
    assert (ROOT / name).exists(), name


@pytest.mark.long
def test_the_second_one_runs_and_draws_what_it_measured(tmp_path):
  small = f"""

LAG, STEPS, SEEDS = 4, 64, 2
AGAINST = "grpo"
RATES = "1e-2"
RUNS = {str(tmp_path)!r}
"""
  notebook = execute(OWN, small)
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["steps"] == [0, 32, 64] and len(outputs(notebook, "image/png")) == 1
  said = re.findall(r"(\S+), lag (\d+): held-out pass@1 (\S+) ± (\S+) \(2 seeds", printed(notebook))
  measured = [
    (name, str(row["lag"]), f"{statistics.fmean(row['final']):.3f}")
    for name, rows in found["objectives"].items()
    for row in rows
  ]
  assert [row[:3] for row in said] == measured
  assert [row[0] for row in said] == ["my_objective:tempered"] * 2 + ["grpo"] * 2
  own, other = ([row["curves"] for row in rows] for rows in found["objectives"].values())
  assert own != other and own[0] != own[1], "the function, and the lag, make a difference"
  a, b = next(iter(found["objectives"].values()))[0]["final"]
  # Two values: mean ± t(1) s / sqrt(2), and s / sqrt(2) is half of their distance.
  assert float(said[0][3]) == pytest.approx(12.706 * abs(a - b) / 2, abs=6e-4)


def test_flags_and_files_that_it_names_exist():
  notebook = read()
  text = "\n".join(cell.source for cell in notebook.cells)
  parser = flags_lib.parser("")
  (roles,) = (a.choices for a in parser._actions if a.dest == "role")
  known = {flag for role in roles.values() for flag in role._option_string_actions}
  keys = set(config_lib.flatten(base.get_config()))
  flags = set(re.findall(r"(?<!\S)[\"'f`]*(--[a-z][\w.-]*)", text)) - OTHERS
  assert len(flags) > 12
  for flag in flags:
    assert flag.removeprefix("--config.") in keys or flag in known, flag
  for command in re.findall(r"^ {4}offpolicy-rl (.*)$", text, re.MULTILINE):
    parser.parse_args([w for w in shlex.split(command) if not w.startswith("--config.")])
  for name in re.findall(r"`((?:\w+/)*\w*(?:/|\.md|\.py))`", text):
    assert (ROOT / name).exists(), name


def test_the_task_that_it_registers_is_the_one_of_the_page():
  [cell] = (c.source for c in cells(read(), "code") if "TaskRegistry" in c.source)
  registry = cell.partition('"""')[2].partition('"""')[0]
  assert len(registry) > 500
  assert registry in (ROOT / "offpolicy_rl" / "tasks" / "README.md").read_text()


@pytest.fixture
def install(monkeypatch, tmp_path):
  """Runs the settings and the installation in an empty folder of a TPU host; what was called."""
  called = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", sys.path[:])
  monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))  # nothing beside it
  monkeypatch.setattr(
    glob, "glob", lambda pattern: ["/dev/vfio/0"] * pattern.startswith("/dev/vfio")
  )
  monkeypatch.setattr(subprocess, "run", lambda args, **how: called.append((args, how)))
  monkeypatch.setenv("PIP_CONSTRAINT", "pins.txt")

  def run(**values) -> list:
    first, second = cells(read(), "code")[:2]
    scope = {}
    exec(first.source, scope)
    exec(second.source, scope | values)
    return called

  return run


@pytest.mark.parametrize(
  ("machine", "learner", "samplers", "sizes"),
  [
    ("8 tpu TPU v5 lite", "0,1,2,3", ["4", "5", "6", "7"], ["--config.mesh.data=4"]),  # Kaggle
    ("4 tpu TPU v6 lite", "0,1", ["2", "3"], ["--config.mesh.data=2"]),
    ("1 tpu TPU v6 lite", None, [None], []),  # Colab
    ("2 gpu NVIDIA L4", None, [None], ["--config.mesh.data=2"]),
    ("2 cpu cpu", None, [None], []),
  ],
)
def test_chips_are_shared_by_what_the_machine_has(
  monkeypatch, tmp_path, machine, learner, samplers, sizes
):
  monkeypatch.setenv("TPU_PROCESS_ADDRESSES", "local")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  answer = subprocess.CompletedProcess([], 0, stdout=f"{machine}\n")
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
  scope = {"PROJECT": tmp_path, "RUNS": "runs", "PYTHON": "python"}
  scope |= {"os": os, "subprocess": subprocess}
  exec(cells(read(), "code")[2].source, scope)
  every = [scope["LEARNER"], *scope["SAMPLERS"]]
  chips = [environment.get("TPU_VISIBLE_CHIPS") for environment in every]
  assert chips == [learner, *samplers] and scope["SIZES"] == sizes
  ports = [e["TPU_MESH_CONTROLLER_PORT"] for e in every if "TPU_MESH_CONTROLLER_PORT" in e]
  assert len(set(ports)) == len(ports) == (len(every) if learner else 0)
  for environment, which in zip(every, chips, strict=True):
    assert "TPU_PROCESS_ADDRESSES" not in environment
    bounds = environment.get("TPU_CHIPS_PER_PROCESS_BOUNDS", "").split(",")
    assert which is None or math.prod(map(int, bounds)) == len(which.split(","))
  on_cpu = [e.get("JAX_PLATFORMS") != scope["LEARNER"].get("JAX_PLATFORMS") for e in every[1:]]
  assert on_cpu == ([True] if learner is None else [False] * len(samplers))
  card = config_lib.load(str(ROOT / "configs" / "demo.py"))
  config_lib.override(card, [flags_lib.key_and_text(flag) for flag in sizes])
  config_lib.validate(card)


def test_elsewhere_it_asks_where_to_clone_from(install):
  with pytest.raises(ValueError, match="REPOSITORY: got ''"):
    install()


def test_elsewhere_it_clones_and_installs_for_the_tpu(install, tmp_path):
  (clone, _), (venv, _), (pip, how) = install(REPOSITORY="https://example/it.git")
  project = tmp_path / "offpolicy_rl"
  assert clone[:2] == ["git", "clone"] and clone[-2:] == ["https://example/it.git", project]
  assert venv[1:] == ["-m", "venv", "--without-pip", project / ".venv"]
  assert pip[pip.index("--python") + 1] == str(project / ".venv" / "bin" / "python")
  assert pip[-1] == ".[gym,bench,tpu]" and how["cwd"] == project
  assert "PIP_CONSTRAINT" not in how["env"]
  assert {"gym", "bench", "tpu"} <= set(re.findall(r'"(\w+)": \[', (ROOT / "setup.py").read_text()))
