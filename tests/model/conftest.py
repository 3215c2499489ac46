"""Random models of every family, made by transformers in an environment of its own."""

import os

import pytest

from benchmarks import parity


def run_reference(*arguments) -> None:
  """Runs the reference; skips where `make test` did not install it."""
  if not parity.PYTHON.exists():
    pytest.skip(f"no {parity.PYTHON}: `make test` installs PyTorch and transformers there")
  parity.run_reference(*arguments)


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
  """FAMILY/model and FAMILY/answers.npz in here; other weights in every session."""
  folder = tmp_path_factory.mktemp("reference")
  seed = int(os.environ.get("REFERENCE_SEED", int.from_bytes(os.urandom(3))))
  print(f"REFERENCE_SEED={seed}")  # pytest shows it where a test fails
  run_reference("make", seed, folder)
  return folder
