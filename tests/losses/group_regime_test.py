"""Finite groups: exact sums against enumeration, known figures, and warnings that can be obeyed."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import advantages, group_regime, induced_target

CHOICES = {
  "mean": lambda r, g: advantages.mean(r, g),
  "loo": lambda r, g: advantages.leave_one_out(r, g),
  "std": lambda r, g: advantages.std(r, g),
  "vhat": lambda r, g: advantages.vhat(r, g, beta1=0.3),
  "vhat_loo": lambda r, g: advantages.vhat_leave_one_out(r, g, beta1=0.3),
}


@pytest.mark.parametrize("baseline", group_regime.BASELINES)
def test_the_sums_are_what_all_possible_groups_give(baseline):
  """Every group of 4 rewards, through the advantages that training uses, weighted by its chance."""
  p, total, chance = 0.3, np.zeros(2), np.zeros(2)
  group = jnp.zeros(4, int)
  with jax.enable_x64(True):
    advantage = jax.jit(lambda rewards: CHOICES[baseline](rewards, group))
    for rewards in itertools.product((0, 1), repeat=4):
      weight = p ** sum(rewards) * (1 - p) ** (4 - sum(rewards))
      found = advantage(jnp.array(rewards, float))
      total[rewards[0]] += weight * found[0]
      chance[rewards[0]] += weight
  found = group_regime.effective_advantage(baseline, p, 4, beta=0.2, beta1=0.3, kappa=0.5, dv=-0.07)
  np.testing.assert_allclose(found, total / chance + 0.5 * 0.2 - 0.07, rtol=1e-10)


def statistics(baseline, p, sizes, **choices):
  return [group_regime.group_regime_statistic(baseline, p, size, **choices) for size in sizes]


def test_a_coupled_value_is_in_the_negative_regime_and_its_leave_one_out_is_not():
  sizes = (4, 8, 64)
  np.testing.assert_allclose(
    statistics("vhat", 0.1, sizes, beta=0.1), [-0.88, -0.63, -0.07], atol=0.006
  )
  np.testing.assert_allclose(
    statistics("vhat", 0.5, sizes, beta=0.1), [-0.15, -0.07, -0.01], atol=0.006
  )
  np.testing.assert_allclose(
    statistics("vhat_loo", 0.1, (4, 8, 16, 64), beta=0.1), [5.3, 3.4, 1.5, 0.09], atol=0.05
  )
  assert abs(statistics("vhat", 0.3, [4000], beta=1.0)[0]) < 1e-3, "the boundary at G -> inf"


def test_a_larger_temperature_of_the_value_leaves_the_negative_regime():
  needed = [group_regime.required_beta1(g, beta=0.1, rates=(0.1,)) / 0.1 for g in (4, 8, 16, 64)]
  np.testing.assert_allclose(needed, [1.85, 1.39, 1.17, 1.03], atol=0.005)
  for factor, sign in ((0.999, -1), (1.001, 1)):
    found = statistics("vhat", 0.1, [8], beta=0.1, beta1=factor * 0.1 * needed[1])
    assert np.sign(found[0]) == sign
  assert group_regime.required_beta1(8, beta=1.0, kappa=-1.0) is None


def two_answers(baseline, p, size, **choices) -> induced_target.InducedTarget:
  table = np.array(group_regime.effective_advantage(baseline, p, size, **choices))
  with jax.enable_x64(True):
    return induced_target.solve(table, choices["beta"], np.array([1 - p, p]))


def start(baseline: str, p: float, **choices) -> float:
  """lam where training starts, pi = mu: E A_eff."""
  failure, success = group_regime.effective_advantage(baseline, p, 8, **choices)
  return (1 - p) * failure + p * success


def test_oapl_starts_with_a_negative_lam_and_ends_with_a_positive_one():
  starts, ends = [], []
  for beta1 in (1.0, 0.5):
    for p in (0.1, 0.5, 0.9):
      choices = {"beta": 1e-3, "beta1": beta1}
      starts.append(start("vhat", p, **choices))
      ends.append(float(two_answers("vhat", p, 8, **choices).lam))
  np.testing.assert_allclose(starts[:3], [-0.047, -0.106, -0.032], atol=6e-4)
  np.testing.assert_allclose(starts[3:], [-0.107, -0.196, -0.052], atol=6e-4)
  np.testing.assert_allclose(ends[:3], [0.069, 0.167, 0.053], atol=6e-4)


@pytest.mark.parametrize("baseline", ["mean", "loo", "std"])
def test_centred_advantages_start_at_the_shift(baseline):
  for p in (0.1, 0.5, 0.9):
    found = start(baseline, p, beta=0.2, kappa=1.5, dv=0.01)
    np.testing.assert_allclose(found, 0.31, atol=1e-12)


def test_dividing_by_the_deviation_makes_the_reward_scale_depend_on_the_prompt():
  failure, success = group_regime.effective_advantage("std", 0.1, 8, beta=0.1)
  np.testing.assert_allclose([success, failure], [1.96, -0.22], atol=0.005)
  assert np.diff(group_regime.effective_advantage("std", 0.5, 8, beta=0.1)) < 0.8 * (
    success - failure
  )


def test_the_statistic_is_that_of_the_target_of_two_answers():
  for kappa in (-8.0, -1.0, 0.5):
    target = two_answers("mean", 0.2, 8, beta=0.1, kappa=kappa)
    found = group_regime.group_regime_statistic("mean", 0.2, 8, beta=0.1, kappa=kappa)
    np.testing.assert_allclose(target.regime_statistic, found, rtol=1e-12)
    assert target.regime == np.sign(found)


@pytest.mark.parametrize(
  "baseline,choices",
  [
    ("mean", {"beta": 0.1}),
    ("mean", {"beta": 0.1, "kappa": 1.0}),
    ("loo", {"beta": 1.0}),
    ("std", {"beta": 0.5}),
    ("vhat_loo", {"beta": 0.1}),
    ("vhat", {"beta": 1e-3, "beta1": 1.0}),
    ("vhat", {"beta": 0.1, "kappa": 1.0}),
    ("vhat", {"beta": 0.1, "dv": 0.1}),
  ],
)
def test_no_warning_where_the_target_is_pessimistic(baseline, choices):
  assert group_regime.regime_warning(baseline, 8, **choices) is None


def advised(text: str, what: str) -> float:
  return float(text.split(f"raise {what} to at least ")[1].split(",")[0])


@pytest.mark.parametrize("size", [2, 4, 8, 64])
def test_the_warning_about_a_coupled_value_names_choices_that_silence_it(size):
  for beta in (1e-3, 0.1, 2.0):
    choices = {"beta": beta, "beta1": beta}
    text = group_regime.regime_warning("vhat", size, **choices)
    assert f"objective.advantage=vhat, objective.beta={beta:g}" in text
    assert f"objective.beta1={beta:g} at learner.group_size={size}" in text
    enough = advised(text, "objective.beta1")
    assert group_regime.regime_warning("vhat", size, beta=beta, beta1=enough) is None
    assert group_regime.regime_warning("vhat", size, beta=beta, beta1=0.98 * enough) is not None
    assert "use objective.advantage=vhat_loo, or use objective.advantage=mean" in text
    kappa = advised(text, "objective.kappa")
    assert group_regime.regime_warning("vhat", size, kappa=kappa, **choices) is None
    assert group_regime.regime_warning("vhat", size, kappa=0.98 * kappa, **choices) is not None


def test_one_bad_success_rate_is_enough_for_a_warning_and_it_is_named():
  choices = {"beta": 0.1, "beta1": 0.12}
  assert statistics("vhat", 0.5, [8], **choices)[0] > 0
  text = group_regime.regime_warning("vhat", 8, **choices)
  assert "at success rate 0.1, log E e^(A/beta) = -" in text
  alone = [group_regime.required_beta1(8, beta=0.1, rates=(p,)) for p in group_regime.RATES]
  assert group_regime.required_beta1(8, beta=0.1) == max(alone)


def test_the_warning_about_a_negative_shift_names_the_smallest_allowed_one():
  for baseline in ("mean", "loo", "std"):
    text = group_regime.regime_warning(baseline, 8, beta=1.0, kappa=-3.0, dv=-0.2)
    least = advised(text, "objective.kappa")
    assert -1 < least <= 0.2
    choices = {"beta": 1.0, "dv": -0.2}
    assert group_regime.regime_warning(baseline, 8, kappa=least, **choices) is None
    assert group_regime.regime_warning(baseline, 8, kappa=least - 0.01, **choices) is not None
  hopeless = group_regime.regime_warning("vhat", 8, beta=1.0, beta1=1.0, kappa=-1.0)
  assert "objective.beta1 to" not in hopeless and "advantage=vhat_loo" not in hopeless


def test_it_loads_no_jax():
  code = "import sys; import offpolicy_rl.losses.group_regime; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
