"""Every minimum of a ratio-free regression over one table, for tests of the induced target."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl.losses import induced_target, lambert


class Minimum(NamedTuple):
  """One local minimiser of the loss over a table of G entries, float64 numpy."""

  lam: float
  log_ratios: np.ndarray  # [G]
  winner: int | None  # the entry on W_{-1}; None = all on W_0
  loss: float  # E_mu (beta u - A)^2 / (2 beta)


def minima(advantages, beta: float, weights=None) -> list[Minimum]:
  """All local minimisers over one table [G], lowest loss first. On the host, not under jit.

  Unless lam < 0 there is one. With lam < 0 at most one entry j is on W_{-1} (two make the bordered
  Hessian indefinite). For each j the curve f of `lambert.negative_curve` is cut at the extremes
  found on a grid, and every rising piece through 0 holds a minimum; falling ones hold saddles.
  """
  with jax.enable_x64(True):
    advantages = np.asarray(advantages, np.float64)
    target = jax.tree.map(np.asarray, induced_target.solve(advantages, beta, weights))
    mu, a, _ = (np.asarray(x) for x in induced_target._tables(advantages, beta, weights))
    solutions = [] if target.collapsed else [(float(target.lam), target.log_ratios, None)]
    for j in np.flatnonzero(mu) if target.regime < 0 else ():
      best = np.arange(a.size) == j
      for t in _rising_roots(best, a, mu):
        _, _, u, log_c = _curve(np.array([t]), best, a, mu)
        solutions.append((-beta * float(np.exp(log_c[0])), np.where(mu > 0, u[0], 0.0), int(j)))
  listed = []
  for lam, u, winner in solutions:
    residual = beta * (u - a)  # a is 0 where mu is 0
    listed.append(Minimum(lam, u, winner, float(np.sum(mu * residual**2) / (2 * beta))))
  return sorted(listed, key=lambda minimum: minimum.loss)


@jax.jit
def _curve(t: jax.Array, best: jax.Array, a: jax.Array, mu: jax.Array):
  """`lambert.negative_curve` of one table [G] at several t [T]."""
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
  first = _w_minus_1(gap)  # below, the largest entry has no W_0
  last = -np.log(mu[best]) - a[best]  # above, pi > 1
  if last <= first:
    return []

  def roots(points, values, output, falling_too):
    """The curve's sign changes between these points, refined."""
    crossed = (values[:-1] < 0) != (values[1:] < 0)
    crossed &= falling_too | (values[:-1] < 0)
    refined = [
      _bisect(points[k : k + 1], points[k + 1 : k + 2], values[k] < 0, best, a, mu, output=output)
      for k in np.flatnonzero(crossed)
    ]
    return np.concatenate([np.zeros(0), *refined])

  grid = first + (last - first) * np.geomspace(1e-9, 1.0, 1024)
  extremes = roots(grid, np.asarray(_curve(grid, best, a, mu)[1]), 1, True)
  ends = np.concatenate([first, extremes, last])
  padded = np.concatenate([ends, np.repeat(last, -len(ends) % 4)])
  return list(roots(ends, np.asarray(_curve(padded, best, a, mu)[0])[: len(ends)], 0, False))


def _w_minus_1(gap: np.ndarray) -> np.ndarray:
  """-W_{-1}(-e^(-1 - gap)): the v >= 1 with v - log v = 1 + gap, by Newton's method."""
  v = 1 + np.sqrt(2 * gap) + gap
  for _ in range(60):
    v = np.where(gap > 0, v - (v - np.log(v) - 1 - gap) * v / np.maximum(v - 1, 1e-300), 1.0)
  return v
