"""A sweep of a minute: two objectives at two lags.

Command:  offpolicy-rl sweep --config=configs/test.py --sweep=configs/sweeps/tiny.py --parallel=2
Time:     49 seconds on 2 cores of AMD EPYC, shared with other work
Reached:  four runs of 40 steps, a table and a picture; held-out pass@1 0.22 to 0.28 of 8 problems
          says nothing about objectives
"""

from offpolicy_rl import sweep


def get_sweep():
  """2 x 2 runs of one seed."""
  settings = sweep.grid({"objective.name": ["beta_shift", "grpo"], "lag.max_lag": [0, 4]})
  return sweep.product(settings, sweep.seeds(1))
