"""Tokenizers: reading, training, encoding, decoding."""
