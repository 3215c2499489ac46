"""Runs Python programs that nobody has read, apart from everything else."""
