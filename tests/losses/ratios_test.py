"""Proximal policies that nobody computed, and the KL of two Bernoulli distributions."""

import decimal
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import ratios
from tests.losses import golden

CASES = [
  case for case in json.loads(golden.FIXTURE.read_text())["cases"] if "prox_loglinear" in case
]


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


def exact_binary_kl(lp: float, la: float) -> float:
  """From the formula, with 60 digits."""
  with decimal.localcontext(prec=60):
    pi, mu = decimal.Decimal(lp).exp(), decimal.Decimal(la).exp()
    return float(mu * (mu / pi).ln() + (1 - mu) * ((1 - mu) / (1 - pi)).ln())


@pytest.mark.parametrize("float32", [False, True], ids=["float64", "float32"])
def test_binary_kl_is_exact_for_rare_and_for_almost_certain_tokens(float32):
  pairs = [
    (-0.7, -0.1),
    (-1e-4, -3e-4),
    (-1e-6, -0.5),
    (-12.0, -3e-5),
    (-30.0, -20.0),
    (-5.0, -6.0),
  ]
  with jax.enable_x64(not float32):
    lp, la = jnp.asarray(pairs, float).T
    found = ratios.binary_kl(lp, la)
    expected = [exact_binary_kl(float(p), float(a)) for p, a in zip(lp, la, strict=True)]
  np.testing.assert_allclose(found, expected, rtol=3e-5 if float32 else 1e-12)


def test_binary_kl_at_the_ends():
  """Equal policies, a certain token, one that became certain, and rounding above 0."""
  lp, la = jnp.array([-0.3, 0.0, 0.0, 1e-7]), jnp.array([-0.3, 0.0, -0.5, 0.0])
  np.testing.assert_array_equal(ratios.binary_kl(lp, la), [0.0, 0.0, np.inf, 0.0])
