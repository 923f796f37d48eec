"""The engine: continuous batching, prefix caching, log probabilities."""
