"""Wright's omega, Lambert's W_0 in log space, and the constraint E_mu e^u = 1.

Sources: Corless and Jeffrey, "The Wright omega function" (2002); the iteration is Fritsch, Shafer
and Crowley's (1973, fourth order). Both functions are elementwise, float in and out, and safe under
jit, vmap and any order of differentiation; the multipliers are solved for without derivatives
(induced_target.py adds them).
"""

import functools

import jax
import jax.numpy as jnp


def _relative_step(residual: jax.Array, one_plus_w: jax.Array) -> jax.Array:
  """e of the iteration w <- w (1 + e); residual = log(x / w) - w."""
  newton = residual / one_plus_w
  curvature = one_plus_w + 2 / 3 * residual
  return newton * (curvature - newton / 2) / (curvature - newton)


@jax.custom_jvp
def wright_omega(z: jax.Array) -> jax.Array:
  """omega(z): the w > 0 with w + log w = z, i.e. W_0(e^z) without the overflow.

  Relative error of a few ulp for every finite z; 0 where e^z underflows, inf at inf.
  """
  exp_z = jnp.exp(jnp.minimum(z, 1.0))  # exact to an ulp, where the sum z - log w would not be
  softplus = jax.nn.softplus(z)
  w = softplus * (1 - jnp.log1p(softplus) / (2 + softplus))  # within 2 percent everywhere
  underflow = exp_z < jnp.finfo(z.dtype).tiny
  w = jnp.where(underflow, 1.0, w)
  for _ in range(2):
    residual = jnp.where(z <= 1, jnp.log(exp_z / w) - w, z - w - jnp.log(w))
    w = w + w * _relative_step(jnp.where(underflow, 0.0, residual), 1 + w)
  return jnp.where(jnp.isposinf(z), z, jnp.where(underflow, exp_z, w))


@wright_omega.defjvp
def _omega_jvp(primals, tangents):
  w = wright_omega(*primals)
  slope = jnp.where(jnp.isposinf(w), 1.0, w / (1 + jnp.where(jnp.isposinf(w), 0.0, w)))
  return w, slope * tangents[0]


def _refine(s: jax.Array, v: jax.Array, excess: jax.Array) -> jax.Array:
  """-v, v = -W_0(-e^s) from a guess; excess = v - 1 apart, to be exact near v = 1."""
  depth = -1 - s
  inside = depth > 0
  deep = inside & (s < -1.5) & (v < 1)  # v so small that v - 1 has lost it
  exp_s = jnp.where(deep, jnp.exp(s), 1.0)
  vanished = deep & (exp_s < jnp.finfo(s.dtype).tiny)
  v, excess = jnp.where(inside & ~vanished, v, 0.5), jnp.where(inside & ~vanished, excess, -0.5)
  for _ in range(2):
    residual = jnp.where(deep, v, excess - depth) - jnp.log1p(
      jnp.where(deep, v / exp_s - 1, excess)
    )
    step = v * _relative_step(jnp.where(inside & ~vanished, residual, 0.0), -excess)
    v, excess = v + step, excess + step
  v = jnp.where(deep, v, 1 + excess)
  return -jnp.where(inside, jnp.where(vanished, exp_s, v), 1.0)


@jax.custom_jvp
def lambert_w0(s: jax.Array) -> jax.Array:
  """W_0(-e^s) in [-1, 0) for s <= -1; -1 with zero gradient for s > -1, where W is not real."""
  depth = jnp.maximum(-1 - s, 0.0)
  p = jnp.sqrt(-2 * jnp.expm1(-depth))  # series at the branch point, Corless et al. (1996) 4.22
  near = -p * (1 - p * (1 / 3 - p * (11 / 72 - p * (43 / 540 - p * 769 / 17280))))
  exp_s = jnp.exp(jnp.minimum(s, -1.5))
  deep = exp_s / (1 - exp_s)
  far = s < -1.5
  return _refine(s, jnp.where(far, deep, 1 + near), jnp.where(far, deep - 1, near))


@lambert_w0.defjvp
def _w0_jvp(primals, tangents):
  """dW / ds = W / (1 + W); 0 outside the domain and at the branch point."""
  w = lambert_w0(*primals)
  regular = w != -1
  return w, jnp.where(regular, w / jnp.where(regular, 1 + w, 1.0), 0.0) * tangents[0]


def log_mean_exp(x: jax.Array, mu: jax.Array) -> jax.Array:
  """log E_mu e^x, float [...] of [..., G]: shifted by the maximum, or by expm1 if it is near 0."""
  top = jax.lax.stop_gradient(jnp.max(jnp.where(mu > 0, x, -jnp.inf), axis=-1, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0.0)
  total = jnp.sum(mu * jnp.exp(jnp.where(mu > 0, x - top, 0.0)), axis=-1)
  far = top[..., 0] + jnp.log(jnp.where(total > 0, total, 1.0))
  excess = jnp.sum(mu * jnp.expm1(jnp.minimum(x, 1.0)), axis=-1)
  near = (top[..., 0] < 1) & (jnp.abs(excess) < 0.5)
  return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0.0)), far)


@functools.partial(jax.jit, static_argnames="steps")
def positive_multiplier(
  a: jax.Array, mu: jax.Array, statistic: jax.Array, steps: int = 13
) -> tuple:
  """(u [..., G], log c [...]) with a = u + c e^u, E_mu e^u = 1; statistic = log E_mu e^a > 0.

  e^u = W(c e^a) / c is a Stieltjes function of c (Kalugin, Jeffrey and Corless 2012). So is its
  mean h: 1/h is concave in c and h is concave in 1/c, and Newton's method for h = 1 bounds the root
  from below in the one form and from above in the other, from any point. Each step goes to the
  middle of these bounds in log c. The first ones: c >= E_mu a, c <= max a, u >= a - c e^a.
  """
  top = jnp.max(jnp.where(mu > 0, a, -jnp.inf), axis=-1)
  top = jnp.where(top > 0, top, 1.0)
  mean = jnp.sum(mu * a, axis=-1)
  log_mean = jnp.where(mean > 0, jnp.log(jnp.where(mean > 0, mean, 1.0)), -jnp.inf)
  start = jnp.maximum(jnp.log(statistic) - top, log_mean)
  tiny = jnp.finfo(a.dtype).tiny

  def step(_, state):
    low, high, log_c, _ = state
    w = wright_omega(a + log_c[..., None])
    large = w > 1  # there a - w cancels, and log w - log c does not
    u = jnp.where(large, jnp.log(jnp.where(large, w, 1.0)) - log_c[..., None], a - w)
    f = log_mean_exp(u, mu)  # log h
    pi = mu * jnp.exp(jnp.where(mu > 0, u - f[..., None], 0.0))
    rate = jnp.maximum(jnp.sum(pi * w / (1 + w), axis=-1), tiny)  # -df / d log c, in (0, 1)
    f = jnp.maximum(f, -50.0)  # no overflow below; the bounds only get weaker
    below, above = jnp.exp(-f) - jnp.expm1(-f) / rate, 1 + jnp.expm1(-f) / rate
    lower = log_c + f + jnp.log(jnp.where(below > 0, below, 1.0))
    upper = log_c - jnp.log(jnp.where(above > 0, above, 1.0))
    low = jnp.where(below > 0, jnp.maximum(low, lower), low)
    high = jnp.where(above > 0, jnp.minimum(high, upper), high)
    return low, high, (low + high) / 2, (u, log_c)

  state = (start, jnp.log(top), start, (a, start))
  return jax.lax.fori_loop(0, steps, step, state)[3]


def negative_curve(
  t: jax.Array, u_top: jax.Array, best: jax.Array, a: jax.Array, mu: jax.Array
) -> tuple[jax.Array, ...]:
  """One entry (`best`, bool [..., G]) has v = u - a = t [...] and u = u_top, the others are on W_0.

  Returns f = log E_mu e^u [...], df/dt [...], u [..., G], log c [...] with c = t e^-u_top: all
  entries have a = u - c e^u. With `best` on W_{-1} (t > 1), g = mu e^u and h = mu (1 - c e^u), the
  bordered Hessian is positive on sum g du = 0 iff sum g^2 / h < 0, which is df/dt > 0.
  """
  log_c = jnp.log(t) - u_top
  v = jnp.where(best, t[..., None], -lambert_w0(a + log_c[..., None]))
  u = jnp.where(best, u_top[..., None], a + v)
  f = log_mean_exp(u, mu)
  pi = mu * jnp.exp(jnp.where(mu > 0, u - f[..., None], 0.0))
  room = jnp.where(best | (v == 1), 1.0, 1 - v)
  others = jnp.sum(jnp.where(best, 0.0, pi * v / room), axis=-1)
  return f, jnp.sum(jnp.where(best, pi, 0.0), axis=-1) + others * (1 - t) / t, u, log_c


@functools.partial(jax.jit, static_argnames="steps")
def negative_multiplier(
  a: jax.Array, mu: jax.Array, statistic: jax.Array, steps: int = 20
) -> tuple:
  """(u [..., G], log c [...], collapsed [...]) with a = u - c e^u, E_mu e^u = 1.

  For statistic = log E_mu e^a < 0. The unknown is t = v of the largest a: up to t = 1 all entries
  are on W_0 and f rises with t at a rate in (0, 1]. f(1) < 0 is the collapse: t > 1. There the
  unknown is that entry's u = a + t, at most -log mu, so that a large |a| cancels nowhere.
  """
  best = jax.nn.one_hot(
    jnp.argmax(jnp.where(mu > 0, a, -jnp.inf), axis=-1), a.shape[-1], dtype=bool
  )
  a_top, mu_top = jnp.sum(a * best, axis=-1), jnp.sum(mu * best, axis=-1)
  largest = -jnp.log(jnp.where(mu_top > 0, mu_top, 1.0))

  def step(i, state):
    low, high, q, collapsed, _ = state
    t, u_top = jnp.where(collapsed, q - a_top, q), jnp.where(collapsed, q, a_top + q)
    f, slope, u, log_c = negative_curve(t, u_top, best, a, mu)
    low, high = jnp.where(f < 0, q, low), jnp.where(f < 0, high, q)
    newton = q - f / jnp.where(slope > 0, slope, 1.0)
    trusted = (slope > 0) & (newton >= low) & (newton <= high)
    q = jnp.where(trusted, newton, (low + high) / 2)
    # The first point was t = 1; its result decides which unknown is used and where it starts.
    first, fell = i == 0, (i == 0) & (f < 0)
    low = jnp.where(fell, a_top + 1, low)
    high = jnp.where(fell, jnp.maximum(largest, low), high)
    q = jnp.where(first, jnp.where(fell, high, low), q)
    return low, high, q, collapsed | fell, (u, log_c)

  low = jnp.clip(-statistic, jnp.finfo(a.dtype).tiny, 1.0)
  one, not_yet = jnp.ones_like(low), jnp.zeros(low.shape, bool)
  state = (low, one, one, not_yet, (a, low))
  state = jax.lax.fori_loop(0, steps + 1, step, state)
  return *state[4], state[3]
