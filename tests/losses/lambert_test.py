"""Omega and W_0 against scipy; the equations themselves where scipy is inexact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from offpolicy_rl.losses import induced_target, lambert

DTYPES = [np.float32, np.float64]


def elementwise(function, values) -> np.ndarray:
  """float64 values of a function computed in the dtype of its float values."""
  with jax.enable_x64(values.dtype == np.float64):
    found = jax.jit(function)(jnp.asarray(values))
    assert found.dtype == values.dtype
    return np.asarray(found, np.float64)


def z_values(dtype) -> np.ndarray:
  wide = np.logspace(-9, 6, 3001)
  return np.concatenate([-wide, wide, np.linspace(-100, 100, 40001), [0.0, 1.0]]).astype(dtype)


def s_values(dtype) -> np.ndarray:
  s = (-1 - np.concatenate([np.logspace(-7, 6, 20001), np.linspace(0, 5, 20001)])).astype(dtype)
  return s[s <= -1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_omega_is_scipys(dtype):
  z = z_values(dtype)
  found, expected = elementwise(lambert.wright_omega, z), scipy.special.wrightomega(z.astype(float))
  normal = expected > np.finfo(dtype).tiny
  # scipy's own error reaches 16 ulp of float64 around z = -33.
  tolerance = 1e-12 if dtype == np.float64 else 2 * np.finfo(dtype).eps
  np.testing.assert_allclose(found[normal], expected[normal], rtol=tolerance)
  assert np.all(found[~normal] <= np.finfo(dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES)
def test_w0_is_scipys(dtype):
  s = s_values(dtype)
  s64 = s.astype(float)
  found = elementwise(lambert.lambert_w0, s)
  # Nearer to the branch point scipy's argument -e^s has lost the answer; far out it underflows.
  known = (s64 < -1.001) & (s64 > (-80 if dtype == np.float32 else -600))
  expected = scipy.special.lambertw(-np.exp(s64[known])).real
  tolerance = 1e-12 if dtype == np.float64 else 3 * np.finfo(dtype).eps
  np.testing.assert_allclose(found[known], expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_w0_solves_its_equation_where_scipy_cannot(dtype):
  """With W = -(1 + y) and s = -1 - d: y - log(1 + y) = d, which is exact down to d = 0."""
  eps = np.finfo(dtype).eps
  s = s_values(dtype)
  depth = -1 - s.astype(float)
  near = (depth > 4 * eps) & (depth < 1e-2)
  y = -1 - elementwise(lambert.lambert_w0, s)[near]
  assert np.all(y < 0)
  np.testing.assert_allclose((y - np.log1p(y) - depth[near]) / y, 0, atol=2 * eps)


def test_outside_the_domain_the_value_is_minus_one_without_gradient():
  s = jnp.array([-1.0, -0.999, 0.0, 50.0])
  value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambert.lambert_w0)))(s)
  np.testing.assert_array_equal(value, -jnp.ones(4))
  np.testing.assert_array_equal(slope, jnp.zeros(4))


def test_limits_are_values_not_nan():
  far = jnp.array([-jnp.inf, -1e30, -1e6, 1e6, 1e30, jnp.inf])
  omega, slope = jax.jit(jax.vmap(jax.value_and_grad(lambert.wright_omega)))(far)
  np.testing.assert_array_equal(omega[jnp.array([0, 1, 2, 5])], jnp.array([0, 0, 0, jnp.inf]))
  np.testing.assert_allclose(slope, jnp.array([0, 0, 0, 1, 1, 1]), atol=1e-5)
  assert np.all(np.isfinite(lambert.lambert_w0(far))), "w0"


def test_derivatives_are_those_of_the_equations():
  with jax.enable_x64(True):
    z, s = jnp.array([-30.0, -1.0, 0.5, 20.0]), jnp.array([-40.0, -3.0, -1.4, -1.01])
    step = 1e-6
    for function, x in (
      (lambert.wright_omega, z),
      (lambert.lambert_w0, s),
      (lambda z: jax.vmap(jax.grad(lambert.wright_omega))(z), z),
      (lambda s: jax.vmap(jax.grad(lambert.lambert_w0))(s), s),
    ):
      function = jax.jit(function)
      slope = jax.jit(lambda x, f=function: jax.jvp(f, (x,), (jnp.ones(4),))[1])(x)
      central = (function(x + step) - function(x - step)) / (2 * step)
      np.testing.assert_allclose(slope, central, rtol=1e-5, atol=1e-12)


def test_log_mean_exp_near_zero_and_far_away():
  """Near 0 the answer is exact far below the precision of 1; far away nothing overflows."""
  a = np.array([[1e-4, -1e-4], [1e4, -1e4], [-1e4, -1e4], [3.0, 7.0]], np.float32)
  weights = np.array([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32)
  found = lambert.log_mean_exp(jnp.asarray(a), jnp.asarray(weights))
  wide = a.astype(np.longdouble)
  top = wide.max(-1, keepdims=True)
  top[3] = 3.0
  exact = top[:, 0] + np.log(np.sum(weights * np.exp(np.minimum(wide - top, 0)), -1))
  np.testing.assert_allclose(found, exact.astype(float), rtol=1e-3)
  assert 4.9e-9 < found[0] < 5.1e-9


def scipy_target(a: np.ndarray, mu: np.ndarray) -> tuple[float, np.ndarray]:
  """(lam / beta, u) of one table in float64, all on W_0, by bracketing a logarithm."""
  statistic, top = scipy.special.logsumexp(a, b=mu), a.max()

  def pessimistic(log_lam):
    w = scipy.special.wrightomega(a + log_lam)
    return np.where(w > 1, np.log(np.maximum(w, 1)) - log_lam, a - w)

  def sharp(log_t):  # lam = -t e^(-t - top); at t = 1 scipy's W may be NaN
    w = scipy.special.lambertw(-np.exp(a - top + log_t - np.exp(log_t))).real
    return a - np.nan_to_num(w, nan=-1.0)

  ratios = pessimistic if statistic > 0 else sharp
  ends = (np.log(statistic) - top - 1, np.log(top) + 1) if statistic > 0 else (None, 0.0)
  low, high = (np.log(-statistic / 2), 0.0) if statistic < 0 else ends
  root = scipy.optimize.brentq(
    lambda x: scipy.special.logsumexp(ratios(x), b=mu), low, high, xtol=1e-15, maxiter=1000
  )
  return np.exp(root) if statistic > 0 else -np.exp(root - np.exp(root) - top), ratios(root)


def random_problems(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
  """(A/beta, mu) float32 [rows, 6] of sizes 1e-4 to 1e4, every regime, weights down to e^-40."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(rows, 6)) * 10 ** rng.uniform(-4, 4, size=(rows, 1))
  a[::3] *= 10 ** rng.uniform(-3, 0, size=a[::3].shape)
  mu = np.exp(rng.choice([0, 1, 5, 10], size=(rows, 1)) * rng.normal(size=(rows, 6)))
  return np.float32(a), np.float32(mu / mu.sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_independent_solver_agrees_from_weak_to_huge_signals(dtype):
  """u to a few ulp of 1 + |u|, lam as well as the sign of the statistic is determined."""
  a, weights = random_problems(4, 300)
  eps = float(np.finfo(dtype).eps)
  few = 12 * eps if dtype == np.float32 else 1e-13  # in float64 scipy's own ulps count
  with jax.enable_x64(dtype == np.float64):
    target = induced_target.solve(jnp.asarray(a, dtype), 1.0, jnp.asarray(weights, dtype))
    assert target.log_ratios.dtype == target.lam.dtype == dtype
  target = jax.tree.map(lambda x: np.asarray(x, float), target)
  compared = {-1: 0, 1: 0}
  for i, (row, mu) in enumerate(zip(a.astype(float), weights.astype(float), strict=True)):
    mu = mu / mu.sum()
    statistic, largest = scipy.special.logsumexp(row, b=mu), np.abs(row).max()
    if target.collapsed[i] or abs(statistic) < 64 * eps * max(largest, 1e-3):
      continue  # no solution on W_0 to compare with, or the sign itself is rounding
    assert target.regime[i] == np.sign(statistic)
    compared[int(target.regime[i])] += 1
    lam, u = scipy_target(row, mu)
    np.testing.assert_allclose(target.log_ratios[i], u, rtol=few, atol=few)
    condition = 1 + max(1, largest) / abs(statistic)
    np.testing.assert_allclose(target.lam[i], lam, rtol=few * condition)
  assert min(compared.values()) > 50, compared
