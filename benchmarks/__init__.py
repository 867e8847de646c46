"""Speed and memory, each one command that prints a table; docs/speed.md holds what they said."""
