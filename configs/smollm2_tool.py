"""A real pretrained model, SmolLM2-135M-Instruct, learns to let a calculator do what it can't.

  make checkpoints/smollm2
  offpolicy-rl local --config=configs/smollm2_tool.py --run_dir=runs/smollm2_tool
  offpolicy-rl eval --run_dir=runs/smollm2_tool --k=1,8

Sums and differences of two or three numbers of three or four digits; without a calculator it solves
none of them. One example in the prompt shows a call. Half an hour on 2 cores, with completions up
to four versions old: pass@1 on 256 held-out problems went from 0.27 to 1.00, completions with a
call from 57 % to all (benchmarks/README.md, "What SmolLM2 learned").
"""

from configs import base

_ASKED = "State the final answer to the following arithmetic problem: "


def get_config():
  """Plain text: a call, its result, the answer; each on a line of its own."""
  c = base.get_config()
  c.model.checkpoint = "checkpoints/smollm2"
  c.task.name = "reasoning_gym:chain_sum"
  c.task.options = '{"min_terms": 2, "max_terms": 3, "min_digits": 3, "max_digits": 4}'
  c.task.chat = False
  call = '[calculate(expression="12 + 34")]'
  c.task.prompt = f"{_ASKED}12 + 34 =\n{call}\n46\nAnswer: 46\n\n{{question}}\n"
  c.task.max_prompt_tokens = 88
  c.task.max_completion_tokens = 64
  c.sampler.stop = '["\\n"]'
  c.environment.name = "offpolicy_rl.environments.calculator:PlainCalculator"
  c.environment.max_turns, c.environment.max_turn_tokens = 3, 36
  c.environment.processes = 1
  c.objective.name = "beta_shift"
  c.objective.beta = 0.5
  c.objective.kappa = 0.2
  c.lag.max_lag = 4
  c.learner.steps = 60
  c.learner.learning_rate = 1e-5
  c.learner.warmup_steps = 5
  c.learner.prompts_per_step = 8
  c.learner.group_size = 8
  c.learner.layout = "shared"  # one copy of the prompt per group
  c.learner.microbatches = 2
  c.learner.remat = "dots"
  c.sampler.slots = 64
  c.evaluation.problems = 64
  c.evaluation.samples = 4
  c.evaluation.every = 20
  c.checkpoint.every = 20
  c.checkpoint.keep = 1
  c.transport.max_message_mb = 64
  return c
