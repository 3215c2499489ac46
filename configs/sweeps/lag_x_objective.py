r"""Objectives with and without importance ratios at growing lag.

Command:  offpolicy-rl sweep --config=configs/test.py --sweep=configs/sweeps/lag_x_objective.py \
            --parallel=2 --config.learner.steps=200 --config.learner.prompts_per_step=16 \
            --config.learner.group_size=8 --config.learner.learning_rate=2e-3 \
            --config.sampler.slots=128 --config.warm_start.stop_loss=0.7 \
            --config.evaluation.samples=32
Time:     0:55 to 1:09 for each of the first eight, two at a time on 2 cores of AMD EPYC; up to
          8:33 for the others, beside much other work; interrupted once and resumed
Reached:  nothing that tells the objectives apart in accuracy: held-out pass@1 0.08 to 0.16, every
          95 % interval over three seeds wider than the gaps. That card has 92 sums to train on and
          8 held out; take one with more, such as configs/demo.py, to learn about accuracy.
          Entropy, nats per token, mean of the last 20 steps ± half of the 95 % interval:

          lag             0              16             64
          beta_shift      0.21 ± 0.11    1.02 ± 0.36    0.63 ± 0.09
          grpo            0.23 ± 0.08    0.38 ± 0.11    0.45 ± 0.10
          tis             0.23 ± 0.13    0.26 ± 0.14    0.23 ± 0.16
"""

from offpolicy_rl import sweep


def get_sweep():
  """3 objectives x 3 lags x 3 seeds = 27 runs."""
  objectives = [{"objective.name": name} for name in ("beta_shift", "grpo", "tis")]
  # Mode fixed: every group is exactly so many versions behind, so that nothing else differs.
  lags = sweep.grid({"lag.mode": ["fixed"], "lag.max_lag": [0, 16, 64]})
  return sweep.product(objectives, lags, sweep.seeds(3))
