"""Metrics of a run, and what shows them: terminal, live view, Prometheus, profiles."""
