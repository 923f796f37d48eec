"""Limits on the size of a vocabulary. Standard library only, so that the command line can use them."""

MIN_VOCAB_SIZE = 257  # the 256 bytes and the end of text
MAX_VOCAB_SIZE = 1_000_000  # four times the largest published vocabulary
MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE = 512, 8192  # chosen without --vocab-size
