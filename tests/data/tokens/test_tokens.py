"""Text to tokens in a memory-mapped temporary file."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from tests.conftest import TEXT
from tests.data.corpora import put, read_corpus

BPE = Tokenizer.train_bpe([TEXT], 280)
CHAR = Tokenizer.train_char([TEXT])


def test_tokens_of_documents_have_one_end_of_text_between_two() -> None:
    for tokenizer in [BPE, CHAR]:
        texts = ["The cat sat.\n", "りんご🍎<|endoftext|>", " ", TEXT]
        corpus = read_corpus([put(f"{i}", text.encode()) for i, text in enumerate(texts)])
        tokens = tokenize(corpus.texts(), tokenizer)
        expected = [tokenizer.encode(text) for text in texts]
        assert tokens.tolist() == [*expected[0], 0, *expected[1], 0, *expected[2], 0, *expected[3]], tokenizer
        assert tokens.dtype == np.uint16, tokenizer
        assert (tokens == tokenizer.eos_id).sum() == len(texts) - 1, tokenizer
        nothing = tokenize(iter([]), tokenizer)
        assert (nothing.shape, nothing.dtype) == ((0,), np.uint16)


class CodePointEncoder:
    """An encoder that gives each character's code point."""

    eos_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode_stream(self, texts: Iterable[str], *, continued: bool = False) -> Iterator[array]:
        for text in texts:
            yield array("I", map(ord, text))


def test_tokens_are_uint16_up_to_a_vocabulary_of_65536() -> None:
    for size, dtype in [(65_536, np.uint16), (65_537, np.uint32)]:
        last = chr(size - 1)
        tokens = tokenize(iter([iter(["a", last]), iter(["b"])]), CodePointEncoder(size))
        assert tokens.dtype == dtype, size
        assert tokens.tolist() == [97, size - 1, 0, 98], size
