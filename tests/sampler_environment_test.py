"""A sampler in an environment without TensorFlow answers a learner that reads prompts with it."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT
from tests.run_system import processes, start, train_rows, wait_for

LARGEST = 1.2e9  # bytes


def required() -> list[str]:
  """What setup.py asks for without extras."""
  tree = ast.parse((ROOT / "setup.py").read_text())
  return next(
    ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRES"
  )


def closure(requirements: list[str]) -> dict[str, importlib.metadata.Distribution]:
  """Everything that pip would install for these, as it is installed here."""
  found, todo = {}, [(Requirement(text), "") for text in requirements]
  while todo:
    requirement, extra = todo.pop()
    key = (requirement.name, *requirement.extras)
    if key in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
      continue
    found[key] = importlib.metadata.distribution(requirement.name)
    for text in found[key].requires or ():
      todo += [(Requirement(text), extra) for extra in ("", *requirement.extras)]
  return {one.name.lower().replace("_", "-"): one for one in found.values()}


def environment(folder: pathlib.Path, distributions) -> tuple[pathlib.Path, int]:
  """(Python of a virtual environment with these alone, bytes of their files); links, no copies."""
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
  [there], total = folder.glob("lib/python3*/site-packages"), 0
  for distribution in distributions:
    for file in distribution.files:
      source = pathlib.Path(distribution.locate_file(file))
      if file.parts[0] == ".." or "__pycache__" in file.parts or not source.is_file():
        continue
      (there / file).parent.mkdir(parents=True, exist_ok=True)
      (there / file).symlink_to(source)
      total += source.stat().st_size
  return folder / "bin" / "python", total


@pytest.mark.long
def test_a_sampler_needs_no_tensorflow(tmp_path, monkeypatch):
  needed = closure(required())
  assert "jax" in needed and not needed.keys() & {"tensorflow", "seqio", "tensorflow-datasets"}
  python, size = environment(tmp_path / "venv", needed.values())
  print(f"{size / 1e6:.0f} MB in {len(needed)} packages")
  assert size <= LARGEST
  for module, status in (("tensorflow", 1), ("seqio", 1), ("offpolicy_rl.roles.sampler", 0)):
    done = subprocess.run([python, "-c", f"import {module}"], cwd=ROOT, capture_output=True)
    assert done.returncode == status, done.stderr
  run_dir = tmp_path / "run"
  with processes() as launch:
    learner = launch(
      "learner",
      "--config=configs/test.py",
      "--config.task.name=seqio:sums",
      "--config.task.module=offpolicy_rl.tasks.seqio_tasks",
      "--config.task.verifier=exact",
      "--config.warm_start.steps=20",
      "--config.learner.steps=4",
      "--config.evaluation.every=0",
      f"--run_dir={run_dir}",
    )
    wait_for((run_dir / "address").exists, 200, "the learner's address")
    monkeypatch.setattr(sys, "executable", str(python))
    address = (run_dir / "address").read_text()
    sampler = launch("sampler", f"--learner={address}")
    output, _ = learner.communicate(timeout=280)
    assert learner.returncode == 0, output
    output, _ = sampler.communicate(timeout=60)
    assert sampler.returncode == 0, output
  assert len(train_rows(run_dir)) == 4


@pytest.mark.long
def test_a_learner_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
  python, _ = environment(tmp_path / "venv", closure(required()).values())
  monkeypatch.setattr(sys, "executable", str(python))
  task = ["--config.task.name=seqio:sums", "--config.task.module=offpolicy_rl.tasks.seqio_tasks"]
  check = start("check", "--config=configs/test.py", *task)
  output, _ = check.communicate(timeout=100)
  assert check.returncode == 2
  assert "needs the package seqio: pip install offpolicy-rl[seqio]" in output
