"""Proximal policies that nobody computed, and packed rows."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import inputs, ratios
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


def test_packed_rows_give_the_gradient_of_separate_ones():
  """Five completions of 1 to 4 tokens, alone in rows of 4 and packed into two rows of 8."""
  rng = np.random.default_rng(0)
  lengths, rows, starts = np.array([3, 4, 1, 2, 4]), [0, 0, 0, 1, 1], [0, 3, 7, 0, 2]
  mask = np.arange(4) < lengths[:, None]
  policy, sampler = rng.normal(-2, 1, (2, 5, 4)).astype(np.float32)
  rewards, groups = np.float32([0, 1, 1, 0, 1]), np.array([0, 0, 0, 1, 1])
  packed = np.zeros((2, 8), np.float32)
  for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
    packed[row, start : start + lengths[i]] = policy[i, : lengths[i]]
  objective = losses.objective("beta_shift", beta=0.3)

  def loss(policy_logprobs):
    return objective(losses.LossInputs(policy_logprobs, sampler, mask, rewards, groups))[0]

  def packed_loss(packed):
    return loss(inputs.unpack(packed, np.array(rows), np.array(starts), 4))

  separate, together = jax.grad(loss)(policy), jax.grad(packed_loss)(packed)
  for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
    np.testing.assert_allclose(
      together[row, start : start + lengths[i]], separate[i, : lengths[i]], rtol=1e-6
    )
  assert float(packed_loss(packed)) == pytest.approx(float(loss(policy)), rel=1e-6)
