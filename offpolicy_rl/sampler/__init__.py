"""The trajectory: generation engine, the worker that answers tickets, evaluation."""
