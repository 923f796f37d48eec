"""Text to tokens, stored in a memory-mapped temporary file."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.temporary_files import temporary_file_errors

BLOCK_TOKENS = 1 << 20  # tokens per block


class Encoder(Protocol):
    """The methods of a tokenizer that `tokenize` needs."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_stream(self, texts: Iterable[str]) -> "Iterator[array[int]]": ...


def tokenize(texts: Iterator[Iterator[str]], tokenizer: Encoder) -> NDArray[np.unsignedinteger]:
    """The token ids of documents [T], with one end-of-text id between two documents, as a memory-mapped array: uint16
    for up to 65,536 tokens in the vocabulary, else uint32.

    Memory use does not depend on the size of the text. Raises LLMError when the disk is full.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    count = 0
    with temporary_file_errors("the tokens"):
        file = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (the mapping needs it open)
        for text in texts:
            before = count
            for ids in tokenizer.encode_stream(text):
                if count == before > 0:
                    file.write(np.array([tokenizer.eos_id], dtype).tobytes())
                    count += 1
                file.write(np.asarray(ids).astype(dtype).tobytes())
                count += len(ids)
        file.flush()
        return np.memmap(file, dtype=dtype, mode="r", shape=(count,)) if count else np.zeros(0, dtype)


def count_bytes(ids: NDArray[np.integer], byte_lengths: NDArray[np.int64]) -> int:
    """The total number of bytes that token ids stand for; `byte_lengths` are those of each token in the vocabulary."""
    return sum(int(byte_lengths[block].sum()) for block in blocks(ids))


def used_tokens(ids: NDArray[np.integer], vocab_size: int) -> NDArray[np.intp]:
    is_used = np.zeros(vocab_size, bool)
    for block in blocks(ids):
        is_used[block] = True
    return np.flatnonzero(is_used)


def blocks(ids: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    """Ids in blocks of bounded memory: they may be a memory-mapped file."""
    return (ids[first : first + BLOCK_TOKENS] for first in range(0, len(ids), BLOCK_TOKENS))
