"""Many runs from one file: functions for writing sweep files.

    from offpolicy_rl import sweep

    def get_sweep():
      objectives = [
        {"objective.name": "beta_shift", "objective.beta": 0.5},   # keys that belong together
        {"objective.name": "grpo"},
      ]
      lags = sweep.grid({"lag.mode": ["fixed"], "lag.max_lag": [0, 16, 64]})
      return sweep.product(objectives, lags, sweep.seeds(3))       # 2 x 3 x 3 = 18 runs

A sweep is a list of settings; a setting is a dict of keys as in --config.KEY=VALUE. So `a + b` is
one sweep after another, and any Python code that makes such a list works.
"""

from offpolicy_rl.sweep.axes import (
  choice,
  draws,
  grid,
  log_uniform,
  product,
  seeds,
  uniform,
  zipped,
)

__all__ = ["choice", "draws", "grid", "log_uniform", "product", "seeds", "uniform", "zipped"]
