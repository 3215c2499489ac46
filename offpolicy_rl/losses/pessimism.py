"""The pessimistic regularizer: the shifted baseline of the regression, as a function of arrays.

With u = sum_t log pi/mu (mu = the sampler's policy), the mean-baseline regression is

  L = mean (beta u - A)^2 / (2 beta),        A = r - mean(r).

Lowering the baseline, A -> A + c with c = kappa beta + dv, adds to it exactly

  R = mean [ (c / beta) (A - beta u) + c^2 / (2 beta) ],

whose only part with a gradient is c mean(-u): c times the forward KL(mu || pi), estimated on the
sampler's completions. It keeps the policy close to the sampler on right and wrong completions
alike. At the fixed point of the mean baseline it keeps the multiplier, the chi^2 weight of the
induced target, at or above c (arXiv 2605.28150; arXiv 2602.05933 derives the same target for the
mean baseline). c > 0 lowers the baseline and is pessimistic. AsymRE (arXiv 2506.20520) writes its
shift into the baseline instead, A = r - (mean(r) + dV), so its dV = -0.1 is dv = +0.1 here.
"""

import jax


@jax.jit
def pessimistic_regularizer(
  log_ratios: jax.Array,
  advantages: jax.Array,
  *,
  beta: jax.Array | float,
  kappa: jax.Array | float,
  dv: jax.Array | float = 0.0,
) -> jax.Array:
  """R of each completion: added to the regression, it lowers the baseline by kappa beta + dv.

  Args:
    log_ratios: float [N], u = sum over completion tokens of log pi/mu, in nats.
    advantages: float [N], unshifted. They add a constant that makes regression + R equal to the
      shifted regression in value, not only in gradient.
    beta: temperature of the regression, > 0, scalar or [N]; like the shifts, it may be traced.
    kappa: shift in units of beta; > 0 pessimistic, 0 none, < 0 optimistic.
    dv: shift in units of reward, same signs; it adds to kappa beta.

  Returns:
    float [N]; to be averaged over completions like the regression.
  """
  shift = kappa + dv / beta
  return shift * (advantages - beta * log_ratios) + 0.5 * shift**2 * beta
