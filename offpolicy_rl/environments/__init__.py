"""Environments that answer the policy: episodes of several turns."""
