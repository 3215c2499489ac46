"""Grids, columns, draws and products of settings."""

import pytest

from offpolicy_rl import sweep
from offpolicy_rl.config import ConfigError


def test_grids_columns_and_products():
  assert sweep.grid({"a": [1, 2], "seed": range(2)}) == [
    {"a": 1, "seed": 0},
    {"a": 1, "seed": 1},
    {"a": 2, "seed": 0},
    {"a": 2, "seed": 1},
  ]
  assert sweep.zipped({"a": [1, 2], "b": ["x", "y"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
  mixed = sweep.product([{"a": 1}, {"a": 2, "b": 3}], sweep.seeds(2))
  assert mixed == [
    {"a": 1, "seed": 0},
    {"a": 1, "seed": 1},
    {"a": 2, "b": 3, "seed": 0},
    {"a": 2, "b": 3, "seed": 1},
  ]


def test_draws_are_repeatable_and_more_of_them_keep_the_first():
  axes = {
    "learner.learning_rate": sweep.log_uniform(1e-4, 1e-2),
    "objective.beta": sweep.uniform(0.2, 0.3),
    "objective.name": sweep.choice("grpo", "tis"),
  }
  found = sweep.draws(200, axes, seed=3)
  assert found[:5] == sweep.draws(5, axes, seed=3) != sweep.draws(5, axes, seed=4)
  alone = sweep.draws(5, {"objective.beta": axes["objective.beta"]}, seed=3)
  assert [row["objective.beta"] for row in alone] == [row["objective.beta"] for row in found[:5]]
  rates = [row["learner.learning_rate"] for row in found]
  assert all(1e-4 <= rate <= 1e-2 and float(f"{rate:.4g}") == rate for rate in rates)
  assert 70 < sum(rate < 1e-3 for rate in rates) < 130  # half of the draws in each decade
  assert all(0.2 <= row["objective.beta"] <= 0.3 for row in found)
  assert 70 < sum(row["objective.name"] == "tis" for row in found) < 130


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sweep.grid({"objective.name": "grpo"}), "objective.name: got 'grpo', expected a list"),
    (lambda: sweep.grid({"seed": 3}), "sweep.grid: seed: got 3, expected a list"),
    (lambda: sweep.zipped({"a": [1], "b": [1, 2]}), "'a': 1, 'b': 2} values, expected as many"),
    (lambda: sweep.product(sweep.seeds(2), sweep.seeds(2)), "seed is in two of the parts"),
    (lambda: sweep.uniform(2, 1), "sweep.uniform: got 2, 1, expected low < high"),
    (lambda: sweep.log_uniform(0, 1), "sweep.log_uniform: got 0, 1, expected 0 < low < high"),
    (lambda: sweep.choice(), "sweep.choice: got no values"),
    (lambda: sweep.draws(2, {"seed": [1, 2]}), r"sweep.draws: seed: got \[1, 2\], expected unif"),
  ],
)
def test_axes_that_make_no_sense_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()
