"""The mixture of experts against a loop over tokens in float64, and its gradient."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import mixture, sharding
from tests.learner.step_test import OPTIMIZER, assert_same_update, choices, random_batch
from tests.model.decoder_test import CONFIG

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
  gradients = jax.jit(jax.grad(loss, argnums=(1, 2, 3, 4)))(*given)
  draw = np.random.default_rng(0)
  for i, gradient in enumerate(gradients, 1):
    ahead = draw.normal(size=gradient.shape)
    moved = lambda size, i=i, ahead=ahead: [
      np.asarray(a, np.float64) + (size * ahead if j == i else 0) for j, a in enumerate(given)
    ]
    size = step * 1e-3
    slope = (exact(*moved(size)) - exact(*moved(-size))) / (2 * size)
    np.testing.assert_allclose(np.sum(np.asarray(gradient) * ahead), slope, rtol=1e-3)


def test_what_a_product_leaves_undefined_reaches_nobody(monkeypatch):
  """Behind its last block a grouped product may hold anything, and so may its gradient."""
  real = jax.lax.ragged_dot

  def spoiled(x, sizes):
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], x, jnp.nan)

  @jax.custom_vjp
  def undefined(x, w, sizes):
    return spoiled(real(x, w, sizes), sizes)

  def backward(kept, gradient):
    x, w, sizes = kept
    clean = lambda y: jnp.where((jnp.arange(y.shape[0]) < sizes.sum())[:, None], y, 0)
    dx, dw = jax.vjp(lambda x, w: real(clean(x), w, sizes), x, w)[1](clean(gradient))
    return spoiled(dx, sizes), dw, None

  undefined.defvjp(lambda *given: (undefined(*given), given), backward)

  def two_shards(local, tokens, experts):
    half = experts[0].shape[0] // 2
    first, second = ([e[:half] for e in experts], [e[half:] for e in experts])
    return local(0, *tokens, *first) + local(half, *tokens, *second)

  given = weights(2)
  loss = lambda *args: jnp.sum(jnp.sin(ours(*args, 2, True)))
  both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))
  expected = both(*given)
  monkeypatch.setattr(mixture.sharding, "sum_over_experts", two_shards)
  monkeypatch.setattr(jax.lax, "ragged_dot", undefined)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), both(*given), expected
  )


WIDE = dict(experts=8, tokens=64, width=32, inner=16)  # divisible by every mesh below
MESHES = [dict(expert=8), dict(expert=4, data=2), dict(expert=2, fsdp=2, tensor=2)]


def wide_weights():
  """Tokens, router, experts. Outputs are of size 1: the sine of large ones is mostly rounding."""
  keys = iter(jax.random.split(jax.random.key(3), 5))
  draw = lambda *shape: jax.random.normal(next(keys), shape)
  e, n, d, f = WIDE.values()
  wide = lambda *shape: draw(*shape) / shape[-2] ** 0.5
  return draw(n, d), draw(d, e), wide(e, d, f), wide(e, d, f), wide(e, f, d)


def placed(mesh, arrays):
  axes = (
    ("batch", None),
    (),
    ("expert", "embed", "mlp"),
    ("expert", "embed", "mlp"),
    ("expert", "mlp", "embed"),
  )
  shardings = [jax.sharding.NamedSharding(mesh, sharding.spec(*names)) for names in axes]
  return [jax.device_put(x, s) for x, s in zip(arrays, shardings, strict=True)]


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_split_experts_compute_the_same_and_so_do_their_gradients(shape):
  given, mesh = wide_weights(), sharding.make_mesh(**shape)

  @jax.jit
  def both(*args):
    value = ours(*args, 2, True)
    loss = lambda *args: jnp.sum(jnp.sin(ours(*args, 2, True)))
    return value, jax.grad(loss, argnums=tuple(range(5)))(*args)

  expected, slopes = both(*given)
  with jax.sharding.set_mesh(mesh):
    split = placed(mesh, given)
    assert split[2].sharding.shard_shape(split[2].shape)[0] == 8 // shape["expert"]
    value, gradients = both(*split)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
    for found, slope in zip(gradients, slopes, strict=True):
      np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-4 * np.abs(slope).max())


def test_weights_of_experts_stay_where_they_are():
  """No collective of the compiled program carries as much as one expert's matrix."""
  mesh = sharding.make_mesh(expert=8)
  with jax.sharding.set_mesh(mesh):
    split = placed(
      mesh,
      (
        jnp.ones((8, 256)),
        jnp.ones((256, 8)),
        *(jnp.ones((8, *s)) for s in ((256, 512), (256, 512), (512, 256))),
      ),
    )
    text = jax.jit(lambda *args: ours(*args, 2, True)).lower(*split).compile().as_text()
  moved = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective)", text)
  assert moved
  assert max(np.prod([int(n) for n in dims.split(",") if n]) for dims in moved) < 256 * 512 / 4


@pytest.mark.long
def test_a_step_with_split_experts_is_the_step_of_one_device():
  model = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2, expert_width=16)
  made = dataclasses.replace(choices("beta_shift"), model=model)

  def run(mesh):
    state = state_lib.create(model, mesh, OPTIMIZER, seed=0)
    with jax.sharding.set_mesh(mesh):
      batch = state_lib.place_batch(mesh, random_batch())
      compiled = step.compile_step(made, state_lib.shardings(model, mesh, OPTIMIZER))
      counted = step.router_metrics(made, state.params, batch)
      return compiled(state, batch, None), {k: float(x) for k, x in counted.items()}

  one, counted_by_one = run(sharding.make_mesh())
  eight, counted = run(sharding.make_mesh(fsdp=2, tensor=2, expert=2))
  experts = eight[0].params["blocks"]["experts_gate"]
  assert experts.sharding.shard_shape(experts.shape) == (3, 2, 16, 8)
  assert_same_update(one, eight)
  assert counted == pytest.approx(counted_by_one, rel=1e-4)
  assert 1 < counted["router/max_load"] < 2 and 0 < counted["router/entropy"] < np.log(4)


def test_loads_are_counted_without_padding():
  x, router, *_ = wide_weights()
  valid = np.arange(64) % 3 > 0
  _, chosen = mixture.route(x, router, 2, True)
  layers = [mixture.load(x * scale, router, chosen, valid) for scale in (1.0, 0.0)]
  metrics = mixture.load_metrics(jax.tree.map(lambda *a: jnp.stack(a), *layers))
  counts = np.bincount(np.asarray(chosen)[valid].reshape(-1), minlength=8)
  share = counts / (2 * valid.sum())
  odds = np.exp(np.asarray(x, np.float64) @ np.asarray(router, np.float64))
  odds = (odds / odds.sum(-1, keepdims=True))[valid]
  expected = {
    "router/max_load": 8 * share.max(),
    "router/worst_layer": 8 * share.max(),
    "router/unused": np.mean(counts == 0),
    "router/balance": (8 * np.sum(share * odds.mean(0)) + 1)
    / 2,  # the second layer's odds are even
    "router/entropy": (-np.sum(odds * np.log(odds), -1).mean() + np.log(8)) / 2,
  }
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected, rel=1e-4)
