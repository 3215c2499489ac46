"""The prompt: problems, vocabulary, verifiers (no TensorFlow), and their seqio tasks (with it)."""
