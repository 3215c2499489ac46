"""What a lowered baseline is equivalent to, on tables: a forward KL, a floor on lam, a chi^2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import induced_target, pessimism


def table(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(weights mu, rewards, logits of a policy), float64 [6]."""
  rng = np.random.default_rng(seed)
  weights = np.exp(rng.normal(size=6))
  return weights / weights.sum(), rng.normal(size=6), rng.normal(size=6)


def regularizer(log_ratios, advantages, weights, *, beta, kappa, dv=0.0):
  """Its mean over completions with these weights."""
  per_row = pessimism.pessimistic_regularizer(log_ratios, advantages, beta=beta, kappa=kappa, dv=dv)
  return jnp.sum(weights * per_row)


def regression(u, advantages, weights, beta):
  return jnp.sum(weights * (beta * u - advantages) ** 2) / (2 * beta)


SHIFTS = [(1.0, 0.0), (0.0, 0.1), (-0.5, 0.3), (2.0, -0.4)]  # kappa, dv


@pytest.mark.parametrize("kappa,dv", SHIFTS)
def test_regression_plus_regularizer_is_the_shifted_regression(kappa, dv):
  """In value and gradient, the weights need not even add up to 1."""
  weights, advantages, u = table(0)
  beta, weights = 0.3, 1.7 * weights

  def with_regularizer(u):
    extra = regularizer(u, advantages, weights, beta=beta, kappa=kappa, dv=dv)
    return regression(u, advantages, weights, beta) + extra

  def shifted(u):
    return regression(u, advantages + kappa * beta + dv, weights, beta)

  with jax.enable_x64(True):
    found, expected = (jax.value_and_grad(f)(jnp.asarray(u)) for f in (with_regularizer, shifted))
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)


@pytest.mark.parametrize("kappa,dv", SHIFTS)
def test_its_gradient_is_the_shift_times_that_of_the_forward_kl(kappa, dv):
  """Through softmax logits: (kappa beta + dv) KL(mu || pi)."""
  weights, advantages, logits = table(1)
  beta = 0.3

  def extra(logits):
    u = jax.nn.log_softmax(logits) - jnp.log(weights)
    return regularizer(u, advantages, weights, beta=beta, kappa=kappa, dv=dv)

  def forward_kl(logits):
    return jnp.sum(weights * (jnp.log(weights) - jax.nn.log_softmax(logits)))

  with jax.enable_x64(True):
    found = jax.grad(extra)(jnp.asarray(logits))
    expected = (kappa * beta + dv) * jax.grad(forward_kl)(jnp.asarray(logits))
  np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
  assert np.abs(expected).max() > 1e-3


def test_shifts_may_be_traced_and_mapped_over():
  weights, advantages, u = (jnp.asarray(x, jnp.float32) for x in table(2))

  def loss(beta, kappa, dv):
    return regularizer(u, advantages, weights, beta=beta, kappa=kappa, dv=dv)

  betas, kappas, shifts = jnp.array([0.1, 0.4]), jnp.array([1.0, -2.0]), jnp.array([0.0, 0.3])
  mapped = jax.jit(jax.vmap(loss))(betas, kappas, shifts)
  np.testing.assert_allclose(mapped, [loss(0.1, 1.0, 0.0), loss(0.4, -2.0, 0.3)], rtol=1e-5)


def test_a_positive_shift_is_pessimistic_whichever_way_it_is_given():
  """dv = 0.1, kappa = 0.1 / beta and AsymRE's dV = -0.1 are one thing; rows of weight 0 do not."""
  weights, rewards, u = table(3)
  baseline = np.sum(weights * rewards)
  with jax.enable_x64(True):
    slopes = [
      jax.grad(regularizer)(jnp.asarray(u), rewards - baseline, weights, beta=0.2, **shift)
      for shift in ({"kappa": 0.0, "dv": 0.1}, {"kappa": 0.5})
    ]
    asymre = jax.grad(regression)(jnp.asarray(u), rewards - (baseline - 0.1), weights, 0.2)
    plain = jax.grad(regression)(jnp.asarray(u), rewards - baseline, weights, 0.2)
  np.testing.assert_allclose(slopes[0], -0.1 * weights, rtol=1e-12)
  np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-12)
  np.testing.assert_allclose(asymre - plain, slopes[0], atol=1e-14)


def fixed_point(weights, rewards, beta, shift) -> tuple[float, np.ndarray, np.ndarray]:
  """(lam, u, gradient at u of regression + regularizer) of the shifted mean baseline."""
  advantages = rewards - np.sum(weights * rewards)

  def loss(logits):
    u = jax.nn.log_softmax(logits) - jnp.log(weights)
    return regression(u, advantages, weights, beta) + regularizer(
      u, advantages, weights, beta=beta, kappa=0.0, dv=shift
    )

  with jax.enable_x64(True):
    target = induced_target.solve(advantages + shift, beta, weights)
    gradient = jax.grad(loss)(jnp.log(weights) + target.log_ratios)
  return float(target.lam), np.asarray(target.log_ratios), np.asarray(gradient)


@pytest.mark.parametrize("beta,shift", [(0.3, 0.0), (0.3, 0.3), (0.05, 0.4), (2.0, 1.0)])
def test_at_the_fixed_point_lam_is_floored_by_the_shift(beta, shift):
  """lam = E_mu A + beta KL(mu||pi), and E_mu A is the shift."""
  for seed in range(4, 8):
    weights, rewards, _ = table(seed)
    lam, u, gradient = fixed_point(weights, rewards, beta, shift)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    np.testing.assert_allclose(lam, shift - beta * np.sum(weights * u), rtol=1e-9)
    assert lam > shift


@pytest.mark.parametrize("beta,shift", [(0.3, 0.0), (0.3, 0.6), (2.0, 1.0)])
def test_the_fixed_point_maximises_reward_minus_kl_minus_chi_squared(beta, shift):
  """J = E_pi r - beta KL(pi||mu) - (lam/2) chi^2(pi||mu) on the simplex; J is strictly concave."""
  weights, rewards, _ = table(8)
  lam, u, _ = fixed_point(weights, rewards, beta, shift)
  pi = weights * np.exp(u)

  def objective(p, lam=lam):
    divergence = np.sum(p * np.log(p / weights))
    return p @ rewards - beta * divergence - lam / 2 * (np.sum(p**2 / weights) - 1)

  # dJ/dpi must be the same for all entries; with another chi^2 weight it is not.
  slope = rewards - beta * (np.log(pi / weights) + 1) - lam * pi / weights
  np.testing.assert_allclose(slope, slope.mean(), atol=1e-10)
  other = slope - 0.2 * lam * pi / weights
  assert np.ptp(other) > 1e-3
  rng = np.random.default_rng(9)
  for size in (1e-3, 1e-2, 0.3):
    for rival in rng.dirichlet(np.ones(6), size=50):
      assert objective((1 - size) * pi + size * rival) < objective(pi)


def test_a_larger_shift_ends_closer_to_the_sampler_at_a_smaller_reward():
  weights, rewards, _ = table(10)
  figures = []
  for shift in (0.0, 0.1, 0.4, 2.0):
    lam, u, _ = fixed_point(weights, rewards, 0.2, shift)
    pi = weights * np.exp(u)
    figures.append([lam, np.sum(weights * u), -pi @ rewards])
  assert np.all(np.diff(figures, axis=0) > 0), figures
