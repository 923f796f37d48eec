"""Training a tokenizer on a corpus, and choosing its vocabulary size."""

import itertools
import math
from collections.abc import Iterable

from llmcli.config import MAX_DEFAULT_VOCAB_SIZE, MIN_DEFAULT_VOCAB_SIZE
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer

TRAINING_BYTES = 16_000_000  # maximum training text for a tokenizer; longer text is sampled evenly
BYTES_PER_TOKEN_TYPE = 1000  # bytes of text per vocabulary entry, so that each occurs often enough to learn


def train_tokenizer(
    corpus: Corpus,
    vocab_size: int | None = None,
    *,
    max_vocab_size: int = MAX_DEFAULT_VOCAB_SIZE,
    characters: bool = False,
    contents: Iterable[str] = (),
    other_bytes: int = 0,
) -> tuple[Tokenizer, str]:
    """Return (tokenizer trained on at most TRAINING_BYTES of a corpus and on `contents`, reason for its
    vocabulary size).

    By default, the vocabulary size grows with the text, up to `max_vocab_size`. With `characters`, each
    character is a token. `other_bytes` is the size of `contents` and of training text that is not read.
    Raises LLMError if `vocab_size` is too small.
    """
    sample = corpus.sample(TRAINING_BYTES)
    text = itertools.chain((piece for part in sample.texts() for piece in part), contents)
    train_bytes = corpus.text_bytes + other_bytes
    if characters:
        return Tokenizer.train_char(text, vocab_size), "one token per character, as requested"
    by_text = nearest_power_of_two(
        train_bytes / BYTES_PER_TOKEN_TYPE, MIN_DEFAULT_VOCAB_SIZE, MAX_DEFAULT_VOCAB_SIZE
    )
    target = vocab_size or min(by_text, max_vocab_size)
    tokenizer = Tokenizer.train_bpe(text, target)
    if tokenizer.vocab_size < target:
        return tokenizer, "no more pairs to merge in the corpus"
    if vocab_size:
        return tokenizer, "as requested"
    if target == MIN_DEFAULT_VOCAB_SIZE >= train_bytes / BYTES_PER_TOKEN_TYPE:
        return tokenizer, "smallest default size: the corpus is short"
    if by_text <= max_vocab_size:
        return tokenizer, f"about one token per {BYTES_PER_TOKEN_TYPE:,} bytes of text"
    return tokenizer, "limited by the time budget"


def nearest_power_of_two(value: float, low: int, high: int) -> int:
    """Return the power of two nearest to a value on a log scale, after clipping it to [low, high]."""
    return int(2 ** round(math.log2(min(max(value, low), high))))
