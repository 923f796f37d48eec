"""Bytes on disk -> text -> tokens -> batches.

Text comes in pieces, so a corpus may be larger than memory; tokens lie in a temporary file, mapped. What cannot be
read from any place (.gz, UTF-16, standard input) is decoded once, into a temporary file of UTF-8. A batch is a pure
function of (tokens, seed, position): nothing is remembered between steps.

Knows nothing of models, and of tokenizers only that they turn text into ids.
"""

import codecs
import contextlib
import errno
import glob
import gzip
import hashlib
import io
import itertools
import os
import stat
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from llmcli.data import file_types
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


class TemporaryFileError(LLMError):
    """The system refuses a temporary file, or more bytes in one."""


@contextlib.contextmanager
def _temporary(what: str) -> Iterator[None]:
    """Inside, an OSError is one of a temporary file for `what`: it becomes one line with the way out."""
    try:
        yield
    except OSError as error:
        try:
            where = tempfile.gettempdir()
        except OSError:
            where = "a temporary directory"
        raise TemporaryFileError(
            f"cannot keep {what} in {where}: {error.strerror or error}; free some space there, or set TMPDIR to a "
            f"directory on a disk with more"
        ) from error


class TextCopy:
    """UTF-8 text of documents one after another in a temporary file without a name: the system removes it when this
    object or the process is gone, however that comes about. There is no file until there is text."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self.size = 0

    def append(self, data: bytes) -> None:
        with _temporary("the decoded text"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="llmcli-", buffering=0)  # noqa: SIM115 (lives as long as this)
            self._file.seek(self.size)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self.size += len(data)

    def truncate(self, size: int) -> None:
        """Forget what lies beyond: a document that turned out to be no text."""
        self.size = size
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is there is written over, then
                self._file.truncate(size)

    def read(self, position: int, size: int) -> bytes:
        if self._file is None:
            return b""
        with _temporary("the decoded text"):
            self._file.seek(position)
            return self._file.read(size)


@dataclass(frozen=True)
class Document:
    """One file of text that was read through once and found good."""

    name: str  # as the user wrote it
    path: Path
    text_bytes: int  # its text in UTF-8, in bytes, without a byte-order mark
    sha256: str  # of that
    offset: int = 0  # where its UTF-8 text begins in the file, or in the copy
    copy: TextCopy | None = field(default=None, repr=False, compare=False)  # of a file that is not plain UTF-8

    def text(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """The text from byte `start` of its UTF-8 to byte `end`, in pieces, line ends as they are.

        A position inside a character stands for the character's end.
        """
        end = self.text_bytes if end is None else min(end, self.text_bytes)
        stop = min(end + 3, self.text_bytes)  # a character that begins before `end` is whole by then
        with self._reader() as read:
            first = start
            if start:
                low = max(0, start - 3)
                first = low + _character_start(read(self.offset + low, start + 1 - low))

            def blocks() -> Iterator[bytes]:
                for position in range(first, stop, BLOCK):
                    yield read(self.offset + position, min(BLOCK, stop - position))

            texts = _decode(self.name, blocks(), "utf-8", self.offset + first, whole=stop == self.text_bytes)
            yield from _clip(texts, first, start, end)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Inside, a function (position, size) -> bytes of the file, or of the copy."""
        if self.copy is not None:
            yield self.copy.read
            return
        with _open(self.name, self.path) as file:

            def read(position: int, size: int) -> bytes:
                file.seek(position)
                return _read(file, size, self.name)

            yield read


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


def read_corpus(names: Iterable[str], stdin: IO[bytes] | None = None, copy: TextCopy | None = None) -> Corpus:
    """Find and check every file: names of files, directories (all text files inside), globs, or "-".

    Each is read through once: UTF-8 with or without a byte-order mark, UTF-16 with one, and either in .gz. What is not
    plain UTF-8 in a file is copied as such into a temporary file, where any part of it can be read without the rest;
    several calls may share this `copy`.
    A file that is no text raises LLMError when it was named, and is listed in `skipped` when a directory held it.
    """
    names = list(names)
    documents: list[Document] = []
    skipped: list[str] = []
    seen: set[Path] = set()
    copy = copy or TextCopy()
    for name, path, named in _find(names):
        if path.resolve() in seen:
            skipped.append(f"{name} was named before; it is read once")
            continue
        seen.add(path.resolve())
        try:
            shown = "standard input" if name == "-" else os.fsencode(name).decode("utf-8", "replace")
            stream = (stdin or sys.stdin.buffer) if name == "-" else None
            documents.append(_check(shown, path, stream, copy))
        except LLMError as error:
            if isinstance(error, TemporaryFileError):
                raise
            said = None if stream else _what_it_is(shown, path)
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
        with _open(name, path) as file, _unpacked(name, file) as (unpacked, packed):
            start = unpacked.read(file_types.START)
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


def _check(name: str, path: Path, stream: IO[bytes] | None, copy: TextCopy) -> Document:
    """Read a file, or a stream, to its end, which makes sure that it is text. What is not plain UTF-8 in a file goes
    into the copy."""
    digest, before, size = hashlib.sha256(), copy.size, 0
    source = _open(name, path) if stream is None else _buffered(stream)
    with source as file, _unpacked(name, file) as (unpacked, packed):
        start = _read(unpacked, max(BLOCK, 4), name)
        mark, encoding = next((found for found in _BOMS if start.startswith(found[0])), (b"", "utf-8"))
        copied = stream is not None or packed or encoding != "utf-8"

        def take(data: bytes) -> bytes:
            nonlocal size
            digest.update(data)
            size += len(data)
            if copied:
                copy.append(data)
            return data

        blocks = itertools.chain([start[len(mark) :]], iter(lambda: _read(unpacked, BLOCK, name), b""))
        try:
            if encoding == "utf-8":  # its bytes are the text's
                for _ in _decode(name, map(take, blocks), encoding, len(mark)):
                    pass
            else:
                for text in _decode(name, blocks, encoding, len(mark)):
                    take(text.encode("utf-8"))
        except LLMError as error:
            copy.truncate(before)
            if stream is not None and not isinstance(error, TemporaryFileError):
                said = file_types.not_text(name, start[: file_types.START], packed=packed)
                raise LLMError(said or str(error), error.exit_code) from error
            raise
    return Document(name, path, size, digest.hexdigest(), before if copied else len(mark), copy if copied else None)


@contextlib.contextmanager
def _open(name: str, path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LLMError(f"{name} is not a regular file; name a text file, or - for standard input")
        file = open(path, "rb")  # noqa: SIM115 (closed below; an error inside is not one of opening it)
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror or error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _buffered(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The bytes of a stream, at which `peek` can look first. It stays open."""
    buffered = io.BufferedReader(cast(io.RawIOBase, stream))
    try:
        yield buffered
    finally:
        buffered.detach()


@contextlib.contextmanager
def _unpacked(name: str, file: IO[bytes]) -> Iterator[tuple[IO[bytes], bool]]:
    """(the bytes of a file, out of its gzip if it is one, whether it is one)"""
    try:
        packed = file.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror or error}") from error
    if not packed:
        yield file, False
        return
    with gzip.open(file) as unpacked:
        yield unpacked, True  # type: ignore[misc]


def _read(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise LLMError(f"cannot read {name}: {error}") from error


def _decode(name: str, blocks: Iterable[bytes], encoding: str, first: int = 0, whole: bool = True) -> Iterator[str]:
    """The text of blocks in pieces; raises LLMError with the position of the first byte that is no text. `first` is the
    position of the first block in the (unpacked) file. Where the blocks are not the `whole` rest of the text, what they
    end with may be part of a character, which is left out."""
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in itertools.chain(blocks, [b""]):
        waiting = len(decoder.getstate()[0])  # bytes of an unfinished character, from the block before
        try:
            text = decoder.decode(block, final=whole and not block)
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
        if text:
            yield text
        first += len(block)


def _character_start(data: bytes) -> int:
    """Where the last character begins of which a byte is there; the end where none begins.

    >>> _character_start("aé".encode()), _character_start("é".encode()[1:])
    (1, 1)
    """
    return next((i for i in reversed(range(len(data))) if data[i] & 0b1100_0000 != 0b1000_0000), len(data))


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


# ---- tokens


def tokenize(texts: Iterator[Iterator[str]], tokenizer: Encoder) -> NDArray[np.unsignedinteger]:
    """The ids of documents, one end-of-text id between two of them, as an array mapped to a temporary file.

    Memory stays bounded whatever the size of the text. Raises LLMError when the disk is full.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    count = 0
    with _temporary("the tokens"):
        file = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (the mapping keeps it)
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
