"""Training: planning, data, one step, the loop, output files, resuming, the summary."""
