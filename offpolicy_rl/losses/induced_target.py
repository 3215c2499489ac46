"""The policy that a ratio-free regression aims at: its Lambert-tempered induced target.

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

Tables [..., G] hold one policy per row: all G answers with weights mu, or a group of G samples with
equal weights. Entries of weight 0 are ignored; their other values may be NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from offpolicy_rl.losses import lambert


class InducedTarget(NamedTuple):
  """The stationary policy of a regression."""

  lam: jax.Array  # float [...], multiplier, in units of reward
  regime_statistic: jax.Array  # float [...], log E_mu e^(A/beta)
  regime: jax.Array  # int32 [...], its sign; 0 = within rounding of the boundary
  log_ratios: jax.Array  # float [..., G], u = log pi/mu; 0 at entries of weight 0
  collapsed: jax.Array  # bool [...], one entry is on W_{-1}


@jax.jit
def regime_statistic(
  advantages: ArrayLike, beta: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
  """log E_mu e^(A/beta), float [...]; exact also where it is far below the precision of 1."""
  mu, scaled, _ = _tables(advantages, beta, weights)
  return lambert.log_mean_exp(scaled, mu)


@jax.jit
def solve(
  advantages: ArrayLike, beta: ArrayLike, weights: ArrayLike | None = None, *, atol: ArrayLike = 0.0
) -> InducedTarget:
  """The induced target of the advantages in any regime; never NaN for finite input.

  Without a W_0 solution it returns a minimiser whose winner is the entry of largest advantage. With
  equal weights this is the global one: exchanging two entries' u does not change the quadratic part
  of the loss. With unequal weights the winner may be another entry, and a negative regime can have
  minima besides its W_0 solution (tests/losses/minima.py finds them all).

  Differentiable to any order in advantages, beta and weights, by the implicit function theorem.

  Args:
    advantages: float [..., G], A = r - b.
    beta: float scalar or [...], > 0.
    weights: float [..., G] or broadcastable, mu up to a factor; None = all equal.
    atol: absolute error of the advantages. It widens the boundary, otherwise 8 ulp of the largest
      |A/beta|, so that rounding in groups without variance does not look like a regime.
  """
  mu, scaled, beta = _tables(advantages, beta, weights)
  statistic = lambert.log_mean_exp(scaled, mu)
  largest = jnp.max(jnp.abs(scaled), axis=-1)
  tolerance = 8 * jnp.finfo(scaled.dtype).eps * largest + atol / beta
  regime = jnp.where(jnp.abs(statistic) <= tolerance, 0, jnp.sign(statistic)).astype(jnp.int32)
  log_ratios, multiplier, collapsed = _fixed_point(scaled, mu, statistic, regime)
  return InducedTarget(beta * multiplier, statistic, regime, log_ratios, collapsed > 0)


@jax.jit
def nominal(rewards: ArrayLike, beta: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
  """log pi*/mu [..., G] of the exponential tilt pi* = mu e^(r/beta) / Z, whatever the baseline."""
  mu, scaled, _ = _tables(rewards, beta, weights)
  scaled = scaled - jnp.max(jnp.where(mu > 0, scaled, -jnp.inf), axis=-1, keepdims=True)
  scaled = jnp.where(mu > 0, scaled, 0.0)
  return jnp.where(mu > 0, scaled - lambert.log_mean_exp(scaled, mu)[..., None], 0.0)


@jax.jit
def entropy(log_ratios: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
  """Entropy of pi over the G entries, nats, float [...]."""
  mu = _sampler(log_ratios, weights)
  u = jnp.where(mu > 0, log_ratios, 0.0)
  return -jnp.sum(mu * jnp.exp(u) * (jnp.log(jnp.where(mu > 0, mu, 1.0)) + u), axis=-1)


@jax.jit
def expected_reward(
  log_ratios: ArrayLike, rewards: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
  """E_pi r, float [...]."""
  mu = _sampler(log_ratios, weights)
  pi = mu * jnp.exp(jnp.where(mu > 0, log_ratios, 0.0))
  return jnp.sum(pi * jnp.where(pi > 0, rewards, 0.0), axis=-1)


@jax.jit
def reverse_kl(log_ratios: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
  """KL(pi||mu), nats, float [...]; every term >= 0, so nothing cancels between the entries."""
  mu = _sampler(log_ratios, weights)
  u = jnp.where(mu > 0, log_ratios, 0.0)
  return jnp.sum(mu * (u * jnp.exp(u) - jnp.expm1(u)), axis=-1)


@jax.jit
def effective_sample_fraction(log_ratios: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
  """1 / E_mu (pi/mu)^2 in (0, 1], float [...]; 1 / it minus 1 is chi^2(pi||mu)."""
  mu = _sampler(log_ratios, weights)
  ratio = jnp.exp(jnp.where(mu > 0, log_ratios, 0.0))
  return 1 / jnp.maximum(jnp.sum(mu * ratio * ratio, axis=-1), jnp.finfo(ratio.dtype).tiny)


@jax.jit
def effective_temperature(
  target: InducedTarget, advantages: ArrayLike, beta: ArrayLike, weights: ArrayLike | None = None
) -> jax.Array:
  """Temperature of the exponential tilt closest to pi, in units of reward, float [...].

  Var_mu(A) / Cov_mu(A, u): the least-squares fit of a tilt's log-ratio to u under mu. It is exact
  if A takes two values, since pi is then a tilt. Without variance it is the limit of a weak signal,
  beta + lam, the mean of dA/du under mu; <= 0 then means that mu is not stable. Matching KL(pi||mu)
  instead has no limit without signal, and fails in floating point where the KL saturates.
  """
  mu, scaled, beta = _tables(advantages, beta, weights)
  centred = scaled - jnp.sum(mu * scaled, axis=-1, keepdims=True)
  centred = jnp.where(mu > 0, centred, 0.0)
  variance = jnp.sum(mu * centred**2, axis=-1)
  noise = 8 * jnp.finfo(scaled.dtype).eps * jnp.max(jnp.abs(scaled), axis=-1)
  varied = jnp.max(jnp.abs(centred), axis=-1) > noise
  covariance = jnp.where(varied, jnp.sum(mu * centred * target.log_ratios, axis=-1), 1.0)
  return jnp.where(varied, beta * variance / covariance, beta + target.lam)


def _sampler(values, weights) -> jax.Array:
  """mu [..., G]: weights / their sum; entries too small to divide by are 0."""
  values = jnp.asarray(values)
  dtype = jnp.result_type(values, float) if values.dtype.kind in "biu" else values.dtype
  if weights is None:
    return jnp.full(values.shape, 1 / values.shape[-1], dtype)
  weights = jnp.broadcast_to(jnp.asarray(weights, dtype), values.shape)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  mu = weights / jnp.where(total > 0, total, 1.0)
  return jnp.where(mu >= jnp.finfo(dtype).tiny, mu, 0.0)


def _tables(values, beta, weights) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(mu [..., G], values / beta with 0 at weight 0, beta scalar or [...])."""
  mu = _sampler(values, weights)
  beta = jnp.asarray(beta, mu.dtype)
  divisor = beta[..., None] if beta.ndim else beta
  return mu, jnp.where(mu > 0, jnp.asarray(values, mu.dtype), 0.0) / divisor, beta


@jax.custom_jvp
def _fixed_point(a: jax.Array, mu: jax.Array, statistic: jax.Array, regime: jax.Array):
  """(u [..., G], lam/beta [...], 1.0 where collapsed) for a = A/beta in a known regime."""
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
