"""Llama-3.2-1B-Instruct learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/llama-3.2-1b-instruct
  offpolicy-rl learner --config=configs/gsm8k_llama3_2_1b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of meta-llama/Llama-3.2-1B-Instruct.
1.2 B parameters, llama3 rope scaling.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  return gsm8k.get_config("llama-3.2-1b-instruct")
