"""Gemma-3-1B learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/gemma-3-1b-it
  offpolicy-rl learner --config=configs/gsm8k_gemma3_1b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of google/gemma-3-1b-it.
1.0 B parameters; five of six layers attend to 512 tokens only. There is one key/value head, so
mesh.tensor stays 1.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model."""
  return gsm8k.get_config("gemma-3-1b-it")
