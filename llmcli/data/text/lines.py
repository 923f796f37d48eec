"""The lines of a text file that may be compressed (gzip, zstd) and in UTF-8 or UTF-16.

Unlike documents.py, which reads plain text, it names the line in errors and reads a file once.
Standard library only, but for zstd, which Python has from 3.14 on; before, an extra brings it.
"""

import contextlib
import hashlib
import itertools
import shlex
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, cast

from llmcli.data.text.documents import (
    BLOCK_BYTES,
    NotTextError,
    OnRead,
    byte_order_mark,
    decode,
    decompressed,
    ignore,
    open_regular_file,
)
from llmcli.errors import LLMError, missing_extra

_ZSTD = b"\x28\xb5\x2f\xfd"  # the first bytes of such a file


class MissingZstdError(LLMError):
    """No library for zstd is installed."""


class TextLines:
    """Iterates over the lines of a text, without their ends.

    A line ends at "\\n" alone, so that U+2028, a form feed and a lone carriage return are characters of a line; the
    carriage return of "\\r\\n" stays too. Raises LLMError with the number of the line that is not text.
    """

    def __init__(self, name: str, file: IO[bytes], read_errors: tuple[type[Exception], ...], on_read: OnRead) -> None:
        self.name, self._on_read = name, on_read
        self._hash = hashlib.sha256()
        self._peeked: deque[str] = deque()
        self._error: LLMError | None = None  # that ended the text while lines were peeked at
        pieces = self._decode(self._blocks(file), read_errors)
        self.start = ""  # of the text: what was decoded first, some kilobytes or more, unless the text is shorter
        try:
            self.start = next(pieces, "")
        except LLMError as error:
            self._error = error
        self._lines = _split(itertools.chain([self.start], pieces))

    @property
    def sha256(self) -> str:
        """The hash of the decompressed file, after the last line was read."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._peeked:
            return self._peeked.popleft()
        if self._error:
            raise self._error
        return next(self._lines)

    def peek(self, count: int) -> list[str]:
        """The next lines, which iteration returns again: fewer than `count` at the end, and before what is no text."""
        while len(self._peeked) < count and not self._error:
            try:
                self._peeked.append(next(self._lines))
            except StopIteration:
                break
            except LLMError as error:
                self._error = error
        return list(itertools.islice(self._peeked, count))

    def split_at_carriage_returns(self) -> None:
        """In a text of one line, as old programs for the Mac write it, let each carriage return end a line."""
        if len(self.peek(2)) == 1:
            self._peeked.extend(self._peeked.pop().removesuffix("\r").split("\r"))

    def _blocks(self, file: IO[bytes]) -> Iterator[bytes]:
        """Blocks that are not empty, the first long enough for a byte-order mark, up to a damaged part."""
        read: Callable[[int], bytes] = cast(Any, file).read1  # all files that are opened here have it
        block = b""
        while more := read(BLOCK_BYTES):
            self._hash.update(more)
            self._on_read(self.name, len(more))
            block += more
            if len(block) >= 4:
                yield block
                block = b""
        if block:
            yield block

    def _decode(self, blocks: Iterator[bytes], read_errors: tuple[type[Exception], ...]) -> Iterator[str]:
        encoding, newlines = "utf-8", 0
        try:
            start = next(blocks, b"")
            mark, encoding = byte_order_mark(start)
            for text in decode(itertools.chain([start[len(mark) :]], blocks), encoding):
                newlines += text.count("\n")
                yield text
            return
        except NotTextError as error:
            problem = "a zero byte, which is not text; remove it"
            if error.byte is not None and not error.follows_zero:
                problem = (f"byte 0x{error.byte:02x} is not {encoding.upper()}; convert the file first: "
                           f"iconv -f ENCODING -t UTF-8 (ENCODING: ISO-8859-1, SHIFT_JIS, ...)")  # fmt: skip
        except read_errors as error:
            problem = f"cannot be read: {error}"
        raise LLMError(f"{self.name} line {newlines + 1:,}: {problem}")


def _split(pieces: Iterator[str]) -> Iterator[str]:
    """Lines of a text that comes in pieces; after its last line end there is no line."""
    unfinished: list[str] = []
    for piece in pieces:
        *complete, rest = piece.split("\n")
        if complete:
            yield "".join([*unfinished, complete[0]])
            yield from complete[1:]
            unfinished = []
        unfinished.append(rest)
    if last := "".join(unfinished):
        yield last


@contextlib.contextmanager
def open_lines(name: str, path: Path, on_read: OnRead = ignore) -> Iterator[TextLines]:
    """The lines of a file, decompressed and decoded. A file that is no text has no line, and an error in its place.

    Raises LLMError if the file cannot be opened, MissingZstdError if it is zstd.
    """
    with open_regular_file(name, path) as file, decompressed(name, file) as (content, is_gzip):
        if is_gzip or not file.peek(4).startswith(_ZSTD):  # type: ignore[attr-defined]
            yield TextLines(name, content, (OSError, EOFError, zlib.error), on_read)
            return
        zstd = _import_zstd(name)
        with zstd.open(file) as unpacked:
            yield TextLines(name, unpacked, (OSError, EOFError, zstd.ZstdError), on_read)


def _import_zstd(name: str) -> ModuleType:
    """Python's own module, or the package that has the same for older versions."""
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            problem = missing_extra(f"reading {name}", "backports.zstd", "zstd")
            raise MissingZstdError(f"{problem}; or unpack it: zstd -d {shlex.quote(name)}") from error
    module: ModuleType = zstd
    return module
