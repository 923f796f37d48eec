"""Decoded text in a temporary file, and errors for temporary files that cannot be written."""

import contextlib
import io
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import IO

from llmcli import units
from llmcli.errors import LLMError

_SPOOLED_BYTES = 1 << 20  # larger content is stored on disk


class ReadingEndsError(LLMError):
    """Stops reading altogether, not only the file that it names."""


@contextlib.contextmanager
def temporary_file_errors(content: str) -> Iterator[None]:
    """Turn an OSError into a ReadingEndsError; `content` describes the content of the file."""
    try:
        yield
    except OSError as error:
        raise ReadingEndsError(
            f"cannot store {content} in {_temporary_directory()}: {error.strerror or error}; free some space "
            f"there, or set TMPDIR to a directory on a disk with more"
        ) from error


def _temporary_directory() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "a temporary directory"


def check_temporary_space(name: str, size: int) -> None:
    """Raise ReadingEndsError if there is no space for `size` bytes, the content of a file."""
    directory = _temporary_directory()
    try:
        free = shutil.disk_usage(directory).free
    except OSError:  # writing the file reports the error
        return
    if size > free:
        raise ReadingEndsError(
            f"{name} holds {units.size(size)} of text, and {directory} has space for {units.size(free)}; set "
            "TMPDIR to a directory on a disk with more, or read a part of it"
        )


def spooled(blocks: Iterable[bytes]) -> IO[bytes]:
    """Store blocks in memory or, if they are large, in a temporary file. Returns the file, at its
    beginning."""
    blocks = iter(blocks)
    start = bytearray()
    for block in blocks:
        start += block
        if len(start) > _SPOOLED_BYTES:
            file = tempfile.TemporaryFile(prefix="llmcli-")  # noqa: SIM115 (the caller closes it)
            file.write(start)
            file.writelines(blocks)
            file.seek(0)
            return file
    return io.BytesIO(start)


class TextCopy:
    """The UTF-8 text of several documents in one temporary file, which the system deletes with this object or
    the process, even if the process is killed. The first `append` creates it."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()  # several threads may seek and read or write
        self.size = 0

    def append(self, data: bytes) -> None:
        with temporary_file_errors("the decoded text"), self._lock:
            if self._file is None:
                # not a context manager: the file lives as long as this object
                self._file = tempfile.TemporaryFile(prefix="llmcli-", buffering=0)  # noqa: SIM115
            self._file.seek(self.size)
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self.size += len(data)

    def truncate(self, size: int) -> None:
        """Keep only the first `size` bytes, after a document turned out not to be text."""
        self.size = size
        if self._file is not None:
            with contextlib.suppress(OSError):  # the next append overwrites the rest
                self._file.truncate(size)

    def read(self, position: int, size: int) -> bytes:
        if self._file is None:
            return b""
        try:
            with self._lock:
                self._file.seek(position)
                return self._file.read(size)
        except OSError as error:
            raise ReadingEndsError(
                f"cannot read the decoded text in {_temporary_directory()}: {error.strerror or error}"
            ) from error
