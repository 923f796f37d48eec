"""Training text and held-out text as files: tokens for Megatron-LM and nanoGPT, text as Parquet.

NAME.bin contains only little-endian token ids, so that nanoGPT can also read it. Megatron-LM's NAME.idx lists
the sequences in it. The ids are in the order in which `llm train` reads them: a start token precedes the
first document, an end-of-text token precedes each later document. A long document is cut into several
sequences.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmcli.data.text.corpus import Corpus
from llmcli.data.text.parquet_records import write_parquet
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.corpus_tokens import divide
from llmcli.data.tokens.tokens import encode_texts, token_type
from llmcli.formats import atomic_io
from llmcli.formats.metadata import Json

MAGIC = b"MMIDIDX\0\0"
TYPE_CODES = {"<u2": 8, "<u4": 4}  # Megatron-LM's codes for uint16, and for int32: ids are below 2**31
COLUMNS = ("text", "name", "sha256")  # columns of the Parquet file; sha256 is the hash of the whole document


def write_split(
    corpus: Corpus, names: Mapping[str, str], tokenizer: Tokenizer, tokens: Path, parquet: Path
) -> dict[str, Json]:
    """Write a split: `tokens` with the suffixes .bin and .idx, and `parquet`. `names` maps the sha256 of
    documents to their names. Returns the size and the hash of the part of each document that belongs to the
    split, by sha256 of the document. Raises LLMError if the disk is full, or if pyarrow is not installed."""
    dtype = token_type(tokenizer)
    written: dict[str, Json] = {}
    hashes: dict[str, Any] = {}
    lengths = list[int]()
    starts = list[int]()

    def rows(file: Any) -> Iterator[tuple[str, ...]]:
        """Yield the rows of the Parquet file, and write the tokens of each to a file."""
        for piece, continued in divide(corpus.contents, tokenizer):
            sha256 = piece.document.sha256
            text = "".join(piece.text())
            ids = list(encode_texts([([text], continued)], tokenizer))
            if not continued:
                first = tokenizer.eos_id if starts else tokenizer.bos_id
                ids.insert(0, np.array([first], dtype).tobytes())
                starts.append(len(lengths))
            file.writelines(ids)
            lengths.append(sum(map(len, ids)) // np.dtype(dtype).itemsize)
            data = text.encode("utf-8")
            content_hash = hashes.setdefault(sha256, hashlib.sha256())  # a document may have several pieces
            content_hash.update(data)
            part = written.setdefault(sha256, {"bytes": 0, "sha256": "", "tokens": 0})
            part["bytes"] += len(data)
            part["sha256"] = content_hash.hexdigest()
            part["tokens"] += lengths[-1]
            yield text, names[sha256], sha256

    def write_tokens(path: Path) -> None:
        with open(path, "wb") as file:
            atomic_io.write_with(parquet, lambda table: write_parquet(table, COLUMNS, rows(file)))

    atomic_io.write_with(tokens.with_suffix(".bin"), write_tokens)
    atomic_io.write(tokens.with_suffix(".idx"), index(lengths, starts, dtype))
    return written


def index(lengths: Sequence[int], starts: Sequence[int], dtype: str) -> bytes:
    """Return Megatron-LM's index of sequences of these lengths; `starts` are the indices of sequences that
    begin a document."""
    sizes = np.array(lengths, "<i4")
    positions = (np.cumsum(sizes, dtype="<i8") - sizes) * np.dtype(dtype).itemsize
    documents = np.array([*starts, len(lengths)], "<i8")
    header = struct.pack("<9sQBQQ", MAGIC, 1, TYPE_CODES[dtype], len(sizes), len(documents))
    return header + sizes.tobytes() + positions.astype("<i8").tobytes() + documents.tobytes()
