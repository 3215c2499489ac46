"""Qwen3-30B-A3B, a mixture of experts, learns GSM8K from lagged trajectories.

  offpolicy-rl import --from=PATH --to=checkpoints/qwen3-30b-a3b
  offpolicy-rl learner --config=configs/gsm8k_qwen3_30b_a3b.py --listen=0.0.0.0:50051 ...
  offpolicy-rl sampler --learner=HOST:50051 ...

PATH: a copy of Qwen/Qwen3-30B-A3B.
30 B parameters, 3 B of them active per token. Adapters on attention; experts are not trained.
"""

from configs import gsm8k


def get_config():
  """configs/gsm8k.py with this model and adapters."""
  c = gsm8k.get_config("qwen3-30b-a3b")
  c.model.lora_rank = 32
  c.model.lora_targets = "w_q,w_k,w_v,w_o"
  c.mesh.fsdp = 16
  c.sampler.tensor = 4  # devices per engine, for 61 GB of weights; 4 key heads
  c.learner.learning_rate = 2e-5
  return c
