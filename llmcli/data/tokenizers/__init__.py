"""Tokenizers: training, reading, encoding, decoding."""
