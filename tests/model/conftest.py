"""Random models of every family, made by transformers in an environment of its own."""

import os
import pathlib
import subprocess

import pytest

from tests.conftest import ROOT

PYTHON = pathlib.Path(
  os.environ.get("REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python")
)
SCRIPT = ROOT / "tests" / "reference" / "transformers_reference.py"


def run_reference(*arguments) -> None:
  """Runs the reference; skips where `make test` did not install it."""
  if not PYTHON.exists():
    pytest.skip(f"no {PYTHON}: `make test` installs PyTorch and transformers there")
  subprocess.run([PYTHON, SCRIPT, *map(str, arguments)], check=True, timeout=300)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
  """FAMILY/model and FAMILY/answers.npz in here; other weights in every session."""
  folder = tmp_path_factory.mktemp("reference")
  seed = int(os.environ.get("REFERENCE_SEED", int.from_bytes(os.urandom(3))))
  print(f"REFERENCE_SEED={seed}")  # pytest shows it where a test fails
  run_reference("make", seed, folder)
  return folder
