"""Tokenization of a corpus, which may be larger than memory, into a memory-mapped file, using all cores.

The tokens of a long text are also stored in the cache, for later runs on the same text with the same
tokenizer.
"""

import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import tokenizers

from llmcli import units
from llmcli.data.text.corpus import DocumentPart
from llmcli.data.text.decoding import Document
from llmcli.data.text.words import SEARCHED_CHARACTERS, grouped
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.token_store import LIMIT_VARIABLE, TokenCache, cache_directory
from llmcli.data.tokens.tokens import TokenIds, encode_texts, store_tokens
from llmcli.errors import OnNote

PIECE_BYTES = 16_000_000  # text that a thread tokenizes at a time
# tokens of a text up to this size are not cached: tokenizing it takes a few seconds
CACHED_BYTES = 64_000_000
CORES_PER_THREAD = 4  # the library has its own threads; ours read text and store tokens
MIN_THREADS = 2
NOTED_BYTES = 16_000_000  # progress is reported only for longer text; this much takes a few seconds
NOTE_SECONDS = 20.0  # minimum between two notes; later, a third of the elapsed time


def divide(parts: Iterable[DocumentPart], tokenizer: Tokenizer) -> Iterator[tuple[DocumentPart, bool]]:
    """Cut `parts`, each a text, into pieces of about PIECE_BYTES. Yields (piece, whether it continues the
    text of the previous one)."""
    for part in parts:
        cut = part.start
        while cut < part.end:
            start = cut
            is_rest = part.end - start <= PIECE_BYTES
            cut = part.end if is_rest else _cut(part.document, start + PIECE_BYTES, part.end, tokenizer)
            yield DocumentPart(part.document, start, cut), start > part.start


def _cut(document: Document, position: int, end: int, tokenizer: Tokenizer) -> int:
    """Find the next byte position at which a text may be cut; the end of a character if there is none
    nearby."""
    start = document.character_end(position)
    text = "".join(document.text(start, min(start + 2 * SEARCHED_CHARACTERS, end)))
    return start + len(text[: tokenizer.first_cut(text) or 0].encode("utf-8"))


def tokenize_corpus(
    parts: Sequence[DocumentPart], tokenizer: Tokenizer, on_note: OnNote = lambda note: None
) -> TokenIds:
    """Tokenize parts of a corpus, separated by end-of-text tokens, or read their tokens from the cache.
    Raises LLMError if there is no disk space."""
    size = sum(part.text_bytes for part in parts)
    directory = cache_directory()
    cache = TokenCache(directory) if directory and size > CACHED_BYTES else None
    if cache is None or not cache.limit():  # turned off
        return _tokenize(parts, tokenizer, size, on_note)
    tokenizer_hash = _tokenizer_hash(tokenizer)
    key = cache_key(parts, tokenizer_hash)
    tokens = cache.read(key)
    if tokens is not None:
        return tokens
    tokens = _tokenize(parts, tokenizer, size, on_note)
    if all(part.document.is_unchanged() for part in parts):
        try:
            names = list(dict.fromkeys(part.document.name for part in parts))
            label = units.listed(names, 1)
            is_stored = cache.write(key, tokens, text=label, tokenizer=tokenizer_hash[:12])
            problem = "" if is_stored else f"is limited to {units.size(cache.limit())} ({LIMIT_VARIABLE})"
        except OSError as error:
            problem = f"cannot be written: {error.strerror or error}"
        if problem:
            on_note(f"the tokens are not kept for the next run: {cache.directory} {problem}")
    return tokens


def cache_key(parts: Iterable[DocumentPart], tokenizer_hash: str) -> str:
    """Hash the text and the tokenizer, since the tokens depend on both."""
    content = [
        2,
        tokenizer_hash,
        PIECE_BYTES,
        [[part.document.sha256, part.start, part.end] for part in parts],
    ]
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:40]


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Hash the properties of a tokenizer on which the tokens of a text depend."""
    return hashlib.sha256(f"{tokenizers.__version__}\n{tokenizer.to_json()}".encode()).hexdigest()


def _tokenize(parts: Iterable[DocumentPart], tokenizer: Tokenizer, size: int, on_note: OnNote) -> TokenIds:
    """Tokenize pieces in several threads, and store their tokens in order in a temporary file."""
    is_stopped = threading.Event()  # another piece failed, or Ctrl-C was pressed

    def encode(pieces: list[tuple[DocumentPart, bool]]) -> tuple[int, bytes]:
        texts = ((piece.text(), continues) for piece, continues in pieces)
        blocks = encode_texts(texts, tokenizer, is_first=pieces is groups[0])
        tokens = b"".join(itertools.takewhile(lambda _: not is_stopped.is_set(), blocks))
        return sum(piece.text_bytes for piece, _ in pieces), tokens

    executor = ThreadPoolExecutor(max(MIN_THREADS, (os.cpu_count() or 1) // CORES_PER_THREAD), "tokenize")
    try:
        # small texts are encoded together
        groups = list(grouped(divide(parts, tokenizer), PIECE_BYTES, lambda piece: piece[0].text_bytes))
        return store_tokens(noted(executor.map(encode, groups), size, on_note), tokenizer)
    finally:
        is_stopped.set()
        executor.shutdown(cancel_futures=True)


def noted(pieces: Iterable[tuple[int, bytes]], total: int, on_note: OnNote) -> Iterator[bytes]:
    """Yield the tokens of pieces (size of the text, tokens), and report the progress if the text is long."""
    is_long = total >= NOTED_BYTES
    if is_long:
        on_note(f"tokenizing {units.size(total)} of text")
    done = 0
    started = last_noted = time.monotonic()
    for size, tokens in pieces:
        done += size
        now = time.monotonic()
        if is_long and done < total and now - last_noted >= max(NOTE_SECONDS, (now - started) / 3):
            last_noted = now
            on_note(f"tokenized {100 * done // total} %")
        yield tokens
