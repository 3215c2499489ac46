"""Proximal policies that nobody computed, and packed rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import ratios
from tests.losses import golden

CASES = json.loads(golden.FIXTURE.read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_loglinear_proximal_policy_matches_the_fixture(case):
  mask = np.array(case["mask"]) > 0
  with jax.enable_x64(True):
    found = ratios.proximal_logprobs(
      "loglinear",
      jnp.asarray(case["lp_policy"]),
      jnp.asarray(case["lp_behavior"]),
      jnp.asarray(case["version"]),
      case["current_version"],
    )
  np.testing.assert_allclose(found[mask], np.array(case["prox_loglinear"])[mask], rtol=1e-12)


def test_current_proximal_policy_is_the_policy_without_gradient():
  policy = jnp.array([[-1.0, -2.0]])

  def total(x):
    return jnp.sum(ratios.proximal_logprobs("current", x, policy - 1, None, None))

  assert float(total(policy)) == -3.0
  np.testing.assert_array_equal(jax.grad(total)(policy), jnp.zeros((1, 2)))
