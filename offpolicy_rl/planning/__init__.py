"""Memory, flops and traffic of a run on a TPU pod, without a pod."""
