"""One file per question; each prints its answer and writes it to results/."""
