"""Qwen3-32B learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/qwen3-32b
  offpolicy-rl learner --config=configs/gsm8k_qwen3_32b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of Qwen/Qwen3-32B.
32 B parameters; state in float32 takes 12 bytes each.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  c = gsm8k.get_config("qwen3-32b")
  c.mesh.fsdp = 64
  c.learner.microbatches = 4
  c.mesh.tensor = 4
  c.sampler.tensor = 8
  c.sampler.page_tokens = 128  # one key head per device: larger pages keep copies long
  return c
