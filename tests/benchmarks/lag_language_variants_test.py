"""The variants between two objectives of the study of lag on a language model."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lag_language, lag_language_variants
from benchmarks.lag_language_entries import VARIANTS
from offpolicy_rl import config as config_lib
from offpolicy_rl.losses import functions


def test_every_variant_is_an_objective_of_its_own():
  from benchmarks import lag_language_run

  study, jobs = lag_language.Study(), lag_language_variants.jobs()
  configs = [lag_language_run.configuration(job, study) for job in jobs]
  made = {
    (config_lib.objective_choices(c), c.learner.learning_rate, c.lag.max_lag, c.seed)
    for c in configs
  }
  assert len(made) == len(jobs) == 4 * len(VARIANTS)
  reported = set(study.seeds)
  assert not reported & {job.seed for job in jobs}


def gradients(clip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(of the gated regression, of the regression, policy over sampler) for the same rows."""
  rng = np.random.default_rng(3)
  lp, la = rng.normal(-1, 0.5, (2, 6, 5))
  advantages, mask = rng.normal(size=6), rng.random((6, 5)) < 0.8
  beta, kappa = 0.3, 1.0

  def gated(lp):
    u = jnp.sum(jnp.where(mask, lp - la, 0.0), -1)
    shifted = advantages + kappa * beta
    return lag_language_variants.gated_regression(
      lp, la, u, shifted, mask, beta=beta, clip_low=clip, clip_high=clip
    ).sum()

  def plain(lp):
    u = jnp.sum(jnp.where(mask, lp - la, 0.0), -1)
    return functions.regression(u, advantages, beta=beta, kappa=kappa).sum()

  ratio = np.where(mask, np.exp(lp - la), 1.0)
  return np.asarray(jax.grad(gated)(lp)), np.asarray(jax.grad(plain)(lp)), ratio


def test_the_gated_regression_is_the_regression_inside_its_band():
  free, plain, _ = gradients(clip=1e9)
  np.testing.assert_allclose(free, plain, rtol=1e-5)
  gated, plain, ratio = gradients(clip=0.3)
  rises = plain < 0  # a step down the gradient raises the log-probability
  left = np.where(rises, ratio > 1.3, ratio < 0.7)
  assert 2 < (left & (plain != 0)).sum() < (plain != 0).sum() - 2
  np.testing.assert_allclose(gated, np.where(left, 0.0, plain), rtol=1e-5)


def test_the_page_has_a_table_for_each_rate():
  final = {"pass@1": 0.5, "pass@64": 0.9, "entropy": 4.0}
  curve = {"pass@1": [0.0, 0.25, 0.75], "log_ratio": [-1.0, -3.0]}
  rows = [
    {**job._asdict(), "final": {**final, "pass@1": 0.001 * i}, "curve": curve, "seconds": 90.0}
    for i, job in enumerate(lag_language_variants.jobs())
  ]
  page = lag_language_variants.page(rows)
  assert page.count("\n| wide |") == 2 and page.count("\n| shifted, gate |") == 2
  assert "| wide | 0.009 (0.000 to 0.018) | 0.500 (0.500 to 0.500) | 0.900" in page
  assert "| -2.000 (-2.000 to -2.000) |" in page
