"""The plan of a run: its decisions and their reasons."""
