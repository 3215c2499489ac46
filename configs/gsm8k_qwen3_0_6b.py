"""Qwen3-0.6B learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/qwen3-0.6b
  offpolicy-rl learner --config=configs/gsm8k_qwen3_0_6b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of Qwen/Qwen3-0.6B.
0.6 B parameters, tied embeddings, 151,936 tokens: logits are what memory goes to.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  return gsm8k.get_config("qwen3-0.6b")
