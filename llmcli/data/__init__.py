"""Bytes on disk to text, text to tokens, tokens to batches."""
