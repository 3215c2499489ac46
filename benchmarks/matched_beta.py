"""The temperature at which an induced target sits at a given KL from the sampler."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.losses import induced_target, lambert

_REACH = 1e4  # beta is searched between the rewards' range / _REACH and * _REACH


class MatchedBeta(NamedTuple):
  """What beta_for_kl found."""

  beta: jax.Array  # float scalar
  kl: jax.Array  # float scalar, mean KL(pi||mu) at that beta
  reached: jax.Array  # bool scalar, whether kl is the KL that was asked for


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
  mu, centred, _ = induced_target._tables(rewards, 1.0, weights)
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
    target = induced_target.solve(centred - value[..., None] + kappa * beta, beta, mu)
    kl = jnp.where(varied, induced_target.reverse_kl(target.log_ratios, mu), 0.0)
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
