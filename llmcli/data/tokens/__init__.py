"""Tokens on disk, the token cache, and training batches."""
