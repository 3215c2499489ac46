"""The mixture of experts against a loop over tokens in float64, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import mixture

N, D, F, E = 23, 8, 6, 5


def weights(seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 5))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  return draw(N, D), draw(D, E), draw(E, D, F), draw(E, D, F), draw(E, F, D)


def by_hand(x, router, gate, up, down, per_token, normalize):
  x, router, gate, up, down = (np.asarray(a, np.float64) for a in (x, router, gate, up, down))
  out = np.zeros_like(x)
  for n in range(N):
    odds = np.exp(x[n] @ router)
    odds /= odds.sum()
    chosen = np.argsort(-odds)[:per_token]
    total = odds[chosen].sum() if normalize else 1.0
    for e in chosen:
      z = x[n] @ gate[e]
      out[n] += odds[e] / total * ((z / (1 + np.exp(-z)) * (x[n] @ up[e])) @ down[e])
  return out


def ours(x, router, gate, up, down, per_token, normalize):
  chosen = mixture.route(x, router, per_token, normalize)
  return mixture.apply(x, *chosen, gate, up, down, jax.nn.silu)


@pytest.mark.parametrize("per_token", [1, 2, E])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_token_gets_its_experts(per_token, normalize):
  given = weights()
  expected = by_hand(*given, per_token, normalize)
  np.testing.assert_allclose(ours(*given, per_token, normalize), expected, rtol=2e-4, atol=2e-5)


def test_the_gradient_is_that_of_the_values():
  given, step = weights(1), 1e-2
  loss = lambda *args: jnp.sum(jnp.sin(ours(*args, 2, True)))
  exact = lambda *args: np.sum(np.sin(by_hand(*args, 2, True)))
  gradients = jax.grad(loss, argnums=(1, 2, 3, 4))(*given)
  draw = np.random.default_rng(0)
  for i, gradient in enumerate(gradients, 1):
    ahead = draw.normal(size=gradient.shape)
    moved = lambda size, i=i, ahead=ahead: [
      np.asarray(a, np.float64) + (size * ahead if j == i else 0) for j, a in enumerate(given)
    ]
    size = step * 1e-3
    slope = (exact(*moved(size)) - exact(*moved(-size))) / (2 * size)
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * ahead), slope, rtol=1e-3)
