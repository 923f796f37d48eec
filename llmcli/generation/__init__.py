"""Text generation: the decoding loop, sampling, next words, step-by-step traces, conversations."""
