"""A document: a file or standard input, opened, decompressed, decoded and checked to be text.

The text is UTF-8 with or without a byte-order mark, or UTF-16 with one, and may be compressed (gzip, zstd). Text that
cannot be read from an arbitrary position (compressed, UTF-16, standard input) is decoded once, into a temporary file.

Standard library only, except for zstd before Python 3.14.
"""

import codecs
import contextlib
import gzip
import hashlib
import io
import itertools
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from llmcli.data.text import file_types
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, check_temporary_space
from llmcli.errors import LLMError, missing_extra

OnRead: TypeAlias = Callable[[str, int], None]  # receives the name of the file and the size of each block read

BLOCK_BYTES = 1 << 20  # bytes per read
CHECKED_BYTES = 1 << 16  # checked at a time: they stay in the processor's cache
STANDARD_INPUT = "standard input"  # name in messages
_START_BYTES = 1 << 16  # of text, used to recognize its format
_COMPRESSION = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # magic bytes -> program
_MAX_GZIP_RATIO = 1032  # size of the content / size of the file
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def ignore(name: str, size: int) -> None:
    """An `OnRead` that does nothing."""


@dataclass(frozen=True)
class Document:
    """A text file that was read to its end once."""

    name: str  # as the user wrote it
    path: Path
    text_bytes: int  # size of the text in UTF-8, without a byte-order mark
    sha256: str  # of the text
    offset: int = 0  # start of the UTF-8 text in the file, or in the copy
    copy: TextCopy | None = field(default=None, repr=False, compare=False)  # for a file that is not plain UTF-8
    changed_at: int = field(default=0, repr=False, compare=False)  # st_mtime_ns of the file before it was read
    relative_name: str = ""  # path relative to the named directory, with "/"; for a named file, its name
    columns: tuple[str, ...] = ()  # column of the text; empty for the text of the whole file
    all_columns: tuple[str, ...] = field(default=(), compare=False)  # in the file
    notes: tuple[str, ...] = field(default=(), compare=False)  # what was left out, one line each

    def is_unchanged(self) -> bool:
        """Return whether the modification time is still that of the first read."""
        try:
            return self.copy is not None or self.path.stat().st_mtime_ns == self.changed_at
        except OSError:
            return False

    def utf8(self, start: int, size: int) -> bytes:
        """Return up to `size` bytes of the UTF-8 text from a position on; characters may be cut at both ends."""
        with self._reader() as read:
            return read(self.offset + start, min(size, self.text_bytes - start))

    def text(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """Yield the text between two byte positions, in pieces; a position inside a character moves to its end."""
        end = self.text_bytes if end is None else min(end, self.text_bytes)
        with self._reader() as read:

            def character_end(position: int) -> int:
                if position in (0, self.text_bytes):
                    return position
                return position + continuation_bytes(read(self.offset + position, min(3, self.text_bytes - position)))

            first, last = character_end(min(start, end)), character_end(end)
            blocks = (
                read(self.offset + position, min(BLOCK_BYTES, last - position))
                for position in range(first, last, BLOCK_BYTES)
            )
            yield from _decode(self.name, blocks, "utf-8", self.offset + first)

    @property
    def start(self) -> str:
        return "".join(self.text(0, _START_BYTES))

    def lines(self, on_read: OnRead = ignore) -> Iterator[str]:
        """Yield the lines without their ends. Only "\n" ends a line: U+2028, a form feed and "\r" belong to it.

        `on_read` is also called with size 0 now and then, so that it can stop the reading.
        """
        unfinished: list[str] = []
        for piece in self.text():
            on_read(self.name, 0)
            *complete, rest = piece.split("\n")
            if complete:
                yield "".join([*unfinished, complete[0]])
                yield from complete[1:]
                unfinished = []
            unfinished.append(rest)
        if last := "".join(unfinished):
            yield last

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Open the file or the copy; yields a function (position, size) -> bytes."""
        if self.copy is not None:
            yield self.copy.read
            return
        with open_regular_file(self.name, self.path) as file:

            def read(position: int, size: int) -> bytes:
                file.seek(position)
                data = _read(file, size, self.name)
                if len(data) < size:
                    raise LLMError(f"{self.name} became shorter while it was in use; run the command again")
                return data

            yield read


def read_document(
    name: str, path: Path, copy: TextCopy, on_read: OnRead = ignore, stdin: IO[bytes] | None = None
) -> Document:
    """Read a file, or standard input ("-"), to its end and check that it is text.

    Text other than a plain UTF-8 file is appended to `copy`. `on_read` may raise ReadingEndsError. Raises LLMError with
    the type of a file that is not text, or the position of the first byte that is not.
    """
    stream = (stdin or sys.stdin.buffer) if name == "-" else None
    name = display_name(name)
    source = open_regular_file(name, path) if stream is None else _buffered(stream)
    with source as file, _decompressed(name, file) as (content, program):
        changed_at = os.fstat(file.fileno()).st_mtime_ns if stream is None else 0
        start = _read(content, max(BLOCK_BYTES, 4), name)
        mark, encoding = next((known for known in _BYTE_ORDER_MARKS if start.startswith(known[0])), (b"", "utf-8"))
        copied = stream is not None or bool(program) or encoding != "utf-8"
        offset = copy.size if copied else len(mark)
        text = _TextDigest(copy if copied else None)

        def blocks() -> Iterator[bytes]:
            on_read(name, len(start))
            yield start[len(mark) :]
            while block := _read(content, BLOCK_BYTES, name):
                on_read(name, len(block))
                yield block

        try:
            if encoding == "utf-8":  # the text is in the file itself
                starts = ((block, start) for block in blocks() for start in range(0, len(block), CHECKED_BYTES))
                parts = (text.add(block[start : start + CHECKED_BYTES]) for block, start in starts)
                for _ in _decode(name, parts, encoding, len(mark), program):
                    pass
            else:
                for piece in _decode(name, blocks(), encoding, len(mark), program):
                    text.add(piece.encode("utf-8"))
        except LLMError as error:
            if copied:
                copy.truncate(offset)
            if isinstance(error, ReadingEndsError):
                raise
            end = b""
            with contextlib.suppress(OSError):  # standard input may not be seekable
                file.seek(max(0, file.seek(0, os.SEEK_END) - file_types.END_BYTES))
                end = file.read()
            description = file_types.describe_binary(name, start[: file_types.START_BYTES], end, program)
            raise LLMError(description or str(error), error.exit_code) from error
    return Document(name, path, text.size, text.sha256.hexdigest(), offset, copy if copied else None, changed_at)


def document_of_texts(name: str, path: Path, texts: Iterable[str], copy: TextCopy) -> Document:
    """Make one document of the texts in a file, joined by blank lines and appended to `copy`."""
    offset, text = copy.size, _TextDigest(copy)
    try:
        for number, part in enumerate(texts):
            text.add((f"\n\n{part}" if number else part).encode("utf-8"))
    except LLMError:
        copy.truncate(offset)
        raise
    return Document(name, path, text.size, text.sha256.hexdigest(), offset, copy)


class _TextDigest:
    """Size and hash of UTF-8 text, which is appended to a copy if there is one."""

    def __init__(self, copy: TextCopy | None) -> None:
        self._copy, self.sha256, self.size = copy, hashlib.sha256(), 0

    def add(self, data: bytes) -> bytes:
        self.sha256.update(data)
        self.size += len(data)
        if self._copy is not None:
            self._copy.append(data)
        return data


@contextlib.contextmanager
def open_regular_file(name: str, path: Path) -> Iterator[IO[bytes]]:
    """Open a file. Raises LLMError if that fails, or if it is not a regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise LLMError(f"{name} is not a regular file; name a text file, or - for standard input")
        file = open(path, "rb")  # noqa: SIM115 (closed below; errors in the block must not count as errors of opening)
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror or error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _buffered(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Add `peek` to a stream, which stays open afterwards."""
    buffered = io.BufferedReader(cast(io.RawIOBase, stream))
    try:
        yield buffered
    finally:
        buffered.detach()


@contextlib.contextmanager
def _decompressed(name: str, file: IO[bytes]) -> Iterator[tuple[IO[bytes], str]]:
    """Yield (content of a file, program that decompresses it: "gzip", "zstd" or "")."""
    try:
        start = file.peek(4)[:4]  # type: ignore[attr-defined]
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror or error}") from error
    program = next((program for magic, program in _COMPRESSION.items() if start.startswith(magic)), "")
    if not program:
        yield file, ""
        return
    module: Any = gzip if program == "gzip" else _import_zstd(name)
    if name != STANDARD_INPUT:
        check_temporary_space(name, program, _unpacked_size(file, program, module))
    with module.open(file) as content:
        yield content, program


def _unpacked_size(file: IO[bytes], program: str, module: Any) -> int:
    """Return the size of the content as stored in the file (modulo 4 GiB in gzip); 0 if missing or implausible."""
    with contextlib.suppress(Exception):  # OSError, ZstdError: reading the file will raise them again
        if program == "zstd":
            return module.get_frame_info(file.peek(18)[:18]).decompressed_size or 0  # type: ignore[attr-defined]
        packed = file.seek(0, os.SEEK_END)
        file.seek(max(0, packed - 4))
        size = int.from_bytes(file.read(), "little")
        file.seek(0)
        return size if size <= _MAX_GZIP_RATIO * packed else 0
    return 0


def _import_zstd(name: str) -> Any:
    """Import Python's module (3.14 and later) or its backport for older versions."""
    with contextlib.suppress(ImportError):
        from compression import zstd

        return zstd
    try:
        from backports import zstd
    except ImportError as error:
        problem = missing_extra(f"reading {name}", "backports.zstd", "zstd")
        raise LLMError(f"{problem}; or unpack it: zstd -d {shlex.quote(name)}") from error
    return zstd


def _read(file: IO[bytes], size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except Exception as error:  # OSError, EOFError, zlib.error, ZstdError
        raise LLMError(f"cannot read {name}: {error}") from error


def _decode(name: str, blocks: Iterable[bytes], encoding: str, first: int = 0, program: str = "") -> Iterator[str]:
    """Decode blocks to text, in pieces. `first` is the position of the first block in the file that `program`
    compressed. Raises LLMError with the position of a byte that is not text, such as a zero byte."""
    decoder, read = codecs.getincrementaldecoder(encoding)(), first
    for block in itertools.chain(blocks, [b""]):
        start = read - len(decoder.getstate()[0])  # position of the bytes to decode: a character may be unfinished
        read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            byte = (error.object[error.start :] or b"\0")[0]
            raise LLMError(
                f"{name} is not {encoding.upper()} text: byte 0x{byte:02x} at position {start + error.start:,}; "
                f"convert it first: {_iconv(name, 'ENCODING', program)} (ENCODING: ISO-8859-1, SHIFT_JIS, ...)"
            ) from error
        if "\0" in text:
            position = start + len(text[: text.index("\0")].encode(encoding))
            raise LLMError(
                f"{name} is not text: a zero byte at position {position:,} (a binary file, or UTF-16 without a "
                f"byte-order mark); convert UTF-16 first: {_iconv(name, 'UTF-16LE', program)}"
            )
        if text:
            yield text


def _iconv(name: str, encoding: str, program: str) -> str:
    """Return the command that converts a file to UTF-8.

    >>> _iconv("my book.txt", "UTF-16LE", "")
    "iconv -f UTF-16LE -t UTF-8 'my book.txt' > 'my book.txt.utf8'"
    >>> _iconv("a.gz", "UTF-16LE", "gzip")
    'gzip -dc a.gz | iconv -f UTF-16LE -t UTF-8 > a.utf8'
    """
    iconv = f"iconv -f {encoding} -t UTF-8"
    output = f"{file_types.unpacked_name(name) if program else name}.utf8"
    return iconv if name == STANDARD_INPUT else file_types.through(iconv, name, output, program)


def continuation_bytes(data: bytes) -> int:
    """Count the bytes at the beginning of a piece of UTF-8 that continue the previous character."""
    return next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))


def display_name(name: str) -> str:
    """Return a file name as printable text: its bytes need not be UTF-8; "-" is standard input."""
    return STANDARD_INPUT if name == "-" else os.fsencode(name).decode("utf-8", "replace")
