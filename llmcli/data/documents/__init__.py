"""Documents as text: one module per format, which runs in a child process with limits."""
