"""The language model itself and the runtimes that execute it."""
