"""The prompt: problems, vocabulary and verifiers (no TensorFlow), and their seqio tasks (with it)."""
