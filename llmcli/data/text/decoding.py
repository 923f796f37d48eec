"""A document: a file or standard input, decoded and checked to be text.

The text is UTF-8, UTF-16 or in another encoding (encodings.py). Unless it is UTF-8 in a file, which can be
read from any position, it is decoded once into a temporary file.
"""

import codecs
import contextlib
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TypeAlias

from llmcli import units
from llmcli.data.regular_file import open_regular, reading_error
from llmcli.data.text import encodings, file_types
from llmcli.data.text.dataset_directory import TRAINING
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy
from llmcli.errors import LLMError

# receives the name of the file and the size of each block read
OnRead: TypeAlias = Callable[[str, int], None]

BLOCK_BYTES = 1 << 20  # bytes per read
CHECKED_BYTES = 1 << 16  # checked at a time, so that they stay in the processor's cache
STANDARD_INPUT = "standard input"  # name in messages

_START_BYTES = 1 << 16  # start of a text from which its format is recognized
_SAMPLE_BYTES = 1 << 14  # lines that are not ASCII, from which an encoding is recognized
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))  # bytes of a character after the first
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, because it begins with UTF-16LE's mark
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def ignore(name: str, size: int) -> None:
    """An `OnRead` that does nothing."""


class NotTextError(LLMError):
    """Bytes that are not text in the encoding that was tried. A text that ends in the middle of a character
    has `unfinished` bytes at its end."""

    def __init__(self, problem: str, unfinished: int = 0) -> None:
        if unfinished:
            advice = f"use the complete file, or remove {units.count(unfinished, 'byte')} at its end"
        else:
            advice = "name its encoding: `encoding` NAME (ISO-8859-1, Shift_JIS, UTF-16LE, ...), or "
            advice += "convert it to UTF-8 with iconv"
        super().__init__(f"{problem}; {advice}")
        self.problem = problem
        self.is_cut = unfinished > 0


class OpenFile:
    """A regular file that is open for reading, in a `with` statement."""

    def __init__(self, name: str, path: Path) -> None:
        """Raises LLMError if the file cannot be opened, or is not a regular file."""
        self.name = name
        try:
            self._file = open_regular(path)
        except OSError as error:
            raise reading_error(error, name, "a text file, or - for standard input") from error

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    @property
    def status(self) -> os.stat_result:
        return os.fstat(self._file.fileno())

    def read(self, position: int, size: int) -> bytes:
        """Read up to `size` bytes, fewer at the end of the file. Raises LLMError."""
        try:
            self._file.seek(position)
            return self._file.read(size) or b""  # None: a system file that has no data yet
        except OSError as error:
            raise reading_error(error, self.name) from error

    def read_all(self, position: int, size: int) -> bytes:
        """Like `read`, but also raises LLMError if the file has fewer bytes."""
        data = self.read(position, size)
        if len(data) < size:
            raise LLMError(f"{self.name} became shorter while it was in use; run the command again")
        return data


@dataclass(frozen=True)
class Stored:
    """Content at the end of a `TextCopy`: of a compressed file, of a file in an archive, or of a table."""

    offset: int
    is_table: bool = False  # the lines of `table_lines`


FileContent: TypeAlias = OpenFile | Stored  # the bytes of a file


@dataclass(frozen=True)
class FileFacts:
    """The facts about a file that was read, as a text or as conversations."""

    name: str  # as the user wrote it
    path: Path
    text_bytes: int  # size of the text, or of all messages, in UTF-8, without a byte-order mark
    sha256: str  # hash of the file's text; for Parquet, of its bytes
    _: KW_ONLY
    # columns that were read: of the text, the prompt and the answer, or the messages; empty for a whole text
    columns: tuple[str, ...] = ()
    all_columns: tuple[str, ...] = field(default=(), compare=False)  # including unread ones
    # one line each: how the file was read, what was left out and why
    notes: tuple[str, ...] = field(default=(), compare=False)
    member: str = ""  # path in an archive
    # path relative to the named directory, with "/", and that in an archive; for a named file, its name
    relative_name: str = ""
    encoding: str = ""  # the file's encoding, unless it is UTF-8 or given by a byte-order mark
    file_bytes: int = field(default=0, compare=False)  # size of the file
    skipped: tuple[tuple[str, int], ...] = field(default=(), compare=False)  # (what was not read, how often)
    split: str = field(default=TRAINING, compare=False)  # its split, if it belongs to a data set


@dataclass(frozen=True)
class Document(FileFacts):
    """A text file that was read once to its end."""

    offset: int = 0  # start of the UTF-8 text in the file, or in the copy
    # only for a file that is not plain UTF-8
    copy: TextCopy | None = field(default=None, repr=False, compare=False)
    # the file while its format is recognized; afterwards, it is opened again for each read
    file: OpenFile | None = field(default=None, repr=False, compare=False)
    # st_mtime_ns of the file before it was read
    changed_at: int = field(default=0, repr=False, compare=False)
    template: str = ""  # joins several columns
    kind: str = ""  # format that data/documents extracted the text from, such as "PDF"; empty for plain text
    # how the columns were chosen, or the markup that is read as text; shown to users
    detail: str = field(default="", compare=False)
    characters: int = field(default=0, compare=False)  # length of the text

    @property
    def short_name(self) -> str:
        """Name without directories and web addresses, which is recorded in model files."""
        return units.file_name(self.relative_name, self.member)

    def is_unchanged(self) -> bool:
        """Return whether the modification time is the same as at the first read."""
        try:
            return self.copy is not None or self.path.stat().st_mtime_ns == self.changed_at
        except OSError:
            return False

    def utf8(self, start: int, size: int) -> bytes:
        """Return up to `size` bytes of the UTF-8 text from a position on; characters may be cut at both
        ends."""
        with self._reader() as read:
            return read(self.offset + start, min(size, self.text_bytes - start))

    def character_end(self, position: int) -> int:
        """Return a byte position in the text, moved to the end of the character that it is inside of."""
        return position + continuation_bytes(self.utf8(position, 3))

    def text(self, start: int = 0, end: int | None = None) -> Iterator[str]:
        """Yield the text between two byte positions, in pieces; a position inside a character moves to its
        end."""
        end = self.text_bytes if end is None else min(end, self.text_bytes)
        with self._reader() as read:

            def character_end(position: int) -> int:
                following = read(self.offset + position, min(3, self.text_bytes - position))
                return position + continuation_bytes(following)

            first = character_end(min(start, end))
            last = character_end(end)
            blocks = (
                read(self.offset + position, min(BLOCK_BYTES, last - position))
                for position in range(first, last, BLOCK_BYTES)
            )
            yield from _decode(self.name, blocks, "utf-8", self.offset + first)

    @property
    def start(self) -> str:
        return "".join(self.text(0, _START_BYTES))

    def pieces(self, on_read: OnRead) -> Iterator[str]:
        """Yield the text; `on_read` is called with size 0 before each piece, so that it can stop the
        reading."""
        for piece in self.text():
            on_read(self.name, 0)
            yield piece

    def lines(self, on_read: OnRead = ignore, max_characters: float = math.inf) -> Iterator[str]:
        """Yield the lines without line ends. Only "\\n" ends a line; U+2028, form feeds and "\\r" do not.
        Reading stops at a line of over `max_characters`, which is cut off somewhere after that. `on_read` is
        called as by `pieces`."""
        unfinished: list[str] = []
        size = 0
        for piece in self.pieces(on_read):
            *complete, rest = piece.split("\n")
            if complete:
                yield "".join([*unfinished, complete[0]])
                yield from complete[1:]
                unfinished = []
                size = 0
            unfinished.append(rest)
            size += len(rest)
            if size > max_characters:
                break
        if last := "".join(unfinished):
            yield last

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Open the file or the copy; yields a function (position, size) -> bytes."""
        if self.copy is not None:
            yield self.copy.read
        elif self.file and not self.file.is_closed:
            yield self.file.read_all
        else:
            with OpenFile(self.name, self.path) as file:
                yield file.read_all


def read_document(
    name: str,
    path: Path,
    content: FileContent,
    copy: TextCopy,
    on_read: OnRead = ignore,
    encoding: str = "",
) -> Document:
    """Read a file to its end, and check that it is text. `encoding` is used if the text is not UTF-8; by
    default, the encoding is detected, if that is certain. Text in other encodings is appended to `copy` as
    UTF-8; stored content is also in `copy`. Raises LLMError with the type of the file or the position of a
    byte that is not text."""
    given = encodings.codec_of(encoding) if encoding else ""
    first = given if encodings.is_seven_bit(given) else ""
    try:
        return _read_as(first, name, path, content, copy, on_read, may_be_iso2022_jp=not given)
    except NotTextError as error:
        if error.is_cut and not given:
            raise
        utf8_error = error
    codec = "" if first else given or _recognize(name, content, copy, utf8_error, on_read)
    try:
        return _read_as(codec, name, path, content, copy, on_read)
    except NotTextError as error:
        if error.is_cut:
            raise
        if given:
            other = "name another encoding: `encoding` NAME, or remove the byte"
            raise LLMError(f"{error.problem}; {other}") from error
        raise _uncertain(utf8_error) from error


def _recognize(name: str, content: FileContent, copy: TextCopy, error: NotTextError, on_read: OnRead) -> str:
    """Return the codec of a file that is not UTF-8. Raises LLMError if it is uncertain; `error` is from
    decoding it as UTF-8."""
    sample = bytearray()  # whole lines: except in UTF-16, characters do not contain bytes of line ends
    for block in _blocks(content, copy):
        on_read(name, 0)
        if b"\0" in block:
            if not sample and (codec := encodings.utf16_codec(block)):
                return codec
            if not isinstance(error.__cause__, UnicodeDecodeError):  # the problem is the zero byte
                raise error
            raise NotTextError(
                f"{error.problem}; it has zero bytes, so it is a binary file or UTF-16"
            ) from error
        sample += b"".join(line for line in block.splitlines(keepends=True) if not line.isascii())
        if len(sample) >= _SAMPLE_BYTES:
            break
    codec = encodings.recognize(bytes(sample[:_SAMPLE_BYTES]))
    if not codec:
        raise _uncertain(error) from error
    return codec


def _uncertain(error: NotTextError) -> NotTextError:
    return NotTextError(f"{error.problem}; its encoding is uncertain")


def _blocks(content: FileContent, copy: TextCopy) -> Iterator[bytes]:
    first, source, end = (
        (content.offset, copy, copy.size) if isinstance(content, Stored) else (0, content, sys.maxsize)
    )
    for start in range(first, end, BLOCK_BYTES):
        if not (block := source.read(start, min(BLOCK_BYTES, end - start))):
            return
        yield block
        if len(block) < BLOCK_BYTES:  # the end: the next read would skip what another process appends now
            return


def _read_as(
    codec: str,
    name: str,
    path: Path,
    content: FileContent,
    copy: TextCopy,
    on_read: OnRead,
    may_be_iso2022_jp: bool = False,
) -> Document:
    """Read a document like `read_document`. `codec` ("": UTF-8) is for text without a byte-order mark."""
    file = content if isinstance(content, OpenFile) else None
    status = file and file.status
    blocks = _blocks(content, copy)
    start = next(blocks, b"")
    if may_be_iso2022_jp and encodings.is_iso2022_jp(start):
        codec = encodings.codec_of("iso2022_jp")
    mark, encoding = next(
        (known for known in _BYTE_ORDER_MARKS if start.startswith(known[0])), (b"", codec or "utf-8")
    )
    copied = encoding != "utf-8"
    offset = copy.size if copied else len(mark) + (content.offset if isinstance(content, Stored) else 0)
    text = TextDigest(copy if copied else None)
    file_bytes = len(mark)  # counted while reading, since another process may append to the file

    def counted() -> Iterator[bytes]:
        nonlocal file_bytes
        for block in itertools.chain([start[len(mark) :]], blocks):
            file_bytes += len(block)
            on_read(name, len(block) if file else 0)  # stored content was counted when it was stored
            yield block

    try:
        parts = (
            block[start : start + CHECKED_BYTES]
            for block in counted()
            for start in range(0, len(block), CHECKED_BYTES)
        )
        for piece in _decode(name, parts, encoding, len(mark)):
            text.add(piece.encode("utf-8"))
    except LLMError as error:
        if copied:
            copy.truncate(offset)
        if isinstance(error, ReadingEndsError):
            raise
        if description := file_types.describe_binary(name, start[: file_types.START_BYTES]):
            raise LLMError(f"{name} {description}") from error
        raise
    return Document(
        name,
        path,
        text.size,
        text.sha256.hexdigest(),
        offset,
        None if file and not copied else copy,
        file,
        status.st_mtime_ns if status else 0,
        encoding=encodings.name_of(encoding) if copied and not mark else "",
        file_bytes=file_bytes,
        characters=text.characters,
    )


def document_of_texts(
    name: str, path: Path, texts: Iterable[str], copy: TextCopy, separator: str = "\n\n"
) -> Document:
    """Join the texts in a file to one document, by default with blank lines, and append it to `copy`."""
    offset = copy.size
    text = TextDigest(copy)
    try:
        for number, part in enumerate(texts):
            text.add((f"{separator}{part}" if number else part).encode("utf-8"))
    except LLMError:
        copy.truncate(offset)
        raise
    return Document(name, path, text.size, text.sha256.hexdigest(), offset, copy, characters=text.characters)


class TextDigest:
    """Counts the bytes and characters of UTF-8 text and hashes it; appends it to a copy if there is one."""

    def __init__(self, copy: TextCopy | None) -> None:
        self._copy = copy
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.characters = 0

    def add(self, data: bytes) -> None:
        self.sha256.update(data)
        self.size += len(data)
        self.characters += len(data.translate(None, _CONTINUATION_BYTES))
        if self._copy is not None:
            self._copy.append(data)


def _decode(name: str, blocks: Iterable[bytes], encoding: str, first: int = 0) -> Iterator[str]:
    """Decode blocks; the first is at position `first` of the file. Raises NotTextError with the position."""
    decoder = codecs.getincrementaldecoder(encoding)()
    read = first
    # in UTF-8 only after another non-ASCII character: a single byte at the end may be a Windows-1252 letter
    may_be_cut = encoding.startswith(("utf-16", "utf-32"))
    for block in itertools.chain(blocks, [b""]):
        # position of the bytes to decode: a character may be unfinished
        start = read - len(decoder.getstate()[0])
        read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            byte = (error.object[error.start :] or b"\0")[0]
            encoding_name = encodings.name_of(encoding)
            where = f"byte 0x{byte:02x} at position {start + error.start:,}"
            if may_be_cut and not block:
                problem = f"{name} ends in the middle of a {encoding_name} character: {where}"
                raise NotTextError(problem, len(error.object) - error.start) from error
            raise NotTextError(f"{name} is not {encoding_name} text: {where}") from error
        if "\0" in text:
            position = start + len(text[: text.index("\0")].encode(encoding))
            raise NotTextError(
                f"{name} is not text: a zero byte at position {position:,} (a binary file, or UTF-16 without "
                "a byte-order mark)"
            )
        may_be_cut |= encoding == "utf-8" and not text.isascii()
        if text:
            yield text


def continuation_bytes(data: bytes) -> int:
    """Count the bytes at the beginning of a piece of UTF-8 that continue the previous character."""
    return len(data) - len(data.lstrip(_CONTINUATION_BYTES))


def display_name(name: str) -> str:
    """Return a file name as printable text: its bytes need not be UTF-8; "-" is standard input."""
    return STANDARD_INPUT if name == "-" else os.fsencode(name).decode("utf-8", "replace")
