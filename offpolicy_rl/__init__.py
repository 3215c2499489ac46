"""Off-policy reinforcement learning of LLM reasoning: lagged samplers, one learner, pessimistic losses."""

__version__ = "0.1.0"
