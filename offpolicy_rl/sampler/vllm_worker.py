"""Runs inside vLLM's workers: `--worker-extension-cls offpolicy_rl.sampler.vllm_worker.Worker`.

Imports nothing of this package, so that vLLM's environment needs this one file only.
"""

from typing import Any


class Worker:
  """Mixed into vLLM's own worker class."""

  model_runner: Any  # vLLM's

  def load_again(self) -> None:
    """Reads the weights of the server's model directory again."""
    runner = self.model_runner
    runner.reload_weights()
    # With tied embeddings on CPU the output layer is a packed copy, which a reload does not change.
    head = getattr(runner.model, "lm_head", None)
    method = getattr(head, "quant_method", None)
    if method is not None:
      method.process_weights_after_loading(head)
