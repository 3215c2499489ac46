"""Two objectives at two lags: what a sweep looks like, in a minute.

Command:  offpolicy-rl sweep --config=configs/test.py --sweep=configs/sweeps/tiny.py --parallel=2
"""

from offpolicy_rl import sweep


def get_sweep():
  """2 x 2 x 1 runs."""
  return sweep.grid({"objective.name": ["beta_shift", "grpo"], "lag.max_lag": [0, 4], "seed": [0]})
