"""One training step and its parts: optimizers, processes, threads, hardware."""
