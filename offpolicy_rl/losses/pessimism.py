"""The pessimistic regularizer: the beta-shifted mean, as a function of arrays.

With u = sum_t log pi/mu (mu = the sampler's policy), the mean-baseline regression is

  L = mean (beta u - A)^2 / (2 beta),        A = r - mean(r).

Lowering the baseline by kappa beta, A -> A + kappa beta, adds to it exactly

  R = mean [ kappa (A - beta u) + kappa^2 beta / 2 ],

whose only part with a gradient is kappa beta mean(-u): kappa beta times the forward KL(mu || pi),
estimated on the sampler's own completions. It keeps the policy on what the sampler does, right and
wrong completions alike, and floors the chi^2 weight of the induced target at kappa beta
(arXiv 2605.28150; arXiv 2602.05933 derives the same target for the mean baseline).
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames=("beta", "kappa"))
def pessimistic_regularizer(
  log_ratios: jax.Array, advantages: jax.Array, weights: jax.Array, *, beta: float, kappa: float
) -> jax.Array:
  """R above: what turns the mean baseline into the beta-shifted mean.

  Args:
    log_ratios: float [B], u = sum over completion tokens of log pi/mu, in nats.
    advantages: float [B], unshifted. They contribute a constant, which makes
      regression + R equal to the shifted regression in value, not only in gradient.
    weights: float [B], weight of each row in the mean; 0 = the row does not count.
    beta: temperature of the regression, > 0.
    kappa: shift in units of beta; > 0 pessimistic, 0 none, < 0 optimistic.

  Returns:
    float scalar.
  """
  return jnp.sum(weights * (kappa * (advantages - beta * log_ratios) + 0.5 * kappa**2 * beta))
