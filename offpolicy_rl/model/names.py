"""Names that a configuration and the model share; the only file that names mesh axes. No JAX."""

import math
from collections.abc import Mapping

DATA, FSDP, TENSOR, EXPERT = AXES = ("data", "fsdp", "tensor", "expert")

# Logical axis of an array -> the mesh axes that it is split over. Others are replicated.
RULES = {
  "batch": (DATA, FSDP, EXPERT),
  "embed": FSDP,
  "vocab": TENSOR,
  "heads": TENSOR,
  "kv_heads": TENSOR,
  "mlp": TENSOR,
  "expert": EXPERT,
}

# Matrices of a block that can have an adapter -> how many of their leading axes are inputs.
LORA_INPUT_AXES = {"w_q": 1, "w_k": 1, "w_v": 1, "w_o": 2, "w_gate": 1, "w_up": 1, "w_down": 1}

# learner.remat -> the name in jax.checkpoint_policies of what the backward pass keeps.
REMAT = {"none": None, "dots": "dots_with_no_batch_dims_saveable", "full": "nothing_saveable"}


def batch_shards(mesh: Mapping[str, int]) -> int:
  """Number of parts that the rows of a batch are split into; `mesh`: axis -> size."""
  return math.prod(mesh[axis] for axis in RULES["batch"])
