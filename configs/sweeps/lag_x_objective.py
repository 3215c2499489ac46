r"""Objectives with and without importance ratios on a language model, at growing lag.

Command:  offpolicy-rl sweep --config=benchmarks/language_task.py --parallel=2 \
            --sweep=configs/sweeps/lag_x_objective.py \
            --series=objective.name,objective.clip_high,objective.kappa
Time:     not run as a whole: 80 runs, each with a warm start of 1,500 and 1,000 steps, take hours;
          one of each objective was run with --config.learner.steps=4 --config.warm_start.steps=4
Reached:  the picture against lag of the study whose settings these are, "A language model under
          lag" in benchmarks/README.md; it trains in one process, with the same bits
"""

from benchmarks import lag_language
from benchmarks.lag_language_entries import BY_LABEL, SHOWN


def get_sweep():
  """5 objectives, each with what tuning chose for the lag, x 4 lags x 4 seeds = 80 runs."""
  study = lag_language.Study()
  rows = lag_language.read_rows(lag_language.ROWS, study)
  return [
    lag_language.settings(lag_language.Job(label, *point, lag, seed))
    for label in SHOWN
    for lag in lag_language.TUNED_AT
    if (point := lag_language.chosen(rows, BY_LABEL[label], lag, study))
    for seed in study.secondary_seeds
  ]
