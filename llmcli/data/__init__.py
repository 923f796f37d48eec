"""Bytes on disk to text, text to tokens, tokens to batches. Reading order: sources.py, files.py, text/ or conversations/."""
