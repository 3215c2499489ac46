"""The policy that a ratio-free regression really aims at: its Lambert-tempered induced target.

With mu = the sampler's policy, u = log pi/mu, advantages A = r - b and a temperature beta > 0, the
population loss E_mu (beta u - A)^2 / (2 beta) is stationary where, for the multiplier lam of the
constraint E_mu e^u = 1,

  mu (A - beta u) = lam pi,   that is   u = A/beta - W((lam/beta) e^(A/beta)).

Its regime is the sign of the statistic log E_mu e^(A/beta), which does not involve the solution:

  +1  lam > 0: pessimistic, flatter than the exponential tilt; the only minimiser
   0  lam = 0: the exponential tilt mu e^(A/beta) itself
  -1  lam < 0: sharper. With |lam|/beta <= e^(-1 - max A/beta) all entries are on W_0; if no such
      solution exists ("collapsed"), one entry is on W_{-1} and takes nearly everything.

Sources: arXiv 2605.28150 (Lambert-tempered targets, the regimes), arXiv 2602.05933 (the exact
Lambert-W update of the mean-baseline regression). At a fixed point lam = E_mu A + beta KL(mu||pi).

Tables [..., K] hold one policy per row: all K answers with weights mu, or a group of K samples with
equal weights. An entry of weight 0 is not there: its other values may be anything, NaN included.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl.losses import lambert

_REACH = 1e4  # beta_for_kl looks between the rewards' range / _REACH and * _REACH


class InducedTarget(NamedTuple):
  """Where the regression leads."""

  lam: jax.Array  # float [...], multiplier, in units of reward
  regime_statistic: jax.Array  # float [...], log E_mu e^(A/beta)
  regime: jax.Array  # int32 [...], its sign; 0 = within rounding of the boundary
  log_ratios: jax.Array  # float [..., K], u = log pi/mu; 0 at entries of weight 0
  collapsed: jax.Array  # bool [...], one entry is on W_{-1}


class Minimum(NamedTuple):
  """One local minimiser of the loss over a table of K entries, float64 numpy."""

  lam: float
  log_ratios: np.ndarray  # [K]
  winner: int | None  # the entry on W_{-1}; None = all on W_0
  loss: float  # E_mu (beta u - A)^2 / (2 beta)


class MatchedBeta(NamedTuple):
  """What beta_for_kl found."""

  beta: jax.Array  # float scalar
  kl: jax.Array  # float scalar, mean KL(pi||mu) at that beta
  reached: jax.Array  # bool scalar, whether kl is the KL that was asked for


@jax.jit
def regime_statistic(advantages, beta, weights=None) -> jax.Array:
  """log E_mu e^(A/beta), float [...]; exact also where it is far below the precision of 1."""
  mu, scaled, _ = _tables(advantages, beta, weights)
  return lambert.log_mean_exp(scaled, mu)


@jax.jit
def solve(advantages, beta, weights=None, *, atol=0.0) -> InducedTarget:
  """The induced target of the advantages, whatever its regime; never NaN for finite input.

  Without a W_0 solution it returns a minimiser whose winner is the entry of largest advantage. With
  equal weights the global minimiser has its winner there: exchanging two entries' u never changes
  the quadratic part of the loss. For a table with unequal weights, and for the further minima a
  negative regime can have beside its W_0 solution, see `minima`.

  Differentiable to any order in advantages, beta and weights, by the implicit function theorem.

  Args:
    advantages: float [..., K], A = r - b.
    beta: float scalar or [...], > 0.
    weights: float [..., K] or broadcastable, mu up to a factor; None = all equal.
    atol: absolute error of the advantages; it widens what counts as the boundary, which is
      otherwise 8 ulp of the largest |A/beta|. Set it where groups without variance must not show
      the rounding of their mean as a regime.
  """
  mu, scaled, beta = _tables(advantages, beta, weights)
  statistic = lambert.log_mean_exp(scaled, mu)
  largest = jnp.max(jnp.abs(scaled), axis=-1)
  tolerance = 8 * jnp.finfo(scaled.dtype).eps * largest + atol / beta
  regime = jnp.where(jnp.abs(statistic) <= tolerance, 0, jnp.sign(statistic)).astype(jnp.int32)
  log_ratios, multiplier, collapsed = _fixed_point(scaled, mu, statistic, regime)
  return InducedTarget(beta * multiplier, statistic, regime, log_ratios, collapsed > 0)


def minima(advantages, beta: float, weights=None) -> list[Minimum]:
  """All local minimisers over one table [K], lowest loss first. On the host, not under jit.

  Unless lam < 0 there is one. With lam < 0 at most one entry j is on W_{-1} (two make the bordered
  Hessian indefinite). For each j the curve f of `lambert.negative_curve` is cut at the extremes
  found on a grid, and every rising piece through 0 holds a minimum; falling ones hold saddles.
  """
  with jax.enable_x64(True):
    advantages = np.asarray(advantages, np.float64)
    target = jax.tree.map(np.asarray, solve(advantages, beta, weights))
    mu, a, _ = (np.asarray(x) for x in _tables(advantages, beta, weights))
    found = [] if target.collapsed else [(float(target.lam), target.log_ratios, None)]
    for j in np.flatnonzero(mu) if target.regime < 0 else ():
      best = np.arange(a.size) == j
      for t in _rising_roots(best, a, mu):
        _, _, u, log_c = _curve(np.array([t]), best, a, mu)
        found.append((-beta * float(np.exp(log_c[0])), np.where(mu > 0, u[0], 0.0), int(j)))
  listed = []
  for lam, u, winner in found:
    residual = beta * (u - a)  # a is 0 where mu is 0
    listed.append(Minimum(lam, u, winner, float(np.sum(mu * residual**2) / (2 * beta))))
  return sorted(listed, key=lambda minimum: minimum.loss)


@jax.jit
def nominal(rewards, beta, weights=None) -> jax.Array:
  """log pi*/mu [..., K] of the exponential tilt pi* = mu e^(r/beta) / Z: no baseline matters."""
  mu, scaled, _ = _tables(rewards, beta, weights)
  scaled = scaled - jnp.max(jnp.where(mu > 0, scaled, -jnp.inf), axis=-1, keepdims=True)
  scaled = jnp.where(mu > 0, scaled, 0.0)
  return jnp.where(mu > 0, scaled - lambert.log_mean_exp(scaled, mu)[..., None], 0.0)


@jax.jit
def probabilities(log_ratios, weights=None) -> jax.Array:
  """pi = mu e^u, float [..., K]."""
  mu = _sampler(log_ratios, weights)
  return mu * jnp.exp(jnp.where(mu > 0, log_ratios, 0.0))


@jax.jit
def entropy(log_ratios, weights=None) -> jax.Array:
  """Entropy of pi over the K entries, nats, float [...]."""
  mu = _sampler(log_ratios, weights)
  u = jnp.where(mu > 0, log_ratios, 0.0)
  return -jnp.sum(mu * jnp.exp(u) * (jnp.log(jnp.where(mu > 0, mu, 1.0)) + u), axis=-1)


@jax.jit
def expected_reward(log_ratios, rewards, weights=None) -> jax.Array:
  """E_pi r, float [...]."""
  pi = probabilities(log_ratios, weights)
  return jnp.sum(pi * jnp.where(pi > 0, rewards, 0.0), axis=-1)


@jax.jit
def reverse_kl(log_ratios, weights=None) -> jax.Array:
  """KL(pi||mu), nats, float [...]; every term >= 0, so nothing cancels between the entries."""
  mu = _sampler(log_ratios, weights)
  u = jnp.where(mu > 0, log_ratios, 0.0)
  return jnp.sum(mu * (u * jnp.exp(u) - jnp.expm1(u)), axis=-1)


@jax.jit
def forward_kl(log_ratios, weights=None) -> jax.Array:
  """KL(mu||pi), nats, float [...]; every term >= 0, so nothing cancels between the entries."""
  mu = _sampler(log_ratios, weights)
  u = jnp.where(mu > 0, log_ratios, 0.0)
  return jnp.sum(mu * (jnp.expm1(u) - u), axis=-1)


@jax.jit
def effective_sample_fraction(log_ratios, weights=None) -> jax.Array:
  """1 / E_mu (pi/mu)^2 in (0, 1], float [...]; 1 / it minus 1 is chi^2(pi||mu)."""
  mu = _sampler(log_ratios, weights)
  ratio = jnp.exp(jnp.where(mu > 0, log_ratios, 0.0))
  return 1 / jnp.maximum(jnp.sum(mu * ratio * ratio, axis=-1), jnp.finfo(ratio.dtype).tiny)


@jax.jit
def effective_temperature(target: InducedTarget, advantages, beta, weights=None) -> jax.Array:
  """Temperature of the exponential tilt closest to pi, in units of reward, float [...].

  Var_mu(A) / Cov_mu(A, u): the tilt whose log-ratio fits u best in least squares under mu. It is
  exact where A takes two values, for then pi is a tilt. Without variance it is the limit of a weak
  signal, beta + lam, which is also the mean of dA/du under mu; <= 0 there means that mu itself is
  not stable. (The alternative, matching KL(pi||mu), has no limit without signal, and none in
  floating point where the KL saturates.)
  """
  mu, scaled, beta = _tables(advantages, beta, weights)
  centred = scaled - jnp.sum(mu * scaled, axis=-1, keepdims=True)
  centred = jnp.where(mu > 0, centred, 0.0)
  variance = jnp.sum(mu * centred**2, axis=-1)
  noise = 8 * jnp.finfo(scaled.dtype).eps * jnp.max(jnp.abs(scaled), axis=-1)
  varied = jnp.max(jnp.abs(centred), axis=-1) > noise
  covariance = jnp.where(varied, jnp.sum(mu * centred * target.log_ratios, axis=-1), 1.0)
  return jnp.where(varied, beta * variance / covariance, beta + target.lam)


@functools.partial(jax.jit, static_argnames="baseline")
def beta_for_kl(rewards, weights, target_kl, *, kappa, baseline="mean") -> MatchedBeta:
  """The beta at which the induced target sits at a given mean KL(pi||mu) from the sampler.

  The advantages are r - b + kappa beta with b = E_mu r ("mean") or V*_beta ("value": kappa = 0 then
  is the exponential tilt). The mean runs over the leading dimensions, rows whose rewards are all
  equal left out. Bisection in log beta. For kappa >= 0 the KL falls with beta (numerically, not
  proved), but for a rise of up to 1.5 percent above its value at beta -> 0 where rewards take more
  than two values: any KL below that value has one beta. For kappa < 0 there can be more or none.

  A KL out of reach gives the nearest end of the bracket (rewards' range * 1e-4 or * 1e4) with
  `reached` False. The most there is, at beta -> 0: -log mu(best answers) with "value"; with "mean"
  the KL of pi ~ mu max(r - E_mu r, 0), the same for two-valued rewards and less for others.

  Args:
    rewards: float [..., K].
    weights: float [..., K], broadcastable, or None.
    target_kl: float scalar, nats.
    kappa: float scalar, shift in units of beta.
    baseline: "mean" or "value".
  """
  if baseline not in ("mean", "value"):
    raise ValueError(f"baseline: {baseline!r}, expected mean or value")
  mu, centred, _ = _tables(rewards, 1.0, weights)
  centred = jnp.where(mu > 0, centred - jnp.sum(mu * centred, axis=-1, keepdims=True), 0.0)
  spread = jnp.max(centred, axis=-1) - jnp.min(centred, axis=-1)
  eps = jnp.finfo(centred.dtype).eps
  varied = spread > 8 * eps * jnp.max(jnp.abs(jnp.where(mu > 0, rewards, 0.0)), axis=-1)
  centre = jnp.log(jnp.max(jnp.where(varied, spread, 0.0), initial=0.0, where=varied))
  centre = jnp.where(jnp.any(varied), centre, 0.0)

  def mean_kl(log_beta):
    """KL(target || sampler) in nats, mean over the groups whose rewards differ."""
    beta = jnp.exp(log_beta)
    value = beta * lambert.log_mean_exp(centred / beta, mu) if baseline == "value" else 0.0 * spread
    target = solve(centred - value[..., None] + kappa * beta, beta, mu)
    kl = jnp.where(varied, reverse_kl(target.log_ratios, mu), 0.0)
    return jnp.sum(kl) / jnp.maximum(jnp.sum(varied), 1)

  def halve(_, state):
    """One bisection of log beta: the KL falls as beta rises."""
    low, high, _, _ = state
    middle = (low + high) / 2
    kl = mean_kl(middle)
    too_far = kl > target_kl  # from the sampler: beta must rise
    return jnp.where(too_far, middle, low), jnp.where(too_far, high, middle), middle, kl

  reach = jnp.log(jnp.asarray(_REACH, centred.dtype))
  steps = 26 if eps > 1e-10 else 56
  state = (centre - reach, centre + reach, centre, jnp.zeros_like(centre))
  _, _, log_beta, kl = jax.lax.fori_loop(0, steps, halve, state)
  reached = jnp.abs(kl - target_kl) <= jnp.sqrt(eps) * jnp.abs(target_kl)
  return MatchedBeta(jnp.exp(log_beta), kl, reached & jnp.any(varied))


def _sampler(values, weights) -> jax.Array:
  """mu [..., K]: weights / their sum; entries too small to divide by are 0."""
  values = jnp.asarray(values)
  dtype = jnp.result_type(values, float) if values.dtype.kind in "biu" else values.dtype
  if weights is None:
    return jnp.full(values.shape, 1 / values.shape[-1], dtype)
  weights = jnp.broadcast_to(jnp.asarray(weights, dtype), values.shape)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  mu = weights / jnp.where(total > 0, total, 1.0)
  return jnp.where(mu >= jnp.finfo(dtype).tiny, mu, 0.0)


def _tables(values, beta, weights) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(mu [..., K], values / beta with 0 at weight 0, beta scalar or [...])."""
  mu = _sampler(values, weights)
  beta = jnp.asarray(beta, mu.dtype)
  divisor = beta[..., None] if beta.ndim else beta
  return mu, jnp.where(mu > 0, jnp.asarray(values, mu.dtype), 0.0) / divisor, beta


@jax.custom_jvp
def _fixed_point(a: jax.Array, mu: jax.Array, statistic: jax.Array, regime: jax.Array):
  """(u [..., K], lam/beta [...], 1.0 where collapsed) for a = A/beta in a known regime."""
  positive, negative = regime > 0, regime < 0
  # Rows of the other regimes are replaced by ones on which the iteration is harmless.
  u_plus, log_plus = lambert.positive_multiplier(
    jnp.where(positive[..., None], a, 1.0), mu, jnp.where(positive, statistic, 1.0)
  )
  u_minus, log_minus, collapsed = lambert.negative_multiplier(
    jnp.where(negative[..., None], a, -0.5), mu, jnp.where(negative, statistic, -0.5)
  )
  u_zero = a - statistic[..., None]
  u = jnp.where(positive[..., None], u_plus, jnp.where(negative[..., None], u_minus, u_zero))
  lam = jnp.where(positive, jnp.exp(log_plus), jnp.where(negative, -jnp.exp(log_minus), 0.0))
  return jnp.where(mu > 0, u, 0.0), lam, (negative & collapsed).astype(a.dtype)


@_fixed_point.defjvp
def _fixed_point_jvp(primals, tangents):
  """a = u + lam e^u and E_mu e^u = 1, differentiated; where that is singular, 0."""
  mu, (da, dmu, _, _) = primals[1], tangents
  u, lam, collapsed = _fixed_point(*primals)
  ratio = jnp.where(mu > 0, jnp.exp(u), 0.0)
  slope = 1 + lam[..., None] * ratio  # da/du at fixed lam
  inverse = jnp.where(slope == 0, 0.0, 1 / jnp.where(slope == 0, 1.0, slope))
  drive = jnp.sum(mu * ratio * inverse * da + ratio * dmu, axis=-1)
  stiffness = jnp.sum(mu * ratio * inverse * ratio, axis=-1)
  dlam = jnp.where(stiffness == 0, 0.0, drive / jnp.where(stiffness == 0, 1.0, stiffness))
  du = jnp.where(mu > 0, (da - ratio * dlam[..., None]) * inverse, 0.0)
  return (u, lam, collapsed), (du, dlam, jnp.zeros_like(collapsed))


@jax.jit
def _curve(t: jax.Array, best: jax.Array, a: jax.Array, mu: jax.Array):
  """`lambert.negative_curve` of one table [K] at several t [T]."""
  top = jnp.sum(jnp.where(best, a, 0.0)) + t
  wide = functools.partial(jnp.broadcast_to, shape=(t.size, a.size))
  return lambert.negative_curve(t, top, wide(best), wide(a), wide(mu))


@functools.partial(jax.jit, static_argnames="output")
def _bisect(low, high, rising, best, a, mu, *, output: int) -> jax.Array:
  """Root [1] of one output of `_curve` between low and high [1]."""

  def halve(_, bracket):
    """One bisection of the curve's argument."""
    low, high = bracket
    middle = (low + high) / 2
    before = (_curve(middle, best, a, mu)[output] < 0) == rising
    return jnp.where(before, middle, low), jnp.where(before, high, middle)

  return jax.lax.fori_loop(0, 80, halve, (low, high))[1]


def _rising_roots(best: np.ndarray, a: np.ndarray, mu: np.ndarray) -> list[float]:
  """Every t > 1 at which f rises through 0 with entry `best` on W_{-1}."""
  gap = np.max(a[mu > 0]) - a[best]
  first = -np.asarray(lambert.lambert_wm1(-1 - gap))  # below, the largest entry has no W_0
  last = -np.log(mu[best]) - a[best]  # above, pi > 1
  if last <= first:
    return []

  def roots(points, values, output, falling_too):
    """The curve's sign changes between these points, refined."""
    crossed = (values[:-1] < 0) != (values[1:] < 0)
    crossed &= falling_too | (values[:-1] < 0)
    found = [
      _bisect(points[k : k + 1], points[k + 1 : k + 2], values[k] < 0, best, a, mu, output=output)
      for k in np.flatnonzero(crossed)
    ]
    return np.concatenate([np.zeros(0), *found])

  grid = first + (last - first) * np.geomspace(1e-9, 1.0, 1024)
  extremes = roots(grid, np.asarray(_curve(grid, best, a, mu)[1]), 1, True)
  ends = np.concatenate([first, extremes, last])
  padded = np.concatenate([ends, np.repeat(last, -len(ends) % 4)])
  return list(roots(ends, np.asarray(_curve(padded, best, a, mu)[0])[: len(ends)], 0, False))
