"""Qwen3-1.7B learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/qwen3-1.7b
  offpolicy-rl learner --config=configs/gsm8k_qwen3_1_7b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of Qwen/Qwen3-1.7B.
1.7 B parameters, tied embeddings.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  c = gsm8k.get_config("qwen3-1.7b")
  c.mesh.fsdp = 16
  return c
