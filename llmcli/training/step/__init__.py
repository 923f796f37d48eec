"""One training step and its parts."""
