"""The command line: flags, then what each command does."""
