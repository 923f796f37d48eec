"""The plan of a run: decisions and their reasons."""
