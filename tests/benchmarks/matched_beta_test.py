"""The temperature of a given KL: it is hit, or said to be out of reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from benchmarks import matched_beta
from offpolicy_rl.losses import induced_target
from tests.losses.induced_target_test import centred, in64, solve64, tables


@pytest.mark.parametrize(
  "baseline,dtype,tolerance", [("mean", np.float32, 1e-4), ("value", np.float64, 1e-8)]
)
def test_beta_for_kl_hits_its_kl(baseline, dtype, tolerance):
  rewards, weights = tables(14, 6, 6)
  rewards[2] = 0.7  # no variance: not in the mean
  for scale, kappa in ((1.0, 0.0), (50.0, 1.0)):
    table = scale * rewards
    with jax.enable_x64(dtype == np.float64):
      found = matched_beta.beta_for_kl(
        jnp.asarray(table, dtype), jnp.asarray(weights, dtype), 0.2, kappa=kappa, baseline=baseline
      )
    beta = float(found.beta)
    assert found.reached
    np.testing.assert_allclose(found.kl, 0.2, rtol=tolerance)
    if baseline == "mean":
      advantages = centred(table, weights)
    else:
      value = scipy.special.logsumexp(table / beta, b=weights, axis=-1, keepdims=True)
      advantages = table - beta * value
    target = solve64(advantages + kappa * beta, beta, weights)
    kl = in64(induced_target.reverse_kl, target.log_ratios, weights)
    np.testing.assert_allclose(kl.sum() / 5, 0.2, rtol=10 * tolerance)
    np.testing.assert_allclose(kl[2], 0, atol=1e-9)


def test_beta_for_kl_says_when_the_kl_is_out_of_reach():
  rewards, weights = tables(15, 6, 6)
  rewards = (rewards > np.median(rewards, -1, keepdims=True)).astype(float)
  most = -np.mean(np.log(np.sum(weights * rewards, -1)))
  assert in64(matched_beta.beta_for_kl, rewards, weights, 0.95 * most, kappa=0.0).reached
  above = in64(matched_beta.beta_for_kl, rewards, weights, 1.05 * most, kappa=0.0)
  assert not above.reached
  np.testing.assert_allclose(above.kl, most, rtol=1e-3)
  np.testing.assert_allclose(above.beta, 1e-4, rtol=1e-6)
  below = in64(matched_beta.beta_for_kl, rewards, weights, 1e-12, kappa=0.0)
  assert not below.reached
  np.testing.assert_allclose(below.beta, 1e4, rtol=1e-6)
  flat = in64(matched_beta.beta_for_kl, np.ones((6, 6)), weights, 0.1, kappa=0.0)
  assert not flat.reached and np.isfinite(flat.beta) and flat.kl == 0
  with pytest.raises(ValueError, match="baseline: 'median'"):
    matched_beta.beta_for_kl(rewards, weights, 0.1, kappa=0.0, baseline="median")


def test_the_kl_falls_with_beta_for_every_kappa_from_zero_up():
  """What beta_for_kl's bisection relies on, over random tables; with kappa = -1 it fails."""
  real, weights = tables(16, 60, 6, spread=2.0)
  betas = np.geomspace(1e-3, 1e3, 50)

  def divergence(rewards, beta, kappa):
    target = induced_target.solve(centred(rewards, weights) + kappa * beta, beta, weights)
    return induced_target.reverse_kl(target.log_ratios, weights)

  curve = jax.jit(jax.vmap(divergence, in_axes=(None, 0, None)))
  for kappa in (0.0, 0.3, 1.0, 5.0):
    kl = in64(curve, (real > 0).astype(float), betas, kappa)
    assert np.diff(kl, axis=0).max() < 1e-12, "two values: no exception"
    kl = in64(curve, real, betas, kappa)
    assert np.all(kl.max(0) < 1.015 * kl[0])
    below = np.diff(kl, axis=0)[:, kl[0] > 0][kl[:-1] < 0.999 * kl[0]]
    assert below.max() < 0
  assert np.diff(in64(curve, real, betas, -1.0), axis=0).max() > 1e-3
