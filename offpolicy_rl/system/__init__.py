"""The operating system's side: locks, child processes, output, memory, the environment."""
