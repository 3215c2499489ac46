"""Held-out accuracy: evaluation requests, pass@k and majority votes."""
