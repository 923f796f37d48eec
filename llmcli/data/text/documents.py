"""A document: a file or standard input, opened, decompressed, decoded and checked to be text.

The text is UTF-8, UTF-16 or in another encoding (encodings.py), and may be compressed (gzip, bzip2, xz, zstd). Text
that cannot be read from an arbitrary position (all but plain UTF-8 in a file) is decoded once, into a temporary file.
"""

import codecs
import contextlib
import hashlib
import importlib
import io
import itertools
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from llmcli.data.text import encodings, file_types
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, check_temporary_space
from llmcli.errors import LLMError, missing_extra

OnRead: TypeAlias = Callable[[str, int], None]  # receives the name of the file and the size of each block read

BLOCK_BYTES = 1 << 20  # bytes per read
CHECKED_BYTES = 1 << 16  # checked at a time: they stay in the processor's cache
STANDARD_INPUT = "standard input"  # name in messages

_START_BYTES = 1 << 16  # start of a text from which its format is recognized
_SAMPLE_BYTES = 1 << 14  # lines that are not ASCII, from which an encoding is recognized
_COMPRESSION = {  # first bytes of a file -> program
    re.compile(rb"\x1f\x8b"): "gzip", re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"): "bzip2",
    re.compile(rb"\xfd7zXZ\0"): "xz", re.compile(rb"\x28\xb5\x2f\xfd"): "zstd",
}  # fmt: skip
_MODULES = {"gzip": "gzip", "bzip2": "bz2", "xz": "lzma"}  # program -> module of the standard library
_MAX_GZIP_RATIO = 1032  # size of the content / size of the file
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))  # all but the first of a character
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),  # begins as UTF-16LE does
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def ignore(name: str, size: int) -> None:
    """An `OnRead` that does nothing."""


class NotTextError(LLMError):
    """Bytes that are not text in the encoding that was tried."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem}; {advice}")
        self.problem, self.advice = problem, advice


@dataclass(frozen=True)
class Document:
    """A text file that was read to its end once."""

    name: str  # as the user wrote it
    path: Path
    text_bytes: int  # size of the text in UTF-8, without a byte-order mark
    sha256: str  # hash of the text
    offset: int = 0  # start of the UTF-8 text in the file, or in the copy
    copy: TextCopy | None = field(default=None, repr=False, compare=False)  # only for a file that is not plain UTF-8
    changed_at: int = field(default=0, repr=False, compare=False)  # st_mtime_ns of the file before it was read
    relative_name: str = ""  # path relative to the named directory, with "/"; for a named file, its name
    columns: tuple[str, ...] = ()  # columns of the text; empty for the text of the whole file
    template: str = ""  # joins several columns
    all_columns: tuple[str, ...] = field(default=(), compare=False)  # including unread ones
    notes: tuple[str, ...] = field(default=(), compare=False)  # what was left out, one line each
    member: str = ""  # path in an archive
    kind: str = ""  # format that data/documents extracted the text from, such as "PDF"; empty for plain text
    encoding: str = ""  # the file's encoding, unless it is UTF-8 or given by a byte-order mark
    detail: str = field(default="", compare=False)  # how the columns were chosen, for users
    file_bytes: int = field(default=0, compare=False)  # size of the file
    characters: int = field(default=0, compare=False)  # length of the text
    skipped: tuple[tuple[str, int], ...] = field(default=(), compare=False)  # (what was not read, how often)

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
        """Yield the lines without their ends. Only "\\n" ends a line: U+2028, a form feed and "\\r" belong to it.
        `on_read` is also called with size 0 now and then, so that it can stop the reading."""
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
    name: str,
    path: Path,
    copy: TextCopy,
    on_read: OnRead = ignore,
    stream: IO[bytes] | None = None,
    encoding: str = "",
) -> Document:
    """Read a file, standard input ("-") or a stream to its end, and check that it is text.  `encoding` is that of text
    other than UTF-8; the default recognizes it if that is certain. Text other than a plain UTF-8 file is appended to
    `copy`. Raises LLMError with the type of a file or the position of a byte that is not text."""
    given = encodings.codec_of(encoding) if encoding else ""
    first = given if name == "-" or encodings.is_seven_bit(given) else ""
    try:
        return _read_as(first, name, path, copy, on_read, stream, may_be_iso2022_jp=not given and name != "-")
    except NotTextError as error:
        if name == "-":
            raise
        utf8_error = error
    codec = "" if first else given or _recognize(name, path, stream, utf8_error, on_read)
    try:
        return _read_as(codec, name, path, copy, on_read, stream)
    except NotTextError as error:
        raise error if first or given else _uncertain(utf8_error) from error


def _recognize(name: str, path: Path, stream: IO[bytes] | None, error: NotTextError, on_read: OnRead) -> str:
    """Return the codec of a file that is not UTF-8. Raises LLMError if it is uncertain; `error` is that of UTF-8."""
    sample = bytearray()  # whole lines: no encoding but UTF-16 has bytes of line ends inside characters
    with _opened(name, path, stream) as file, _decompressed(display_name(name), file) as (content, _):
        while len(sample) < _SAMPLE_BYTES and (block := _read(content, BLOCK_BYTES, display_name(name))):
            on_read(display_name(name), 0)
            if b"\0" in block:
                if not sample and (codec := encodings.utf16_codec(block)):
                    return codec
                raise error
            sample += b"".join(line for line in block.splitlines(keepends=True) if not line.isascii())
    codec = encodings.recognize(bytes(sample[:_SAMPLE_BYTES]))
    if not codec:
        raise _uncertain(error) from error
    return codec


def _uncertain(error: NotTextError) -> NotTextError:
    return NotTextError(f"{error.problem}; its encoding is uncertain", error.advice)


@contextlib.contextmanager
def _opened(name: str, path: Path, stream: IO[bytes] | None) -> Iterator[IO[bytes]]:
    """Open a file, standard input, or the beginning of a file in an archive."""
    if stream is None and name != "-":
        with open_regular_file(display_name(name), path) as file:
            yield file
        return
    if stream is not None and name != "-":
        stream.seek(0)
    with _buffered(stream or sys.stdin.buffer) as file:
        yield file


def _read_as(
    codec: str,
    name: str,
    path: Path,
    copy: TextCopy,
    on_read: OnRead,
    stream: IO[bytes] | None = None,
    may_be_iso2022_jp: bool = False,
) -> Document:
    """Read a document as `read_document` does; `codec` is for text without a byte-order mark, "" is UTF-8."""
    source, is_file = _opened(name, path, stream), stream is None and name != "-"
    is_in_archive = stream is not None and name != "-"
    name = display_name(name)
    with source as file, _decompressed(name, file) as (content, program):
        changed_at = os.fstat(file.fileno()).st_mtime_ns if is_file else 0
        start = _read(content, max(BLOCK_BYTES, 4), name)
        if may_be_iso2022_jp and encodings.is_iso2022_jp(start):
            codec = encodings.codec_of("iso2022_jp")
        mark, encoding = next(
            (known for known in _BYTE_ORDER_MARKS if start.startswith(known[0])), (b"", codec or "utf-8")
        )
        copied = not is_file or bool(program) or encoding != "utf-8"
        offset = copy.size if copied else len(mark)
        text = TextDigest(copy if copied else None)

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
            if isinstance(error, NotTextError) and is_in_archive:
                advice = error.advice.partition(" first: ")[0]
                raise NotTextError(error.problem, f"{advice} with iconv after unpacking the archive") from error
            if description := file_types.describe_binary(name, start[: file_types.START_BYTES], program):
                raise LLMError(f"{name} {description}") from error
            raise
        file_bytes = os.fstat(file.fileno()).st_size if is_file else text.size
    return Document(
        name, path, text.size, text.sha256.hexdigest(), offset, copy if copied else None, changed_at,
        encoding=encodings.name_of(encoding) if encoding != "utf-8" and not mark else "", file_bytes=file_bytes,
        characters=text.characters,
    )  # fmt: skip


def document_of_texts(name: str, path: Path, texts: Iterable[str], copy: TextCopy, separator: str = "\n\n") -> Document:
    """Make one document of the texts in a file, by default joined by blank lines, and appended to `copy`."""
    offset, text = copy.size, TextDigest(copy)
    try:
        for number, part in enumerate(texts):
            text.add((f"{separator}{part}" if number else part).encode("utf-8"))
    except LLMError:
        copy.truncate(offset)
        raise
    return Document(name, path, text.size, text.sha256.hexdigest(), offset, copy, characters=text.characters)


class TextDigest:
    """Size, characters and hash of UTF-8 text, which is appended to a copy if there is one."""

    def __init__(self, copy: TextCopy | None) -> None:
        self._copy, self.sha256, self.size, self.characters = copy, hashlib.sha256(), 0, 0

    def add(self, data: bytes) -> bytes:
        self.sha256.update(data)
        self.size += len(data)
        self.characters += len(data.translate(None, _CONTINUATION_BYTES))
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
    """Yield (content of a file, program that decompresses it, or "")."""
    try:
        start = file.peek(10)[:10]  # type: ignore[attr-defined]
    except OSError as error:
        raise LLMError(f"cannot read {name}: {error.strerror or error}") from error
    if not (program := compression(start)):
        yield file, ""
        return
    if name != STANDARD_INPUT:
        check_temporary_space(name, program, _unpacked_size(name, file, program))
    with decompressed(name, file, program) as content:
        yield content, program


def compression(start: bytes) -> str:
    """Return the program that decompresses a file with these first bytes; "" if it is not compressed."""
    return next((program for magic, program in _COMPRESSION.items() if magic.match(start)), "")


def decompressed(name: str, file: IO[bytes], program: str) -> IO[bytes]:
    module: Any = _import_zstd(name) if program == "zstd" else importlib.import_module(_MODULES[program])
    return cast(IO[bytes], module.open(file))


def peek(path: Path) -> bytes:
    """Return the first bytes of a file, or of its content if it is compressed; b"" if it cannot be read."""
    with contextlib.suppress(Exception), open_regular_file("", path) as file:  # reading it will raise the error again
        start = file.read(file_types.START_BYTES)
        if program := compression(start):
            file.seek(0)
            with decompressed("", file, program) as content:
                return content.read(file_types.START_BYTES)
        return start
    return b""


def _unpacked_size(name: str, file: IO[bytes], program: str) -> int:
    """Return the size of the content as stored in the file (modulo 4 GiB in gzip); 0 if missing or implausible."""
    with contextlib.suppress(Exception):  # OSError, ZstdError: reading the file will raise them again
        if program == "zstd":
            return _import_zstd(name).get_frame_info(file.peek(18)[:18]).decompressed_size or 0  # type: ignore[attr-defined]
        if program == "gzip" and file.seekable():
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
    """Decode blocks, the first of which is at position `first` of the file. Raises NotTextError with the position."""
    decoder, read = codecs.getincrementaldecoder(encoding)(), first
    for block in itertools.chain(blocks, [b""]):
        start = read - len(decoder.getstate()[0])  # position of the bytes to decode: a character may be unfinished
        read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            byte = (error.object[error.start :] or b"\0")[0]
            what = encodings.name_of(encoding)
            raise NotTextError(
                f"{name} is not {what} text: byte 0x{byte:02x} at position {start + error.start:,}",
                f"name its encoding: `encoding` NAME (ISO-8859-1, SHIFT_JIS, ...); or convert it first: "
                f"{_iconv(name, 'ENCODING', program)}",
            ) from error
        if "\0" in text:
            position = start + len(text[: text.index("\0")].encode(encoding))
            raise NotTextError(
                f"{name} is not text: a zero byte at position {position:,} (a binary file, or UTF-16 without a "
                "byte-order mark)",
                f"if it is UTF-16: `encoding` UTF-16LE; or convert it first: {_iconv(name, 'UTF-16LE', program)}",
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
