"""Off-policy reinforcement learning of LLM reasoning: lagged samplers, pessimistic losses."""

__version__ = "0.1.0"
