"""A tiny transformer learns a game of several turns from zero: guess a number by asking.

Command:  offpolicy-rl local --config=configs/demo_turns.py
Time:     2.5 to 3.2 minutes on 2 cores of AMD EPYC
Reached:  held-out pass@1 0.01 to 0.03 before; 0.97, 1.00 and 0.79 after 400 steps, with three
          seeds that it was not tuned on (19 problems)
"""

from configs import base


def get_config():
  """The card."""
  c = base.get_config()
  c.task.name = "offpolicy_rl.environments.guess:guess_the_number"
  c.task.max_prompt_tokens, c.task.max_completion_tokens = 5, 10
  c.environment.name = "offpolicy_rl.environments.guess:GuessTheNumber"
  c.environment.max_turns, c.environment.max_turn_tokens = 5, 1
  c.environment.processes = 1
  c.model.width, c.model.mlp_width = 64, 128
  c.model.num_heads = c.model.num_kv_heads = 4
  c.model.head_dim = 16
  c.learner.prompts_per_step, c.learner.group_size = 16, 16
  c.learner.steps = 400
  c.learner.max_refills = 3  # soon most groups are all right or all wrong, and teach nothing
  c.learner.learning_rate, c.learner.warmup_steps = 7e-4, 10
  c.objective.beta = 0.3  # keeps more entropy than the default of 0.1
  c.lag.max_lag = 6
  c.sampler.slots = 256
  c.sampler.decode_steps = 1
  c.evaluation.every, c.evaluation.problems, c.evaluation.samples = 50, 32, 16
  return c
