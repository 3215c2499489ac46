"""GSM8K with a published model: the part that the cards of all families share. No card by itself.

These cards have not been run at full size, for want of an accelerator. tests/cards_test.py runs
them with small random models of their families, from import to export.
"""

from configs import base


def get_config(checkpoint: str):
  """A learner on four chips unless the card says more; samplers are separate machines."""
  c = base.get_config()
  c.model.checkpoint = f"checkpoints/{checkpoint}"  # offpolicy-rl import --to=
  c.model.compute_dtype = "bfloat16"
  c.mesh.fsdp = 4

  c.task.name = "gsm8k"  # from GSM8K_DIR or task.data_dir, else from the directory of TFDS
  c.task.prompt = (
    '{question}\nReason step by step and end with "#### " and the answer as a plain number.'
  )
  c.task.max_prompt_tokens = 384
  c.task.max_completion_tokens = 1024
  c.task.verifier_processes = 4

  c.objective.name = "beta_shift"
  c.objective.beta = 0.1  # tuned on a small language model under lag (benchmarks/), not here
  c.objective.kappa = 1.0

  c.lag.max_lag = 8
  c.learner.steps = 300
  c.learner.learning_rate = 1e-6
  c.learner.warmup_steps = 10
  c.learner.prompts_per_step = 64
  c.learner.group_size = 8
  c.learner.microbatches = 16
  c.learner.layout = "packed"  # its rows have a fused kernel on TPU
  c.learner.row_tokens = 4096
  c.learner.buckets = 8
  c.learner.logprob_chunk = 256
  c.learner.remat = "full"
  c.learner.max_refills = 64  # groups with equal rewards are replaced
  c.sampler.slots = 64
  c.evaluation.problems = 256
  c.evaluation.samples = 4
  c.evaluation.every = 25
  c.checkpoint.every = 25
  c.transport.weights_dtype = "bfloat16"  # what samplers compute in anyway
  c.transport.lease_seconds = 120.0
  return c
