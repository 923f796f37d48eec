"""Text files: opening and decoding them, their records, the corpus, the split into training and held-out
text."""
