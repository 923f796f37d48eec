"""Tokenization of texts into a memory-mapped temporary file."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from llmcli.data.text.temporary_files import temporary_file_errors
from llmcli.data.tokenizers.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 20  # tokens per block

TokenIds = NDArray[np.unsignedinteger]


def token_type(tokenizer: Tokenizer) -> str:
    """Return the dtype of stored token ids: little-endian uint16 for a vocabulary of up to 65,536, otherwise
    uint32."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def encode_texts(
    texts: Iterable[tuple[Iterable[str], bool]], tokenizer: Tokenizer, *, is_first: bool = True
) -> Iterator[bytes]:
    """Yield the ids of texts as bytes in `token_type`, separated by end-of-text tokens. Each text comes with
    whether it is the rest of a text that was cut at `first_cut`; `is_first`: no other text precedes them."""
    dtype = token_type(tokenizer)
    for text, continued in texts:
        needs_end = not (is_first or continued)
        for ids in tokenizer.encode_stream(text, continued=continued):
            if needs_end:
                yield np.array([tokenizer.eos_id], dtype).tobytes()
                needs_end = False
            yield np.asarray(ids).astype(dtype).tobytes()
            is_first = False


def tokenize(texts: Iterator[Iterator[str]], tokenizer: Tokenizer) -> TokenIds:
    """Tokenize texts [T] into a memory-mapped temporary file. Raises LLMError if the disk is full."""
    return store_tokens(encode_texts(((text, False) for text in texts), tokenizer), tokenizer)


def store_tokens(blocks: Iterable[bytes], tokenizer: Tokenizer) -> TokenIds:
    """Store blocks of ids in a memory-mapped temporary file. Raises LLMError if the disk is full."""
    dtype = np.dtype(token_type(tokenizer))
    with temporary_file_errors("the tokens"):
        file = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (the mapping needs it open)
        size = sum(map(file.write, blocks))
        file.flush()
        return (
            np.memmap(file, dtype, mode="r", shape=(size // dtype.itemsize,)) if size else np.zeros(0, dtype)
        )


def count_bytes(ids: NDArray[np.integer], byte_lengths: NDArray[np.int64]) -> int:
    """Return the total number of bytes of token ids; `byte_lengths[i]` is the length of token i."""
    return sum(int(byte_lengths[block].sum()) for block in blocks(ids))


def used_tokens(ids: NDArray[np.integer], vocab_size: int) -> NDArray[np.intp]:
    is_used = np.zeros(vocab_size, bool)
    for block in blocks(ids):
        is_used[block] = True
    return np.flatnonzero(is_used)


def blocks(ids: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    """Yield ids, which may be a memory-mapped file, in blocks of bounded size."""
    return (ids[first : first + BLOCK_TOKENS] for first in range(0, len(ids), BLOCK_TOKENS))
