"""What lag does to objectives with and without importance ratios."""

from offpolicy_rl import sweep


def get_sweep():
  """3 objectives x 3 lags x 3 seeds = 27 runs."""
  objectives = [{"objective.name": name} for name in ("beta_shift", "grpo", "tis")]
  # Exactly so many versions behind: what is compared then differs in nothing else.
  lags = sweep.grid({"lag.mode": ["fixed"], "lag.max_lag": [0, 16, 64]})
  return sweep.product(objectives, lags, sweep.seeds(3))
