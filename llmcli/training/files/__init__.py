"""Output files of a run, resuming, and the summary."""
