"""The policy: Flax decoder, KV cache, log-probabilities, sharding."""
