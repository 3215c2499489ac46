"""One-digit sums with a tiny model: seconds per run, needs no package beyond the base install.

Command:  offpolicy-rl local --config=configs/test.py
"""

from configs import base


def get_config():
  """base.py, smaller."""
  c = base.get_config()
  c.task.name = "sums"
  c.task.max_prompt_tokens = 4
  c.task.max_completion_tokens = 3
  c.model.width = 32
  c.model.mlp_width = 64
  c.model.num_heads = 2
  c.model.num_kv_heads = 1
  c.warm_start.steps = 300
  c.warm_start.stop_loss = 0.6
  c.warm_start.rows = 64
  c.warm_start.learning_rate = 1e-2
  c.objective.beta = 0.5
  c.objective.kappa = 0.2
  c.learner.learning_rate = 1e-3
  c.learner.steps = 40
  c.learner.prompts_per_step = 8
  c.learner.group_size = 4
  c.sampler.slots = 16
  c.evaluation.problems = 8
  c.evaluation.samples = 4
  c.evaluation.every = 20
  c.checkpoint.every = 10
  c.transport.heartbeat_seconds = 0.5
  c.transport.lease_seconds = 3.0
  return c
