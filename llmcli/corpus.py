"""Bytes on disk -> text -> tokens -> batches.

Text comes in pieces, so a corpus may be larger than memory; tokens lie in a temporary file, mapped. A batch is a
pure function of (tokens, seed, position): nothing is remembered between steps.

Knows nothing of models, and of tokenizers only that they turn text into ids.
"""

import codecs
import errno
import glob
import gzip
import hashlib
import os
import stat
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from llmcli import file_types
from llmcli.errors import LLMError

BLOCK = 1 << 20  # bytes read at once
PARTS = 64  # of a text that is too long to be read whole
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class Encoder(Protocol):
    """What this room needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_stream(self, texts: Iterable[str]) -> Iterator[array]: ...


@dataclass(frozen=True)
class Document:
    """One file of text that was read through once and found good."""

    name: str  # as the user wrote it
    path: Path
    encoding: str
    text_bytes: int  # its text in UTF-8, in bytes, without a byte-order mark
    sha256: str  # of that
    keep: object = field(default=None, repr=False, compare=False)  # holds a temporary file open
    offset: int | None = None  # of the text in the file, where the file holds it as it is: UTF-8, not packed

    def text(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """The text from byte `start` of its UTF-8 to byte `end`, in pieces, line ends as they are.

        A position inside a character stands for the character's end.
        """
        first = skipped = 0
        if start > 3 and self.offset is not None:
            first = _character_start(self.name, self.path, self.offset + start) - self.offset
            skipped = self.offset + first
        texts = _decode(self.name, self.path, self.encoding, skipped)
        return _clip(texts, first, start, self.text_bytes if end is None else end)


@dataclass(frozen=True)
class Corpus:
    """Documents in order; a position in it is a byte of its UTF-8 text."""

    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()  # why files found in directories were left out, one line each

    @property
    def text_bytes(self) -> int:
        return sum(document.text_bytes for document in self.documents)

    def texts(self, start: int = 0, end: int | None = None) -> Iterator[Iterator[str]]:
        """The text from byte `start` up to byte `end`, document by document, each in pieces.

        A position inside a character stands for the character's end.
        """
        end = self.text_bytes if end is None else end
        first = 0
        for document in self.documents:
            if first < end and start < first + document.text_bytes:
                yield document.text(max(0, start - first), end - first)
            first += document.text_bytes

    def data(self, start: int = 0, end: int | None = None) -> bytes:
        """The same part as UTF-8, documents joined, held in memory."""
        return b"".join(piece.encode("utf-8") for text in self.texts(start, end) for piece in text)

    def spread(self, start: int, end: int, most: int) -> Iterator[Iterator[str]]:
        """The text from byte `start` to byte `end`, or, of more than `most` bytes, PARTS of it taken evenly, about so
        many in all."""
        if end - start <= most:
            yield from self.texts(start, end)
            return
        part = max(1, most // PARTS)
        for first in np.linspace(start, end - part, PARTS).astype(np.int64).tolist():
            yield from self.texts(first, first + part)


# ---- finding and checking


def read_corpus(names: Iterable[str], stdin: IO[bytes] | None = None) -> Corpus:
    """Find and check every file: names of files, directories (all text files inside), globs, or "-".

    Each is read through once: UTF-8 with or without a byte-order mark, UTF-16 with one, and either in .gz.
    A file that is no text raises LLMError when it was named, and is listed in `skipped` when a directory held it.
    """
    names = list(names)
    documents: list[Document] = []
    skipped: list[str] = []
    seen: set[Path] = set()
    for name, path, named in _find(names):
        keep = None
        if name == "-":
            keep = _spool(stdin or sys.stdin.buffer)
            path = Path(keep.name)
        if path.resolve() in seen:
            skipped.append(f"{name} was named before; it is read once")
            continue
        seen.add(path.resolve())
        try:
            shown = "standard input" if name == "-" else os.fsencode(name).decode("utf-8", "replace")
            documents.append(_check(shown, path, keep))
        except LLMError as error:
            said = _what_it_is(shown, path)
            if named:
                raise LLMError(said or str(error), error.exit_code) from error
            skipped.append(said or str(error))
    if not documents:
        inside = f" ({len(skipped)} files there are no text; the first: {skipped[0]})" if skipped else ""
        raise LLMError(f"no text found in {', '.join(names)}{inside}; name a text file to learn from")
    if not any(document.text_bytes for document in documents):
        raise LLMError(f"{documents[0].name} is empty; a corpus needs some text")
    return Corpus(tuple(d for d in documents if d.text_bytes), tuple(skipped))


def _what_it_is(name: str, path: Path) -> str | None:
    """Of a file that could not be read as text: what it is and how to get its text, where it is recognised."""
    try:
        if not path.is_file():
            return None
        with _open(name, path) as file:
            start, packed = file.read(file_types.START), isinstance(file, gzip.GzipFile)
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - file_types.END))
            end = file.read(file_types.END)
    except (OSError, EOFError, zlib.error, LLMError):
        return None
    return file_types.not_text(name, start, end, packed)


def _find(names: Iterable[str]) -> Iterator[tuple[str, Path, bool]]:
    """(name to show, path, was it named itself?) for each file; what a directory holds comes sorted."""
    for name in names:
        if not name:
            raise LLMError("the name of a text is empty; name a text file, a directory, a pattern or -")
        path = Path(name)
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise LLMError(f"{name[:40]}... is too long for the name of a file; put the text into one") from error
        if name == "-":
            yield name, path, True
        elif path.is_dir():
            for inside in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in inside.relative_to(path).parts)
                if inside.is_file() and not hidden:
                    yield str(inside), inside, False
        elif path.exists():
            yield name, path, True
        elif glob.has_magic(name):
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise LLMError(f"nothing matches {name}; name a text file, a directory or a pattern")
            yield from _find(found)
        else:
            download = f"; this program downloads nothing, get it first: curl -LO {name}" if "://" in name else ""
            raise LLMError(f"there is no file or directory {name}{download}")


def _spool(source: IO[bytes]) -> IO[bytes]:
    """A stream that can be read only once, as a temporary file that can be read again."""
    spool = tempfile.NamedTemporaryFile(prefix="llmcli-")  # noqa: SIM115 (lives as long as its Document)
    while block := source.read(BLOCK):
        spool.write(block)
    spool.flush()
    return spool


def _check(name: str, path: Path, keep: object) -> Document:
    with _open(name, path) as file:
        start = _read(file, 4, name)
        packed = isinstance(file, gzip.GzipFile)
    encoding = next((encoding for mark, encoding in _BOMS if start.startswith(mark)), "utf-8")
    digest = hashlib.sha256()
    text_bytes = 0
    for text in _decode(name, path, encoding):
        data = text.encode("utf-8")
        digest.update(data)
        text_bytes += len(data)
    mark = len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0
    offset = None if packed or encoding != "utf-8" else mark
    return Document(name, path, encoding, text_bytes, digest.hexdigest(), keep, offset)


def _open(name: str, path: Path) -> IO[bytes]:
    """The file's bytes, out of its gzip if it is one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LLMError(f"{name} is not a regular file; name a text file, or - for standard input")
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror}") from error
    return gzip.open(file) if packed else file  # type: ignore[return-value]


def _read(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise LLMError(f"cannot read {name}: {error}") from error


def _decode(name: str, path: Path, encoding: str, skipped: int = 0) -> Iterator[str]:
    """The text of a file in pieces, without its first `skipped` bytes; raises LLMError with the position of the first
    byte that is no text."""
    decoder = codecs.getincrementaldecoder(encoding)()
    first = skipped  # position of the next block in the (unpacked) file
    with _open(name, path) as file:
        file.seek(skipped)
        while True:
            block = _read(file, BLOCK, name)
            waiting = len(decoder.getstate()[0])  # bytes of an unfinished character, from the block before
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                bad = first - waiting + error.start
                value = error.object[error.start] if error.start < len(error.object) else 0
                raise LLMError(
                    f"{name} is not {encoding.upper()} text: byte 0x{value:02x} at position {bad:,}; "
                    f"convert it first: iconv -f ENCODING -t UTF-8"
                ) from error
            if "\0" in text:
                before = len(text[: text.index("\0")].encode(encoding))
                raise LLMError(
                    f"{name} is not text: a zero byte at position {first - waiting + before:,} (a binary file, or "
                    f"UTF-16 without a byte-order mark); convert it first: iconv -f UTF-16LE -t UTF-8"
                )
            if first == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            first += len(block)


def _character_start(name: str, path: Path, position: int) -> int:
    """The last place in a file of UTF-8 up to `position` where a character begins."""
    with _open(name, path) as file:
        file.seek(position - 3)
        near = _read(file, 4, name)
    starts = [i for i, byte in enumerate(near) if byte & 0b1100_0000 != 0b1000_0000]
    return position - 3 + starts[-1] if starts else position


def _clip(texts: Iterator[str], first: int, start: int, end: int) -> Iterator[str]:
    """The part of a text between two positions in its UTF-8 bytes, both moved on to the end of a character; what
    comes begins at position `first`."""
    for text in texts:
        if first >= end:
            return
        if text.isascii():
            low, high, size = max(start - first, 0), max(end - first, 0), len(text)
            part = text[low:high]
        else:
            data = text.encode("utf-8")
            size = len(data)
            low, high = (_character_end(data, position - first) for position in (start, end))
            part = data[low:high].decode("utf-8")
        if part:
            yield part
        first += size


def _character_end(data: bytes, position: int) -> int:
    position = max(position, 0)
    while position < len(data) and data[position] & 0b1100_0000 == 0b1000_0000:
        position += 1
    return position


# ---- tokens and batches


def tokenize(texts: Iterator[Iterator[str]], tokenizer: Encoder) -> NDArray[np.unsignedinteger]:
    """The ids of documents, one end-of-text id between two of them, as an array mapped to a temporary file.

    Memory stays bounded whatever the size of the text. Raises LLMError when the disk is full.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    file = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (the mapping keeps it)
    count = 0
    try:
        for text in texts:
            before = count
            for ids in tokenizer.encode_stream(text):
                if count == before > 0:
                    file.write(np.array([tokenizer.eos_id], dtype).tobytes())
                    count += 1
                file.write(np.asarray(ids).astype(dtype).tobytes())
                count += len(ids)
        file.flush()
    except OSError as error:
        where = tempfile.gettempdir()
        raise LLMError(f"cannot keep the tokens in {where}: {error.strerror}; set TMPDIR to a roomier disk") from error
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,))


@dataclass(frozen=True)
class Batches:
    """Training batches of a token array as a pure function of (seed, step).

    An epoch visits every window of `context` tokens once, in an order and with an offset of its own, both drawn
    from (seed, epoch). With `split`, that share of the tokens that were merged from two is taken apart into these two,
    others each time (after BPE-dropout, arXiv:1910.13267): text that is seen often does not look the same each time.
    """

    tokens: NDArray[np.unsignedinteger]
    context: int  # T
    batch_size: int  # B
    seed: int
    split: float = 0.0
    parts: NDArray[np.int64] | None = None  # of each token, [V, 2]; -1 where it was not merged

    @property
    def windows(self) -> int:
        """Windows in an epoch; the offset needs up to one window of slack."""
        return max(1, (len(self.tokens) - self.context) // self.context)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Step 0, 1, ... -> ids [B, T + 1]; columns 0..T-1 are inputs, 1..T the targets."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        shape = (len(self.tokens), self.context, self.windows)
        starts = [_window_starts(*shape, self.seed, p // self.windows)[p % self.windows] for p in positions]
        ids = self.tokens[np.asarray(starts)[:, None] + np.arange(self.context + 1)].astype(np.int64)
        if self.split and self.parts is not None:
            ids = _taken_apart(ids, self.parts, self.split, np.random.default_rng([self.seed, step, self.context]))
        return ids


def _taken_apart(
    ids: NDArray[np.int64], parts: NDArray[np.int64], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of tokens [B, W], of which a share stands as its two parts; what no longer fits into W falls off the end."""
    B, W = ids.shape
    halves = parts[ids]  # [B, W, 2]
    apart = (rng.random((B, W)) < share) & (halves[..., 0] >= 0)
    place = np.arange(W) + np.cumsum(apart, axis=1) - apart  # of each token's first or only part
    row = np.broadcast_to(np.arange(B)[:, None], (B, W))
    out = np.empty((B, 2 * W), np.int64)
    out[row, place] = np.where(apart, halves[..., 0], ids)
    out[row[apart], place[apart] + 1] = halves[apart, 1]
    return out[:, :W]


@lru_cache(maxsize=2)
def _window_starts(tokens: int, context: int, windows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Where each window of an epoch starts, in the order of their visit."""
    rng = np.random.default_rng([seed, epoch])
    offset = int(rng.integers(tokens - windows * context))
    return rng.permutation(windows) * context + offset
