"""Limits on the size of a vocabulary. Standard library only, so that the command line can use them."""

MIN_VOCAB_SIZE = 261  # the 256 bytes and the 5 control tokens of tokenizer.CONTROL_TOKENS
MAX_VOCAB_SIZE = 1_000_000  # four times the largest published vocabulary
MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE = 512, 8192  # chosen without --vocab-size
