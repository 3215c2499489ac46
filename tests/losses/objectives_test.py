"""Each objective against slow numpy beside its formula, hand-derived gradients, golden rows."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import pessimism

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
# fixture configuration -> how to ask for it
ROWS = {
  "oapl_1_1e-3": ("oapl", {}),
  "oapl_1_1e-3_canonical": ("oapl", {"scale": "half_over_beta"}),
  "oapl_1_0.1": ("oapl", {"beta": 0.1}),
  "oapl_coupled_0.1": ("oapl", {"beta": 0.1, "beta1": 0.1}),
  "beta_shift_k1_b0.1": ("beta_shift", {"beta": 0.1}),
  "beta_shift_k1_b1": ("beta_shift", {"beta": 1.0}),
  "beta_shift_k-1": ("beta_shift", {"beta": 0.1, "kappa": -1.0}),
  "beta_shift_k2": ("beta_shift", {"beta": 0.1, "kappa": 2.0}),
  "pmd_mean_canonical": ("beta_shift", {"beta": 0.1, "kappa": 0.0}),
  "kimi_k15_tau0.1": ("beta_shift", {"beta": 0.1, "kappa": 0.0, "scale": "plain"}),
  "grpo": ("grpo", {"anchor": "proximal"}),
  "grpo_old_is_behavior": ("grpo", {}),
  "grpo_kl": ("grpo", {"anchor": "proximal", "kl_coef": 0.04}),
}
FIXTURES = [row for row in GOLDEN["results"] if row["name"] in ROWS]


def golden_inputs(case: dict) -> losses.LossInputs:
  return losses.LossInputs(
    policy_logprobs=jnp.asarray(case["lp_policy"]),
    sampler_logprobs=jnp.asarray(case["lp_behavior"]),
    loss_mask=jnp.asarray(case["mask"]) > 0,
    rewards=jnp.asarray(case["reward"]),
    group_ids=jnp.asarray(case["group"]),
    reference_logprobs=jnp.asarray(case["lp_reference"]),
    proximal_logprobs=jnp.asarray(case["lp_proximal"]),
  )


def value_and_grad(objective, inputs):
  def loss(policy_logprobs):
    return objective(inputs._replace(policy_logprobs=policy_logprobs))[0]

  return jax.value_and_grad(loss)(inputs.policy_logprobs)


def test_all_golden_configurations_were_found():
  assert len(FIXTURES) == len(ROWS) * len(CASES)


@pytest.mark.parametrize("row", FIXTURES, ids=lambda r: f"{r['case']}-{r['name']}")
def test_golden_value_and_gradient(row):
  name, overrides = ROWS[row["name"]]
  with jax.enable_x64(True):
    inputs = golden_inputs(CASES[row["case"]])
    loss, gradient = value_and_grad(losses.objective(name, **overrides), inputs)
  np.testing.assert_allclose(loss, row["loss"], rtol=1e-9, atol=1e-12)
  expected = np.array(row["grad"])
  np.testing.assert_allclose(gradient, expected, atol=1e-9 * np.abs(expected).max() + 1e-15)


@pytest.mark.parametrize("row", FIXTURES, ids=lambda r: f"{r['case']}-{r['name']}")
def test_golden_in_float32(row):
  name, overrides = ROWS[row["name"]]
  loss, gradient = value_and_grad(
    losses.objective(name, **overrides), golden_inputs(CASES[row["case"]])
  )
  # Canonical scaling divides the residual by beta = 1e-3, and its rounding with it.
  tolerance = 1e-3 if row["name"] == "oapl_1_1e-3_canonical" else 2e-5
  expected = np.array(row["grad"])
  scale = max(abs(row["loss"]), np.abs(expected).max())
  np.testing.assert_allclose(loss, row["loss"], atol=tolerance * scale)
  np.testing.assert_allclose(gradient, expected, atol=tolerance * np.abs(expected).max() + 1e-12)


def random_inputs(seed: int) -> losses.LossInputs:
  """12 rows in groups of 5, 4 and 3, unordered; row 7 is empty; masked values are garbage."""
  rng = np.random.default_rng(seed)
  mask = np.arange(6) < rng.integers(1, 7, (12, 1))
  mask[7] = False
  sampler = np.where(mask, -rng.exponential(1, (12, 6)), 99.0)
  policy = np.where(mask, np.minimum(sampler + 0.3 * rng.normal(size=(12, 6)), -1e-3), -77.0)
  reference = np.where(mask, -rng.exponential(1, (12, 6)), 55.0)
  groups = rng.permutation([0] * 5 + [1] * 4 + [2] * 3)
  return losses.LossInputs(policy, sampler, mask, rng.normal(size=12), groups, reference)


def numpy_sequence_log_ratio(x, n):
  """u_n = sum over the row's completion tokens of log pi - log mu."""
  return sum(
    x.policy_logprobs[n, t] - x.sampler_logprobs[n, t] for t in range(6) if x.loss_mask[n, t]
  )


def numpy_group(x, n):
  return [x.rewards[i] for i in range(12) if x.group_ids[i] == x.group_ids[n]]


def numpy_beta_shift(x, beta, kappa):
  """mean (beta u - (r - mean r + kappa beta))^2 / (2 beta); d/d lp_nt = (beta u - A) / rows."""
  rows = [n for n in range(12) if x.loss_mask[n].any()]
  loss, gradient = 0.0, np.zeros((12, 6))
  for n in rows:
    target = x.rewards[n] - np.mean(numpy_group(x, n)) + kappa * beta
    residual = beta * numpy_sequence_log_ratio(x, n) - target
    loss += residual**2 / (2 * beta) / len(rows)
    gradient[n] = np.where(x.loss_mask[n], residual / len(rows), 0)
  return loss, gradient


def numpy_oapl(x, beta, beta1):
  """mean (beta u - A)^2, A = r - beta1 log mean e^(r/beta1); d lp: 2 beta (beta u - A) / rows."""
  rows = [n for n in range(12) if x.loss_mask[n].any()]
  loss, gradient = 0.0, np.zeros((12, 6))
  for n in rows:
    value = beta1 * np.log(np.mean([np.exp(r / beta1) for r in numpy_group(x, n)]))
    residual = beta * numpy_sequence_log_ratio(x, n) - (x.rewards[n] - value)
    loss += residual**2 / len(rows)
    gradient[n] = np.where(x.loss_mask[n], 2 * beta * residual / len(rows), 0)
  return loss, gradient


def numpy_grpo(x, low, high, eps=1e-4):
  """-min(rA, clip(r)A), mean over each row's tokens, then over rows.

  Gradient: -A r / (rows |y|) where the unclipped branch is the smaller one or the ratio is inside
  the band, else 0.
  """
  rows = [n for n in range(12) if x.loss_mask[n].any()]
  loss, gradient = 0.0, np.zeros((12, 6))
  for n in rows:
    group = numpy_group(x, n)
    advantage = (x.rewards[n] - np.mean(group)) / (np.std(group, ddof=1) + eps)
    length = x.loss_mask[n].sum()
    for t in range(6):
      if not x.loss_mask[n, t]:
        continue
      ratio = np.exp(x.policy_logprobs[n, t] - x.sampler_logprobs[n, t])
      clipped = min(max(ratio, 1 - low), 1 + high)
      loss -= min(ratio * advantage, clipped * advantage) / length / len(rows)
      if ratio * advantage < clipped * advantage or 1 - low <= ratio <= 1 + high:
        gradient[n, t] = -advantage * ratio / length / len(rows)
  return loss, gradient


NUMPY = {
  "beta_shift": (numpy_beta_shift, {"beta": 0.2, "kappa": 0.7}),
  "oapl": (numpy_oapl, {"beta": 0.05, "beta1": 0.8}),
  "grpo": (
    lambda x, clip_low, clip_high: numpy_grpo(x, clip_low, clip_high),
    {"clip_low": 0.1, "clip_high": 0.25},
  ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_value_and_gradient_match_slow_numpy(name, seed):
  reference, choices = NUMPY[name]
  x = random_inputs(seed)
  expected_loss, expected_gradient = reference(x, **choices)
  with jax.enable_x64(True):
    inputs = losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in x))
    loss, gradient = value_and_grad(losses.objective(name, **choices), inputs)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-10)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_jit_and_vmap_change_nothing(name):
  inputs = [
    losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in random_inputs(s)))
    for s in (0, 1)
  ]
  objective = losses.objective(name)
  plain = [objective(x) for x in inputs]
  stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *inputs)
  loss, metrics = jax.jit(jax.vmap(objective))(stacked)
  for i, (one_loss, one_metrics) in enumerate(plain):
    np.testing.assert_allclose(loss[i], one_loss, rtol=1e-5)
    for key, value in one_metrics.items():
      np.testing.assert_allclose(metrics[key][i], value, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_gradients_of_row_slices_add_up_to_the_whole(name):
  with jax.enable_x64(True):
    x = losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in random_inputs(4)))
    objective = losses.objective(name, kl_coef=0.3)
    prepared = objective.prepare(x.rewards, x.group_ids, x.loss_mask)

    def share(rows, logprobs):
      part, part_prepared = jax.tree.map(lambda v: v[rows], (x, prepared))
      return objective.loss(part._replace(policy_logprobs=logprobs[rows]), part_prepared)

    gradient = jax.grad(functools.partial(share, slice(None)))(x.policy_logprobs)
    parts = [slice(0, 5), slice(5, 6), slice(6, 12)]
    summed = sum(jax.grad(functools.partial(share, rows))(x.policy_logprobs) for rows in parts)
  np.testing.assert_allclose(summed, gradient, rtol=1e-12, atol=1e-15)


def test_the_regularizer_alone_is_kappa_beta_times_forward_kl():
  """Its gradient in the log-ratios is -kappa beta w: that of kappa beta KL(mu || pi)."""
  u = jnp.array([0.5, -1.0, 2.0, 0.0])
  weights = jnp.array([0.25, 0.25, 0.5, 0.0])
  gradient = jax.grad(pessimism.pessimistic_regularizer)(
    u, jnp.zeros(4), weights, beta=0.2, kappa=3.0
  )
  np.testing.assert_allclose(gradient, -3.0 * 0.2 * weights, rtol=1e-6)


def test_regression_plus_regularizer_is_the_shifted_regression():
  x = random_inputs(5)
  with jax.enable_x64(True):
    inputs = losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in x))
    mean = losses.objective("beta_shift", beta=0.3, kappa=0.0)
    prepared = mean.prepare(inputs.rewards, inputs.group_ids, inputs.loss_mask)
    u = jnp.array([numpy_sequence_log_ratio(x, n) for n in range(12)])
    extra = pessimism.pessimistic_regularizer(
      u, prepared.advantages, prepared.row_weights, beta=0.3, kappa=1.5
    )
    total = mean(inputs)[0] + extra
  np.testing.assert_allclose(total, numpy_beta_shift(x, 0.3, 1.5)[0], rtol=1e-10)


def test_on_a_table_the_shift_pulls_the_policy_towards_the_sampler():
  """Gradient descent over all arms: a larger kappa ends closer to mu, at a smaller reward."""
  rng = np.random.default_rng(0)
  sampler = jax.nn.log_softmax(jnp.asarray(rng.normal(size=6), jnp.float32))
  rewards = jnp.array([1.0, 0, 0, 1.0, 0, 0])
  baseline = jnp.sum(jnp.exp(sampler) * rewards)

  def solve(kappa):
    def loss(logits):
      u = jax.nn.log_softmax(logits) - sampler
      weights = jnp.exp(sampler)
      value = jnp.sum(weights * (0.5 * u - (rewards - baseline)) ** 2) / (2 * 0.5)
      return value + pessimism.pessimistic_regularizer(
        u, rewards - baseline, weights, beta=0.5, kappa=kappa
      )

    logits = jax.lax.fori_loop(0, 3000, lambda _, z: z - 0.5 * jax.grad(loss)(z), sampler)
    log_pi = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(sampler) * (sampler - log_pi)), jnp.sum(jnp.exp(log_pi) * rewards)

  divergence, reward = np.array([solve(kappa) for kappa in (0.0, 1.0, 3.0)]).T
  assert np.all(np.diff(divergence) < 0), divergence
  assert np.all(np.diff(reward) < 0), reward
  assert reward[-1] > baseline


def test_missing_logprobs_are_an_error_not_zeros():
  x = random_inputs(0)._replace(reference_logprobs=None)
  with pytest.raises(ValueError, match="reference_logprobs: got None"):
    losses.objective("beta_shift", kl_coef=0.1)(
      losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in x))
    )


def test_kl_estimators_match_their_formulas():
  x = random_inputs(6)
  gap = (x.policy_logprobs - x.reference_logprobs)[x.loss_mask]
  tokens = 1 / x.loss_mask.any(-1).sum()
  expected = {"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) + gap - 1}
  for name, values in expected.items():
    inputs = losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in x))
    with_kl = losses.objective("beta_shift", kl_coef=2.0, kl=name)(inputs)[0]
    without = losses.objective("beta_shift")(inputs)[0]
    np.testing.assert_allclose(with_kl - without, 2.0 * values.sum() * tokens, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_every_preset_names_its_paper(name):
  assert "arXiv" in losses.PRESETS[name].source


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="objective.name: 'ppo', expected one of"):
    losses.objective("ppo")
  with pytest.raises(ValueError, match="unknown choice 'gamma'"):
    losses.objective("grpo", gamma=0.9)
