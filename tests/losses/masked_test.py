"""The edges of every objective: under the mask, empty and odd batches, float32's range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import masked
from tests.losses import slow_reference
from tests.losses.objectives_test import (
  EDGES,
  NAMES,
  ONE_OF_EACH,
  OTHERS,
  arrays,
  build,
  stacked,
  value_and_gradient,
  values_and_gradients,
)
from tests.losses.slow_reference import random_inputs
from tests.params import some

TOKEN_FIELDS = (
  *("policy_logprobs", "sampler_logprobs", "reference_logprobs", "proximal_logprobs"),
  *("candidate_logprobs", "sampler_candidate_logprobs"),
)
WITHOUT_RATIO = [
  name
  for name, c in losses.PRESETS.items()
  if c.fn in ("regression", *losses.choices.PAIRWISE)
  or (c.fn == "policy_gradient" and c.weight == "none")
]
BOUNDED = ["aipo", "dual_clip", "two_sided", "prime_ipo", "sapo", "kimi_k25", "vespo", "m2po"]


def under_the_mask(x: losses.LossInputs, value: float) -> losses.LossInputs:
  """The same inputs with `value` wherever nothing counts."""
  given = {key: getattr(x, key) for key in TOKEN_FIELDS if getattr(x, key) is not None}
  mask = lambda v: x.loss_mask.reshape(*x.loss_mask.shape, *(1,) * (v.ndim - 2))
  return x._replace(**{key: np.where(mask(v), v, value) for key, v in given.items()})


def assert_nothing_leaks(objective, x):
  values = (-1.0, np.nan, -np.inf, np.inf)
  with jax.enable_x64(True):
    found = values_and_gradients(objective, [under_the_mask(x, value) for value in values])
  loss, gradient = found
  assert np.isfinite(loss).all() and np.isfinite(gradient).all()
  for lane in (1, 2, 3):
    np.testing.assert_array_equal(loss[lane], loss[0], err_msg=str(values[lane]))
    np.testing.assert_array_equal(gradient[lane], gradient[0], err_msg=str(values[lane]))
  assert np.all(gradient[:, ~x.loss_mask] == 0)


@pytest.mark.parametrize("name", some(*EDGES))
def test_nothing_under_the_mask_reaches_loss_or_gradient(name):
  objective = build(name)
  assert_nothing_leaks(objective, random_inputs(0))
  if objective.choices.needs_proximal:
    assert_nothing_leaks(objective, random_inputs(0)._replace(proximal_logprobs=None))


@pytest.mark.parametrize(
  ("name", "choices"),
  [
    *(("beta_shift", {"kl_coef": 0.1, "kl": kl}) for kl in ("k1", "k2", "k3")),
    ("reinforce", {"correction": "seq_truncate", "correction_high": 2.0}),
    ("grpo", {"level": "sequence", "correction": "token_mask", "opsm_delta": 0.1}),
    ("decoupled_ppo", {"proximal": "current", "correction": "seq_mask"}),
    ("prime_double_mask", {"kl_tau": 0.1}),
    ("kimi", {"log_ratio": "mean"}),
    ("dapo", {"overlong_cache": 3}),
  ],
)
def test_nothing_under_the_mask_leaks_through_the_other_choices(name, choices):
  assert_nothing_leaks(build(name, **choices), random_inputs(1))


@pytest.mark.parametrize("name", some(ONE_OF_EACH, OTHERS))
def test_a_batch_of_empty_rows_has_no_gradient(name):
  x = under_the_mask(random_inputs(0)._replace(loss_mask=np.zeros((12, 6), bool)), np.nan)
  objective = build(name, kl_coef=0.0 if losses.PRESETS[name].couples_rows else 0.1)
  [loss], [gradient] = values_and_gradients(objective, [x], metrics=False)
  np.testing.assert_array_equal(gradient, np.zeros((12, 6)))
  # Empty rows are in the groups that pairs compare: there the loss is a constant.
  assert np.isfinite(loss) if objective.choices.couples_rows else loss == 0


def with_holes(x: losses.LossInputs) -> losses.LossInputs:
  """The same tokens with others between them, as the turns of an environment are."""
  rng, count = np.random.default_rng(0), x.loss_mask.shape[1]
  kept = [np.sort(rng.permutation(count)[:length]) for length in x.loss_mask.sum(1)]
  source = np.array([[*columns, *np.setdiff1d(range(count), columns)] for columns in kept])
  places = np.argsort(source)  # column -> which of the row's columns before it holds

  def moved(v):
    return np.take_along_axis(v, places.reshape(*places.shape, *(1,) * (v.ndim - 2)), 1)

  wide = (*TOKEN_FIELDS, "loss_mask", "versions")
  return x._replace(**{key: moved(getattr(x, key)) for key in wide})


# name -> what is odd about the batch
ODD = {
  "holes": with_holes,
  "groups of one": lambda x: x._replace(group_ids=np.random.default_rng(0).permutation(12)),
  "ids with gaps": lambda x: x._replace(group_ids=np.array([11, 0, 5])[x.group_ids]),
  "equal rewards": lambda x: x._replace(rewards=np.full(12, 0.7)),
  "equal rewards in each group": lambda x: x._replace(rewards=np.array([1.0, 0, 1])[x.group_ids]),
  "binary rewards": lambda x: x._replace(rewards=(x.rewards > 0).astype(float)),
  "one row": lambda x: jax.tree.map(lambda v: v[:1], x)._replace(group_ids=np.zeros(1, int)),
}


@pytest.mark.parametrize(
  ("name", "odd"),
  some(
    [(name, [*ODD][:-1]) for name in EDGES[0]],
    [*((name, [*ODD][:-1]) for name in EDGES[1]), *((name, [*ODD][-1:]) for name in NAMES)],
  ),
  ids=lambda x: x if isinstance(x, str) else f"{len(x)} kinds",
)
def test_odd_batches_match_slow_numpy(name, odd):
  batches = [ODD[kind](random_inputs(5)) for kind in odd]
  objective = build(name)
  with jax.enable_x64(True):
    found = values_and_gradients(objective, batches, metrics=False)
  for kind, x, *pair in zip(odd, batches, *found, strict=True):
    expected = slow_reference.loss_and_gradient(objective.choices, x)
    # "equal rewards" has advantages that are all rounding, below 1e-11 with any denominator.
    for value, exact in zip(pair, expected, strict=True):
      np.testing.assert_allclose(value, exact, rtol=1e-9, atol=1e-11, err_msg=kind)


def far_inputs(size: float, *, above: bool) -> losses.LossInputs:
  """float32; half of the tokens have a log-ratio of +size (or -size), the others of 0."""
  x = random_inputs(0)
  half = np.random.default_rng(0).random(x.loss_mask.shape) < 0.5
  near = np.full(x.loss_mask.shape, -0.1)
  far = np.where(half, near - size, near)
  policy, other = (near, far) if above else (far, near)
  x = x._replace(
    policy_logprobs=policy,
    sampler_logprobs=other,
    reference_logprobs=other,
    proximal_logprobs=other,
  )
  return jax.tree.map(lambda v: v.astype(np.float32) if v.dtype == float else v, x)


@pytest.mark.parametrize("name", some(*EDGES))
def test_far_policies_are_finite_in_float32(name):
  """80 nats, also where the product over a row is not: e^80 = 5e34 is, e^160 is infinite.

  Any distance without a ratio; and e^100 where what is clipped, gated or left out must not be NaN.
  """
  batches = [far_inputs(80.0, above=above) for above in (True, False)]
  if name in WITHOUT_RATIO:
    batches += [far_inputs(1e4, above=above) for above in (True, False)]
  if name in BOUNDED:
    batches += [far_inputs(100.0, above=True)]
  loss, gradient = values_and_gradients(build(name), batches, metrics=False)
  assert np.isfinite(loss).all() and np.isfinite(gradient).all(), loss


# Log-probabilities of a token that a policy rules out, all but rules out, or is certain of.
EXTREMES = (-np.inf, -3e38, -100.0, 0.0)


def extreme_inputs() -> list[losses.LossInputs]:
  """Two plain batches, then those with two tokens of one policy at an extreme."""
  x = random_inputs(0)
  cases = [x, random_inputs(1)]
  for field in ("policy_logprobs", "sampler_logprobs", "reference_logprobs"):
    for extreme in EXTREMES:
      changed = getattr(x, field).copy()
      changed[[0, 5], [0, 1]] = extreme
      cases.append(x._replace(**{field: changed}))
  return [x._replace(proximal_logprobs=None) for x in cases]


def with_a_reference(name: str) -> losses.Objective:
  return build(name, kl_coef=0.0 if losses.PRESETS[name].couples_rows else 0.1)


def assert_finite(values, slopes):
  """In float32, with a gradient whose square is finite, too: norms are made of squares."""
  assert np.all(np.isfinite(values)), values
  assert np.all(np.isfinite(np.sum(np.square(slopes), axis=(1, 2)))), slopes


@pytest.mark.parametrize("name", some(*EDGES))
def test_extreme_tokens_leave_loss_and_gradient_finite(name):
  assert_finite(*values_and_gradients(with_a_reference(name), extreme_inputs(), metrics=False))


@pytest.mark.parametrize("name", some(ONE_OF_EACH[:1], ONE_OF_EACH[1:]))
def test_jit_and_vmap_change_nothing_and_extremes_stay_finite(name):
  objective, cases = with_a_reference(name), extreme_inputs()

  def gradient(x):
    return value_and_gradient(objective, x)

  values, slopes = jax.jit(jax.vmap(gradient))(stacked(cases))
  for i in (0, 1):
    value, slope = gradient(cases[i])
    np.testing.assert_allclose(values[i], value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slopes[i], slope, rtol=1e-4, atol=1e-6)
  assert_finite(values, slopes)


@pytest.mark.parametrize("eps", [1e-4, 1e-8, 0.0])
@pytest.mark.parametrize("kind", [k for k in losses.choices.ARGUMENTS["advantage"] if k != "value"])
def test_groups_of_equal_rewards_have_no_advantage(kind, eps):
  """Nor their rounding: in float32 the mean of 6 rewards of 0.3 is not 0.3."""
  zeros = jnp.zeros((13, 2), jnp.float32)
  for reward in (0.0, 0.1, 0.3, 0.7):
    x = losses.LossInputs(
      policy_logprobs=zeros,
      sampler_logprobs=zeros,
      loss_mask=zeros == 0,
      rewards=jnp.full(13, reward, jnp.float32),
      group_ids=jnp.array([0] * 6 + [1] * 7),
    )
    found = build("reinforce", advantage=kind, std_eps=eps).prepare(x).advantages
    np.testing.assert_allclose(found, np.zeros(13), atol=2e-3, err_msg=f"rewards of {reward}")


def test_sums_means_and_largest_values_leave_out_what_is_masked():
  x = jnp.array([[1.0, jnp.nan, 3.0], [jnp.inf, -jnp.inf, jnp.nan]])
  mask = jnp.array([[True, False, True], [False, False, False]])
  np.testing.assert_array_equal(masked.masked_sum(x, mask, -1), [4, 0])
  np.testing.assert_array_equal(masked.masked_mean(x, mask, -1), [2, 0])
  assert masked.masked_mean(x, mask) == 2 and masked.masked_max(x, mask) == 3
  assert masked.masked_max(x, jnp.zeros_like(mask)) == -jnp.inf


def test_a_prepared_batch_has_a_float_per_row():
  x = arrays(random_inputs(0))
  for name in NAMES:
    prepared = build(name).prepare(x)
    assert all(v.shape == (12,) and v.dtype == jnp.float32 for v in prepared), name
    assert all(np.isfinite(v).all() for v in prepared), name


@pytest.mark.parametrize("name", some(["copg", "rebel", "scalerl"], ["beta_shift", "dpo"]))
def test_a_group_that_was_left_out_is_in_no_mean(name):
  """Loss, gradient and metrics are those of the other groups alone (learner/poison.py)."""
  rng, count = np.random.default_rng(1), 12
  objective = losses.objective(name, group_size=3, drop_zero_variance=False)
  logprobs = jnp.asarray(-rng.exponential(1, (3, count, 5)), jnp.float32)
  rewards, ids = jnp.asarray(rng.normal(size=count), jnp.float32), np.repeat(np.arange(4), 3)
  rest = ids != 1

  def found(rows, ids, rewards, mask):
    policy, sampler, reference = logprobs[:, rows]

    def both(policy):
      inputs = losses.LossInputs(policy, sampler, mask, rewards, ids, reference)
      return objective(inputs)

    (loss, metrics), gradient = jax.value_and_grad(both, has_aux=True)(policy)
    return loss, metrics, gradient

  mask = jnp.ones((count, 5), bool) & rest[:, None]
  left_out = found(np.arange(count), jnp.asarray(ids), jnp.where(rest, rewards, 0.0), mask)
  alone = found(np.flatnonzero(rest), jnp.repeat(jnp.arange(3), 3), rewards[rest], mask[rest])
  assert float(left_out[0]) == pytest.approx(float(alone[0]), rel=1e-5)
  assert {k: float(v) for k, v in left_out[1].items()} == pytest.approx(
    {k: float(v) for k, v in alone[1].items()}, rel=1e-4, abs=1e-6
  )
  np.testing.assert_allclose(left_out[2][rest], alone[2], rtol=1e-4, atol=1e-7)
  assert not np.any(left_out[2][~rest])
