"""The induced target against gradient descent on its loss, a scipy solver and its identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from offpolicy_rl.losses import induced_target
from tests.losses import minima as minima_lib


def tables(seed: int, rows: int, entries: int, *, spread=1.0) -> tuple[np.ndarray, np.ndarray]:
  """(rewards, weights) float64 [rows, entries]; weights are normalised and unequal."""
  rng = np.random.default_rng(seed)
  weights = np.exp(spread * rng.normal(size=(rows, entries)))
  return rng.normal(size=(rows, entries)), weights / weights.sum(-1, keepdims=True)


def centred(rewards, weights) -> np.ndarray:
  return rewards - np.sum(weights * rewards, -1, keepdims=True)


def table_of_40() -> tuple[np.ndarray, np.ndarray]:
  """(rewards 0/1, weights) [40]: success rate .30, entropy 3.62."""
  rng = np.random.default_rng(0)
  weights = np.exp(0.5 * rng.normal(size=40))
  rewards = (rng.uniform(size=40) < 0.25).astype(float)
  return rewards, weights / weights.sum()


def in64(function, *args, **choices):
  """The function's result in float64 numpy."""
  with jax.enable_x64(True):
    found = function(*args, **choices)
  return jax.tree.map(np.asarray, found)


solve64 = functools.partial(in64, induced_target.solve)


@functools.partial(jax.jit, static_argnames="steps")
def _descend(advantages, weights, beta, logits, *, steps):
  def loss(logits):
    u = jax.nn.log_softmax(logits) - jnp.log(weights)
    return jnp.sum(weights * (beta * u - advantages) ** 2) / (2 * beta)

  def step(_, logits):
    curvature = beta * (weights + jax.nn.softmax(logits))
    return logits - 0.3 * jax.grad(loss)(logits) / curvature

  end = jax.lax.fori_loop(0, steps, step, logits)
  return jax.nn.log_softmax(end) - jnp.log(weights), jax.grad(loss)(end)


def descend(advantages, weights, beta, logits, steps=8000) -> np.ndarray:
  """u [N, G] where gradient descent on the loss of softmax logits [N, G] comes to rest."""
  wide = [np.broadcast_to(x, logits.shape).astype(float) for x in (advantages, weights)]
  u, gradient = in64(_descend, *wide, float(beta), logits, steps=steps)
  assert np.max(np.abs(gradient)) < 1e-11, "not at rest"
  return u


@pytest.mark.parametrize("beta,kappa", [(0.1, 0.0), (0.5, 1.0), (3.0, 0.3), (0.3, 4.0)])
def test_gradient_descent_ends_at_the_lambert_target(beta, kappa):
  rewards, weights = tables(1, 6, 6)
  advantages = centred(rewards, weights) + kappa * beta
  target = solve64(advantages, beta, weights)
  assert np.all(target.regime == 1)
  assert np.all(target.lam > 0)
  end = descend(advantages, weights, beta, np.log(weights))
  np.testing.assert_allclose(target.log_ratios, end, atol=1e-6)


def test_at_the_boundary_the_target_is_the_exponential_tilt():
  rewards, weights = tables(2, 6, 6)
  for beta in (0.05, 0.4, 3.0):
    value = beta * scipy.special.logsumexp(rewards / beta, b=weights, axis=-1, keepdims=True)
    target = solve64(rewards - value, beta, weights)
    np.testing.assert_array_equal(target.regime, 0)
    np.testing.assert_array_equal(target.lam, 0)
    np.testing.assert_allclose(target.log_ratios, (rewards - value) / beta, atol=1e-9)
    tilt = in64(induced_target.nominal, rewards + 7.0, beta, weights)
    np.testing.assert_allclose(tilt, (rewards - value) / beta, atol=1e-9)


def test_the_regime_is_the_side_of_the_value_the_baseline_is_on():
  rewards, weights = tables(3, 6, 6)
  value = 0.3 * scipy.special.logsumexp(rewards / 0.3, b=weights, axis=-1, keepdims=True)
  for shift in (1e-9, 1e-3, 0.2):
    above = solve64(rewards - value - shift, 0.3, weights)
    below = solve64(rewards - value + shift, 0.3, weights)
    assert np.all(above.regime == -1) and np.all(above.lam < 0)
    assert np.all(below.regime == 1) and np.all(below.lam > 0)
    np.testing.assert_allclose(above.regime_statistic, -shift / 0.3, rtol=1e-5)
  wide = solve64(rewards - value - 1e-3, 0.3, weights, atol=2e-3)
  np.testing.assert_array_equal(wide.regime, 0)


def test_rewards_of_one_in_a_thousandth_of_a_temperature_are_not_lost_in_float32():
  """Statistic and lam = beta KL(mu||pi) of a weak signal are far below the precision of 1."""
  advantages = np.tile(np.array([1.0, -1.0], np.float32), (8, 2))
  target = induced_target.solve(advantages, 1e4)
  np.testing.assert_allclose(target.regime_statistic, 5e-9, rtol=1e-2)
  np.testing.assert_allclose(target.lam, 1e4 * 5e-9, rtol=2e-2)
  np.testing.assert_allclose(target.log_ratios, 1e-4 * advantages, rtol=1e-3)


@pytest.mark.parametrize("kappa", [-2.0, -0.4, 0.0, 1.0])
def test_lam_is_the_mean_advantage_plus_beta_times_the_forward_kl(kappa):
  rewards, weights = tables(5, 6, 6)
  for beta in (0.1, 0.7, 4.0):
    advantages = centred(rewards, weights) + kappa * beta
    target = solve64(advantages, beta, weights)
    divergence = -np.sum(weights * target.log_ratios, -1)  # KL(mu || pi)
    np.testing.assert_allclose(target.lam, kappa * beta + beta * divergence, rtol=1e-9, atol=1e-12)
    stationary = advantages - beta * target.log_ratios
    pi = weights * np.exp(target.log_ratios)
    np.testing.assert_allclose(weights * stationary, target.lam[:, None] * pi, atol=1e-12)
    np.testing.assert_allclose(pi.sum(-1), 1, rtol=1e-12)


def distances(ends: np.ndarray, minima) -> np.ndarray:
  """[N, number of minima]: largest difference of the log-ratios."""
  return np.array([[np.abs(u - m.log_ratios).max() for m in minima] for u in ends])


@pytest.mark.parametrize(
  "beta,kappa,fewest,without_winner",
  [(1.0, 0.5, 1, True), (1.0, -1.0, 20, False), (1.0, -2.0, 20, False), (5.0, -0.5, 20, True)],
)
def test_descent_from_anywhere_ends_in_a_listed_minimum(beta, kappa, fewest, without_winner):
  """Lowering kappa goes from one minimum to a winner-take-all that depends on the start."""
  rewards, weights = table_of_40()
  advantages = centred(rewards, weights) + kappa * beta
  minima = minima_lib.minima(advantages, beta, weights)
  starts = np.log(weights) + 2 * np.random.default_rng(7).normal(size=(120, 40))
  ends = descend(advantages, weights, beta, starts)
  gaps = distances(ends, minima)
  assert gaps.min(-1).max() < 1e-6
  assert len(set(gaps.argmin(-1))) >= fewest
  assert (len(minima) == 1) == (kappa > 0)
  assert (None in [m.winner for m in minima]) == without_winner
  if not without_winner:
    assert sorted(m.winner for m in minima) == list(range(40))
  assert all(m.winner in (None, np.argmax(m.log_ratios)) for m in minima)
  target = solve64(advantages, beta, weights)
  assert target.collapsed != without_winner
  assert distances(target.log_ratios[None], minima).min() < 1e-9
  losses = [m.loss for m in minima]
  assert losses == sorted(losses)


@pytest.mark.long
def test_the_list_of_minima_is_complete():
  """On small tables of all kinds many random starts find each listed minimum, and no other."""
  rng = np.random.default_rng(8)
  several = 0
  for _ in range(14):
    weights = np.maximum(rng.dirichlet(np.ones(3) * rng.choice([0.5, 3.0])), 1e-3)
    weights /= weights.sum()
    advantages = rng.normal(size=3) * 10 ** rng.uniform(-1, 0.7) - 10 ** rng.uniform(-1, 1)
    minima = minima_lib.minima(advantages, 1.0, weights)
    starts = np.log(weights) + 4 * rng.normal(size=(150, 3))
    gaps = distances(descend(advantages, weights, 1.0, starts), minima)
    assert gaps.min(-1).max() < 1e-5
    assert set(gaps.argmin(-1)) == set(range(len(minima)))
    several += len(minima) > 1
  assert several >= 5


def test_the_spinodal_of_no_signal_is_at_kappa_minus_one():
  weights = table_of_40()[1]
  nudge = np.log(weights) + 1e-3 * np.random.default_rng(9).normal(size=(4, 40))
  for kappa, stable in ((-0.95, True), (-1.05, False)):
    advantages = np.full(40, 2.0 * kappa)
    target = solve64(advantages, 2.0, weights)
    assert target.collapsed != stable
    end = descend(advantages, weights, 2.0, nudge)
    divergence = in64(induced_target.reverse_kl, end, weights)
    if stable:
      np.testing.assert_allclose(target.log_ratios, 0, atol=1e-12)
      np.testing.assert_allclose(target.lam, 2.0 * kappa)
      assert divergence.max() < 1e-9
    else:
      assert divergence.min() > 0.3
      assert np.exp(target.log_ratios + np.log(weights)).max() > 0.4


def test_without_signal_nothing_moves_and_lam_is_the_advantage():
  for kappa in (0.0, 0.5, 3.0, -0.5):
    advantages = np.full((8, 4), 0.2 * kappa, np.float32)
    target = induced_target.solve(advantages, 0.2)
    np.testing.assert_array_equal(target.regime, np.sign(kappa))
    np.testing.assert_allclose(target.log_ratios, 0, atol=1e-6)
    np.testing.assert_allclose(target.lam, 0.2 * kappa, rtol=1e-6)
    temperature = induced_target.effective_temperature(target, advantages, 0.2)
    np.testing.assert_allclose(temperature, 0.2 * (1 + kappa), rtol=1e-5)


def test_with_equal_weights_the_collapsed_target_is_the_global_minimum():
  rng = np.random.default_rng(10)
  equal = np.full(3, 2.0)
  for _ in range(12):
    advantages = rng.normal(size=3) - rng.uniform(1.5, 4)
    target = solve64(advantages, 1.0, equal)
    assert target.collapsed
    best = minima_lib.minima(advantages, 1.0, equal)[0]
    np.testing.assert_allclose(target.log_ratios, best.log_ratios, atol=1e-9)
    np.testing.assert_allclose(target.lam, best.lam, rtol=1e-9)
    assert np.exp(best.log_ratios).max() / 3 > 0.5


def test_derivatives_are_those_of_finite_differences():
  """In all regimes, with respect to everything that solve takes; second ones, too."""
  rewards, weights = tables(11, 1, 6)
  direction = np.random.default_rng(12).normal(size=(3, 1, 6))

  def outcome(step, kappa):
    advantages = centred(rewards, weights) + kappa * 0.6 + step * direction[1]
    mu = weights * (1 + 0.3 * step * direction[0])
    target = induced_target.solve(advantages, 0.6 + 0.1 * step, mu)
    return jnp.sum(direction[2] * target.log_ratios) + 0.7 * jnp.sum(target.lam)

  def forward(step, kappa):
    return jax.jvp(lambda x: outcome(x, kappa), (step,), (1.0,))

  with jax.enable_x64(True):
    slope_of_slope = jax.jit(jax.jacfwd(lambda *args: forward(*args)[1]))
    both, reverse = jax.jit(forward), jax.jit(jax.grad(outcome))
    for kappa in (-3.0, -0.5, 0.0, 1.0):
      slope = both(0.0, kappa)[1]
      above, below = np.array(both(1e-5, kappa)), np.array(both(-1e-5, kappa))
      central = (above - below) / 2e-5
      np.testing.assert_allclose([slope, slope_of_slope(0.0, kappa)], central, rtol=1e-5)
      np.testing.assert_allclose(reverse(0.0, kappa), slope, rtol=1e-9)


# One row each: solved, unsolved, mixed, collapsed, padded with NaN, empty, a lone entry, huge.
ODD = np.array(
  [
    [0.5, 0.5, 0.5, 0.5],
    [0.0, 0.0, 0.0, 0.0],
    [0.7, -0.3, -0.3, -0.1],
    [-9.0, -9.5, -9.5, -8.0],
    [0.5, np.nan, -0.5, np.inf],
    [np.nan, np.nan, np.nan, np.nan],
    [np.nan, -0.2, np.nan, np.nan],
    [1e4, -1e4, 1e4, 9e3],
  ],
  np.float32,
)
ODD_WEIGHTS = np.where(np.isfinite(ODD), [[1.0, 2.0, 1.0, 1.0]], 0).astype(np.float32)


def test_odd_rows_give_no_nan_under_jit_vmap_and_grad():
  def outcome(advantages, beta, weights):
    target = induced_target.solve(advantages, beta, weights)
    u, rewards = target.log_ratios, advantages
    scalars = (
      target.lam,
      induced_target.entropy(u, weights),
      induced_target.expected_reward(u, rewards, weights),
      induced_target.reverse_kl(u, weights),
      induced_target.effective_sample_fraction(u, weights),
      induced_target.effective_temperature(target, advantages, beta, weights),
      jnp.sum(induced_target.nominal(advantages, beta, weights)) / 1e4,
    )
    return sum(scalars), target

  gradients = jax.value_and_grad(outcome, argnums=(0, 1, 2), has_aux=True)
  (total, by_row), slopes = jax.jit(jax.vmap(gradients, in_axes=(0, None, 0)))(
    ODD, jnp.float32(1.0), ODD_WEIGHTS
  )
  for leaf in jax.tree.leaves((total, by_row, slopes)):
    assert np.all(np.isfinite(leaf))
  together = induced_target.solve(ODD, np.ones(8, np.float32), ODD_WEIGHTS)
  for one, other in zip(by_row, together, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(together.regime, [1, 0, 1, -1, 1, 0, -1, 1])
  np.testing.assert_array_equal(together.collapsed, np.arange(8) == 3)
  np.testing.assert_array_equal(np.where(ODD_WEIGHTS > 0, 0, together.log_ratios), 0)


def test_entries_of_weight_zero_are_not_there():
  """Two of four entries, the others NaN, are the problem of the same two entries twice."""
  beta = np.ones(8, np.float32)
  twice = np.tile(np.array([0.5, -0.5], np.float32), (8, 2))
  padded = induced_target.solve(ODD, beta, ODD_WEIGHTS)
  whole = induced_target.solve(twice, beta, np.ones_like(twice))
  for name in ("lam", "regime_statistic"):
    np.testing.assert_allclose(getattr(padded, name)[4], getattr(whole, name)[4], rtol=1e-6)
  np.testing.assert_allclose(padded.log_ratios[4, ::2], whole.log_ratios[4, :2], rtol=1e-6)


def test_the_comparison_of_kappas_at_four_temperatures():
  """40 answers, 30 percent right: what each kappa ends in, and which way reward and entropy go."""
  rewards, weights = table_of_40()
  outcomes = {0.05: "+++++++", 0.2: "+++++++", 1.0: "CC-++++", 5.0: "CC-++++"}
  for beta, expected in outcomes.items():
    kinds, figures = "", []
    for kappa in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0):
      advantages = centred(rewards, weights) + kappa * beta
      target = solve64(advantages, beta, weights)
      kinds += "C" if target.collapsed else "+" if target.regime > 0 else "-"
      u = target.log_ratios
      reward = in64(induced_target.expected_reward, u, rewards, weights)
      ess = in64(induced_target.effective_sample_fraction, u, weights)
      figures.append([-reward, in64(induced_target.entropy, u, weights), ess])
      if not target.collapsed:  # the reward has two values: pi is a tilt
        fitted = in64(induced_target.effective_temperature, target, advantages, beta, weights)
        tilt = in64(induced_target.nominal, rewards, fitted, weights)
        np.testing.assert_allclose(tilt, u, atol=1e-8)
    assert kinds == expected
    assert np.all(np.diff(figures, axis=0) > 0)


def test_figures_of_a_policy_match_slow_numpy():
  u, weights = tables(13, 6, 6)
  u = u - scipy.special.logsumexp(u, b=weights, axis=-1, keepdims=True)
  rewards = u[::-1]
  pi = weights * np.exp(u)
  expected = {
    "entropy": -np.sum(pi * np.log(pi), -1),
    "reverse_kl": np.sum(pi * u, -1),
    "effective_sample_fraction": 1 / np.sum(pi**2 / weights, -1),
  }
  for name, values in expected.items():
    found = in64(getattr(induced_target, name), u, 5 * weights)
    np.testing.assert_allclose(found, values, rtol=1e-12, err_msg=name)
  found = in64(induced_target.expected_reward, u, rewards, weights)
  np.testing.assert_allclose(found, np.sum(pi * rewards, -1), rtol=1e-12)
