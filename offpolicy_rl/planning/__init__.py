"""What a run needs on a pod, found without one."""
