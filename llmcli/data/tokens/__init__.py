"""Tokens on disk, and training batches."""
