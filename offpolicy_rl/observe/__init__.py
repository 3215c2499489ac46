"""What a run shows of itself: metrics, the terminal, a live view, Prometheus, profiles."""
