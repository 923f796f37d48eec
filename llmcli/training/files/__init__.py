"""Output files, resuming, and the summary of a run."""
