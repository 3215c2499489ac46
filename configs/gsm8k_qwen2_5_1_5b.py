"""Qwen2.5-1.5B-Instruct learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/qwen2.5-1.5b-instruct
  offpolicy-rl learner --config=configs/gsm8k_qwen2_5_1_5b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of Qwen/Qwen2.5-1.5B-Instruct.
1.5 B parameters, biases at queries, keys and values.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  return gsm8k.get_config("qwen2.5-1.5b-instruct")
