"""What the environment may not change."""

import os
import subprocess
import sys

import jax
import pytest

from offpolicy_rl.system import environment
from tests.conftest import ROOT

CHANGING = {
  "JAX_ENABLE_X64": "1",
  "JAX_DEFAULT_PRNG_IMPL": "rbg",
  "JAX_RANDOM_SEED_OFFSET": "7",
  "JAX_THREEFRY_PARTITIONABLE": "0",
  "JAX_NUMPY_DTYPE_PROMOTION": "strict",
}
LOOK = """
import sys
from offpolicy_rl.cli import main
assert main.main(["explain", "--objective=oapl"]) == 0
import jax, jax.numpy as jnp
print("\\n", jnp.arange(2.0).dtype, *jax.random.key_data(jax.random.key(3)).tolist(),
      jax.random.bits(jax.random.key(3)))
"""


@pytest.mark.parametrize("changed", [{}, CHANGING], ids=["plain", "changed"])
def test_numbers_are_the_same_whatever_the_environment_says_to_jax(changed):
  plain = {name: value for name, value in os.environ.items() if name not in CHANGING}
  done = subprocess.run(
    [sys.executable, "-c", LOOK],
    cwd=ROOT,
    env=plain | changed,
    capture_output=True,
    text=True,
    check=True,
  )
  bits = int(jax.random.bits(jax.random.key(3)))
  assert done.stdout.splitlines()[-1].split() == ["float32", "0", "3", str(bits)]
  for name, value in changed.items():
    assert f"{name}={value} is ignored" in done.stderr
  assert changed or "ignored" not in done.stderr


def test_other_variables_stay(monkeypatch):
  monkeypatch.setenv("JAX_ENABLE_X64", "0")
  monkeypatch.setenv("JAX_DEBUG_NANS", "1")
  environment.ignore_what_changes_results()
  assert "JAX_ENABLE_X64" not in os.environ and os.environ["JAX_DEBUG_NANS"] == "1"
