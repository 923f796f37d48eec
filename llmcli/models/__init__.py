"""The language model and the runtimes that execute it."""
