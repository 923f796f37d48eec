"""Tokenization of a corpus that may be larger than memory, into shards in the cache.

Cached shards are read, the others are tokenized on all cores. If the cache has no space or cannot be written, shards go
to a temporary file, which the system deletes with the process. The tokens are the same either way.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO

import numpy as np
import tokenizers

from llmcli import units
from llmcli.data.text.corpus import Part
from llmcli.data.text.documents import Document, continuation_bytes
from llmcli.data.text.temporary_files import temporary_file_errors
from llmcli.data.text.words import SEARCHED_CHARACTERS
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.shards import Shard, TokenShards, open_shard, shard_header
from llmcli.data.tokens.token_store import LIMIT_VARIABLE, TokenCache, cache_directory
from llmcli.data.tokens.tokens import count_bytes, encode_texts, token_type, used_tokens

SHARD_BYTES = 16_000_000  # text per shard; the last one has less
CORES_PER_THREAD = 4  # the library has threads of its own; ours read text and store tokens
MIN_THREADS = 2
NOTED_BYTES = 16_000_000  # progress is reported for more text than this; less takes a few seconds
NOTE_SECONDS = 20.0  # minimum between two notes; later a third of the elapsed time

OnNote = Callable[[str], None]


@dataclass(frozen=True)
class ShardText:
    """The text of a shard. An end-of-text token precedes each text except the very first."""

    parts: tuple[Part, ...]
    begins_text: bool  # False: the first part continues a text from the previous shard
    is_first: bool  # first shard of all

    def key(self, tokenizer_hash: str) -> str:
        """Hash of the text and the tokenizer, on which the tokens depend."""
        parts = [[part.document.sha256, part.start, part.end] for part in self.parts]
        content = [1, tokenizer_hash, parts, self.begins_text, self.is_first]
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:40]


def label(texts: Iterable[ShardText]) -> str:
    names = dict.fromkeys(part.document.name for text in texts for part in text.parts)
    return next(iter(names)) + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Hash everything in a tokenizer that the tokens of a text depend on."""
    return hashlib.sha256(f"{tokenizers.__version__}\n{tokenizer.to_json()}".encode()).hexdigest()


def divide(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[ShardText]:
    """Cut `parts`, each a text, into the texts of shards of about SHARD_BYTES."""
    shard: list[Part] = []
    size, begins_text, is_first = 0, True, True
    for part in parts:
        start = part.start
        while part.end - start > SHARD_BYTES - size:
            cut = _cut(part.document, start + SHARD_BYTES - size, part.end, tokenizer)
            if cut >= part.end:
                break
            yield ShardText((*shard, Part(part.document, start, cut)), begins_text, is_first)
            shard, size, begins_text, is_first, start = [], 0, False, False, cut
        shard.append(Part(part.document, start, part.end))
        size += part.end - start
        if size >= SHARD_BYTES:
            yield ShardText(tuple(shard), begins_text, is_first)
            shard, size, begins_text, is_first = [], 0, True, False
    if shard:
        yield ShardText(tuple(shard), begins_text, is_first)


def _cut(document: Document, position: int, end: int, tokenizer: Tokenizer) -> int:
    """Find the next byte position at which a text may be cut, or the end of a character if there is none nearby."""
    data = document.utf8(position, min(2 * SEARCHED_CHARACTERS, end - position))
    start = continuation_bytes(data[:4])
    text = data[start:].decode("utf-8", "ignore")
    cut = tokenizer.first_cut(text)
    return position + start + (len(text[:cut].encode("utf-8")) if cut else 0)


class StoppedError(Exception):
    """Another shard failed, or Ctrl-C was pressed."""


def tokenize_in_shards(parts: Iterable[Part], tokenizer: Tokenizer, on_note: OnNote = lambda note: None) -> TokenShards:
    """Tokenize parts of a corpus with an end-of-text id between two. Raises LLMError if there is no disk space."""
    directory = cache_directory()
    cache = TokenCache(directory) if directory else None
    if cache and not cache.limit():  # turned off
        cache = None
    maker = _ShardMaker(list(divide(parts, tokenizer)), tokenizer, cache, on_note)
    return TokenShards(maker.all_shards(), maker.shard)


class _ShardMaker:
    """Finds shards in the cache, or makes them."""

    def __init__(self, texts: list[ShardText], tokenizer: Tokenizer, cache: TokenCache | None, on_note: OnNote) -> None:
        self._texts, self._tokenizer, self._cache, self._on_note = texts, tokenizer, cache, on_note
        hash_ = tokenizer_hash(tokenizer)
        self._labels = {"text": label(texts), "tokenizer": hash_[:12]}
        self._keys = [text.key(hash_) for text in texts]
        self._kept = set(self._keys)  # not removed from the cache to make space
        self._temporary: IO[bytes] | None = None
        self._lock = threading.Lock()  # guards the temporary file
        self._noted = False
        self._stopped = threading.Event()

    def all_shards(self) -> list[Shard]:
        """Return all shards in order. After Ctrl-C, the completed shards are kept for the next run."""
        sizes = [sum(part.text_bytes for part in text.parts) for text in self._texts]
        is_cached = [self._cache is not None and self._cache.find(key) is not None for key in self._keys]
        missing = [0 if cached else size for size, cached in zip(sizes, is_cached, strict=True)]
        progress = TokenizingProgress(sum(missing), sum(sizes) - sum(missing), self._on_note)
        shards: list[Shard] = []
        executor = ThreadPoolExecutor(max(MIN_THREADS, (os.cpu_count() or 1) // CORES_PER_THREAD), "tokenize")
        try:
            for shard, size in zip(executor.map(self.shard, range(len(sizes))), missing, strict=True):
                progress.add(size)
                shards.append(shard)
            return shards
        finally:
            self._stopped.set()
            executor.shutdown(cancel_futures=True)
            self._stopped.clear()  # a shard may be made again later

    def shard(self, index: int) -> Shard:
        return self._find(self._keys[index]) or self._make(index)

    def _find(self, key: str) -> Shard | None:
        path = self._cache.find(key) if self._cache else None
        if not self._cache or not path:
            return None
        try:
            return open_shard(path)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _make(self, index: int) -> Shard:
        text, tokenizer, data = self._texts[index], self._tokenizer, bytearray()
        texts = (part.text() for part in text.parts)
        for block in encode_texts(texts, tokenizer, continued=not text.begins_text, is_first=text.is_first):
            if self._stopped.is_set():
                raise StoppedError
            data += block
        dtype = token_type(tokenizer)
        ids = np.frombuffer(data, dtype)
        used = b"".join(tokenizer.token_bytes[i] for i in used_tokens(ids, tokenizer.vocab_size))
        size = count_bytes(ids, tokenizer.byte_lengths)
        shard = Shard(None, 0, dtype, len(ids), size, bytes(sorted(set(used))))
        is_unchanged = all(part.document.is_unchanged() for part in text.parts)
        tokens = bytes(data)
        return (is_unchanged and self._cached(index, shard, tokens)) or self._stored(shard, tokens)

    def _cached(self, index: int, shard: Shard, tokens: bytes) -> Shard | None:
        if not self._cache:
            return None
        header = shard_header(shard, tokens, self._labels)
        try:
            if path := self._cache.write(self._keys[index], (header, tokens), len(header) + len(tokens), self._kept):
                return open_shard(path)
            reason = f"{self._cache.directory} may have {units.size(self._cache.limit())} ({LIMIT_VARIABLE})"
        except (OSError, ValueError) as error:
            reason = f"cannot write to {self._cache.directory}: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            if not self._noted:
                self._on_note(f"some tokens are in a temporary file and are not kept for the next run: {reason}")
            self._noted = True
        return None

    def _stored(self, shard: Shard, tokens: bytes) -> Shard:
        with self._lock, temporary_file_errors("the tokens"):
            if self._temporary is None:
                self._temporary = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (as long as this object)
            offset = self._temporary.seek(0, os.SEEK_END)
            self._temporary.write(tokens)
            self._temporary.flush()
            return replace(shard, file=self._temporary, offset=offset)


class TokenizingProgress:
    """Reports the progress of tokenization."""

    def __init__(self, total: int, cached: int, on_note: OnNote, clock: Callable[[], float] = time.monotonic) -> None:
        """`total` bytes must be tokenized; the tokens of `cached` other bytes are cached."""
        self._total, self._done = total, 0
        self._on_note, self._clock = on_note, clock
        self._started = self._noted = clock()
        if total >= NOTED_BYTES:
            others = f"; {units.size(cached)} are cached" if cached else ""
            on_note(f"tokenizing {units.size(total)} of text{others}")

    def add(self, size: int) -> None:
        self._done += size
        now = self._clock()
        passed = now - self._started
        is_due = now - self._noted >= max(NOTE_SECONDS, passed / 3)
        if self._total < NOTED_BYTES or not is_due or self._done >= self._total:
            return
        self._noted = now
        left = passed * (self._total - self._done) / self._done
        left = 60 * round(left / 60) if left >= 60 else left
        self._on_note(f"tokenized {100 * self._done // self._total} %, about {units.duration(left)} left")

    def counted(self, texts: Iterator[Iterator[str]]) -> Iterator[Iterator[str]]:
        """Yield the same texts, and count each piece as tokenized when the next one is read."""

        def count(piece: str) -> str:
            self.add(len(piece.encode()))
            return piece

        return (map(count, text) for text in texts)
