"""Text from a model: sampling, next words, the steps of one token."""
