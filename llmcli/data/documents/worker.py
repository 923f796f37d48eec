"""Reads documents, archives, compressed files and Parquet tables in a separate process: `main` reads requests
from standard input and streams the contents back, in the frames of data/child_process.py.

The file is untrusted: it may try to fill the memory or the disk, or never end. This process therefore has
limits and may die at any time; reader.py then starts a new one.

A request is {"path": PATH, "name": NAME, "reading": OPTIONS, "after": POSITION, "limits": {}}, where OPTIONS
are `ReadOptions`. The answer has these frames for each document or other file after POSITION (null: for all):

    {"at": POSITION, "name": NAME, "kind": KIND, "bytes": SIZE, "content": SIZE}
    {"data": SIZE} and the bytes, several times
    {"end": PROBLEM, "skipped": {REASON: COUNT}, "data": SIZE} and the bytes

NAME is the name of the file, followed by the path in the archive. A POSITION is a list of numbers: of the
member in the archive, of the member in a nested archive, and so on, and of the document in a collection. The
data are text in UTF-8; for a Parquet table, the lines of `table_lines`; for any other file (KIND is ""), its
content of "content" bytes (0 if unknown). A frame {"at": POSITION, "name": NAME} precedes each file in an
archive. The last frame is {"done": PROBLEM}, where PROBLEM prevented reading the rest of the file. A PROBLEM
is one line for users.
"""

import contextlib
import importlib
import itertools
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llmcli import units
from llmcli.data.child_process import WriteFrame, answer_requests, end_after
from llmcli.data.documents.compressed import content_size, decompressed
from llmcli.data.documents.extracted import Extracted, ExtractionError, File, SkippedParts
from llmcli.data.regular_file import open_regular
from llmcli.data.text import file_types
from llmcli.data.text.file_types import START_BYTES, FileType, compression
from llmcli.data.text.temporary_files import spooled
from llmcli.errors import LLMError, missing_extra

# where a file is in an archive, or a document in a collection
Position: TypeAlias = list[int]
_FRAME_BYTES = 1 << 16  # text per frame
_MAX_PROBLEM = 300  # characters
_READ_IN_ORDER = ("archives", "warc")  # modules that need no temporary copy of a compressed file
_MAX_MEDIA_TYPE = 200  # bytes of the member "mimetype"


@dataclass(frozen=True)
class FileLimits:
    """Limits for one file."""

    memory: int = 1 << 30  # bytes of this process, where the system can limit it
    stalled_seconds: float = 60.0  # without output
    processor_seconds: float = 300.0  # per document ...
    bytes_per_second: int = 5_000_000  # ... and more for a large document, at this speed
    depth: int = 3  # archives in archives
    members: int = 100_000  # files in an archive, including nested ones, or documents in a collection ...
    bytes_per_member: int = 1000  # ... or more, if the file has this many bytes per member
    bytes: int = 1 << 34  # text and unpacked content ...
    usual_ratio: int = 20  # ... or this many times the size of the file, if that is more
    # text and unpacked content / size of the file (in an archive: its stored size) ...
    ratio: int = 200
    unpacked_bytes: int = 32_000_000  # ... above this size ...
    # ... and for an archive above this size, so that several files in it may exceed theirs
    archive_bytes: int = 256_000_000


class _LimitError(Exception):
    """Stops reading a file, or a file in an archive; documents that were already read are kept."""

    def __init__(self, name: str, problem: str, max_taken: float = math.inf) -> None:
        self.name = name  # the file that exceeds its limit
        self.problem = f"{name} {problem}"
        self.max_taken = max_taken  # maximum bytes since the beginning of the answer


def main() -> None:
    answer_requests(_answer, FileLimits.memory)


def _answer(request: dict[str, Any], write: WriteFrame) -> dict[str, str]:
    """Send the contents of a file, and return the last frame."""
    try:
        file = open_regular(Path(request["path"]))
    except OSError as error:
        return {"done": f"{request['name']} cannot be read: {error.strerror or error}"}
    with file:
        size = os.fstat(file.fileno()).st_size
        return {"done": _read(_AnswerWriter(write, request, size), file, request["name"], [], size)}


class _AnswerWriter:
    """Writes the frames of an answer, except for documents that were read before, and enforces the limits."""

    def __init__(self, write: WriteFrame, request: dict[str, Any], file_bytes: int) -> None:
        self._write = write
        self.limits = FileLimits(**request["limits"])
        # with "plain", text with markup is sent as it is, and tables are not read
        self.reading: dict[str, Any] = request["reading"]
        self._name = request["name"]
        self._after: Position | None = request["after"]
        self._allowed_members = max(self.limits.members, file_bytes // self.limits.bytes_per_member)
        self._taken = self._members = 0
        self.begun = 0  # number of documents, including those that were read before
        # name of the document that has begun, until its end; "" if it was read before
        self.current = ""
        self._limit = _LimitError(self._name, "")  # raised when more is taken
        self._content = bytearray()  # to send in the next frame
        self._limit_processor_time(file_bytes)
        end_after(self.limits.stalled_seconds)

    @contextlib.contextmanager
    def limited(self, name: str, file_bytes: int, *, is_archive: bool = False) -> Iterator[None]:
        """In this context, limit what a file of this size may unpack to; the archive around it may allow
        less."""
        limits = self.limits
        outer = self._limit
        by_bytes = max(limits.bytes, limits.usual_ratio * file_bytes)
        by_ratio = max(
            limits.ratio * file_bytes, limits.archive_bytes if is_archive else limits.unpacked_bytes
        )
        allowed = min(by_bytes, by_ratio)
        if self._taken + allowed < outer.max_taken:
            times = f", over {limits.ratio} times its size" if by_ratio < by_bytes else ""
            problem = f"unpacks to over {units.size(allowed)}{times}"
            self._limit = _LimitError(name, problem, self._taken + allowed)
        try:
            yield
        finally:
            self._limit = outer

    def take(self, size: int) -> None:
        """Count bytes of text or unpacked content. Raises _LimitError."""
        end_after(self.limits.stalled_seconds)
        self.count(size)

    def count(self, size: int) -> None:
        """Count bytes that are read but not used; they do not extend the time limit. Raises _LimitError."""
        self._taken += size
        if self._taken > self._limit.max_taken:
            raise self._limit

    def count_member(self) -> None:
        """Count a file in an archive, or a document in a collection. Raises _LimitError."""
        end_after(self.limits.stalled_seconds)
        self._members += 1
        if self._members > self._allowed_members:
            raise _LimitError(self._name, f"has over {self._allowed_members:,} members")

    def enter(self, at: Position, name: str) -> bool:
        """Begin a file in an archive. Returns whether to read it, which is False if it was read before."""
        if self._is_before(at):
            return False
        self._send({"at": at, "name": name})
        return True

    def begin(self, at: Position, name: str, kind: str, size: int, content: int = 0) -> bool:
        """Begin a document or another file. Returns whether to read it, which is False if it was read
        before."""
        self.begun += 1
        self.current = "" if self._is_before(at) else name
        if self.current:
            self._limit_processor_time(size)
            self._send({"at": at, "name": name, "kind": kind, "bytes": size, "content": content})
        return bool(self.current)

    def _is_before(self, at: Position) -> bool:
        """Return whether a position was handled by an earlier process: it is neither after the position in
        the request nor an archive that contains it."""
        after = self._after
        return after is not None and at <= after and (at == after or after[: len(at)] != at)

    def add(self, content: bytes) -> None:
        """Send a part of the content of a document or another file."""
        self.take(len(content))
        if self.current:
            self._content += content
            if len(self._content) >= _FRAME_BYTES:
                self._send({})

    def end(self, problem: str = "", skipped: SkippedParts | None = None) -> None:
        """End the document or other file that has begun."""
        if self.current:
            self._send({"end": problem, "skipped": skipped or {}})
        self.current = ""

    def _send(self, header: dict[str, Any]) -> None:
        seconds_left = end_after(0)  # no limit while sending: the parent may be slow or suspended
        self._write(header | {"data": len(self._content)}, self._content)
        self._content.clear()
        end_after(seconds_left)

    def _limit_processor_time(self, file_bytes: int) -> None:
        """Make the system, if it can, end this process after the processor time that a file of this size may
        take."""
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = self.limits.processor_seconds + file_bytes / self.limits.bytes_per_second
            limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _read(answer: _AnswerWriter, file: File, name: str, at: Position, size: int) -> str:
    """Send the text or document in a file, or the contents of an archive. Returns the problem that prevented
    reading all of it, or "". Raises _LimitError if the archive around it exceeds a limit."""
    begun = answer.begun
    try:
        _read_file(answer, file, name, at, size)
        return ""
    except BrokenPipeError:
        raise
    except _LimitError as error:
        if answer.current not in ("", error.name):
            answer.end(f"{answer.current} is not read: {error.problem}")
        if error.name != name:
            raise
        is_kept = answer.begun > begun and not answer.current
        problem = error.problem + ("; the rest is skipped" if is_kept else "")
    except LLMError as error:
        problem = str(error)
    except Exception as error:
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError):
            text = f"needs over {FileLimits.memory >> 20:,} MB of memory"
        elif not isinstance(error, ExtractionError):
            text = f"is damaged ({text or type(error).__name__})"
        text = text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}..."
        problem = f"{answer.current or name} {text}"
    if not answer.current:
        return problem
    answer.end(problem)
    return ""


def _read_file(answer: _AnswerWriter, file: File, name: str, at: Position, size: int) -> None:
    """Like `_read`, but raises the exceptions. A file in an archive can only be read forwards."""
    content = file
    unpacked = 0
    start = file.read(START_BYTES)
    with contextlib.ExitStack() as stack:
        if program := compression(start):
            if at:
                with answer.limited(name, size):
                    content = stack.enter_context(_spooled(answer, file, start))
            content.seek(0)
            unpacked = content_size(name, content, program)
            content = stack.enter_context(decompressed(name, content, program))
            start = content.read(START_BYTES)
        known = file_types.recognize(name, start)
        if known and known.is_text and answer.reading["plain"]:
            known = None
        is_archive = known is not None and known.module == "archives"
        stack.enter_context(answer.limited(name, size, is_archive=is_archive))
        if known is None:
            if problem := file_types.describe_binary(name, start):
                _refuse(answer, name, at, problem)
            elif answer.begin(at, name, "", size, unpacked):
                for block in itertools.chain([start], _blocks(content)):
                    answer.add(block)
                answer.end()
            return
        is_read_in_order = known is not file_types.ZIP and known.module in _READ_IN_ORDER
        if (program and not is_read_in_order) or (at and not program):
            content = stack.enter_context(_spooled(answer, content, start))
        content.seek(0)
        if known is file_types.ZIP:
            known = _zip_type(content)
            is_archive = known is file_types.ZIP
            stack.enter_context(answer.limited(name, size, is_archive=is_archive))
        if is_archive:
            _read_members(answer, content, name, at)
        else:
            _read_document(answer, content, name, at, known, size)


def _read_members(answer: _AnswerWriter, file: File, name: str, at: Position) -> None:
    from llmcli.data.documents import archives

    if len(at) == answer.limits.depth:
        raise ExtractionError(f"is an archive inside {len(at)} others and is not read; unpack it first")
    skipped = Counter[str]()
    is_empty = True
    for number, (member, content, size) in enumerate(archives.members(file, skipped, answer.count)):
        answer.count_member()
        if file_types.is_hidden(member.split("/")):
            continue
        is_empty = False
        inner = f"{name}/{member}"
        place = [*at, number]
        # a problem with one file does not affect the next ones
        if answer.enter(place, inner) and (problem := _read(answer, content, inner, place, size)):
            _send_problem(answer, inner, place, problem)
    if skipped:
        counts = ", ".join(f"{reason} ({number:,})" for reason, number in skipped.items())
        _send_problem(answer, name, at, f"{name} has members that cannot be read: {counts}")
    elif is_empty:
        raise ExtractionError("has no files to read")


def _read_document(
    answer: _AnswerWriter, file: File, name: str, at: Position, known: FileType, size: int
) -> None:
    """Send a document, a table, or each document in a collection."""
    skipped = Counter[str]()  # since the last text
    if known is file_types.TABLE and not answer.reading["plain"]:
        from llmcli.data.files import table_lines

        blocks: Extracted = table_lines(name, file, answer.reading)
    elif known is file_types.TABLE or not known.module:
        _refuse(answer, name, at, file_types.describe(name, known))
        return
    else:
        blocks = _extracted(name, file, skipped, known)
    skipped_in_document = Counter[str]()
    numbers = itertools.count()
    for block in itertools.chain([("", size)], blocks):
        if isinstance(block, str):
            # NUL is not text; text from JSON may have lone surrogates
            answer.add(block.replace("\0", "").encode("utf-8", "replace"))
            skipped_in_document.update(skipped)
            skipped.clear()
            continue
        if number := next(numbers):
            answer.end("", +skipped_in_document)
            answer.count_member()
            skipped_in_document.clear()
        place = [*at, number] if known.is_collection else at
        name_in_collection, document_bytes = block
        inner = f"{name}/{name_in_collection}".rstrip("/")
        if not (answer.begin(place, inner, known.kind, document_bytes) or known.is_collection):
            return
    answer.end("", skipped_in_document + skipped)


def _refuse(answer: _AnswerWriter, name: str, at: Position, description: str) -> None:
    """Report the type of a file that is not read; without advice if it is in an archive."""
    description = description.partition("; ")[0] if at else description
    _send_problem(answer, name, at, f"{name} {description}")


def _send_problem(answer: _AnswerWriter, name: str, at: Position, problem: str) -> None:
    if answer.begin(at, name, "", 0):
        answer.end(problem)


def _spooled(answer: _AnswerWriter, content: File, start: bytes) -> File:
    """Return a seekable file with `start` and the rest of a stream."""

    def blocks() -> Iterator[bytes]:
        yield start
        for block in _blocks(content):
            answer.take(len(block))
            yield block

    return spooled(blocks())


def _extracted(name: str, file: File, skipped: SkippedParts, known: FileType) -> Extracted:
    """Extract the text of a document. Raises LLMError if a package is missing."""
    try:
        yield from importlib.import_module(f"llmcli.data.documents.{known.module}").extract(file, skipped)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        as_text = "; or `plain` to read it as it is" if known.is_text else ""
        raise LLMError(f"{missing_extra(f'reading {name}', package, 'documents')}{as_text}") from error


def _blocks(file: File) -> Iterator[bytes]:
    while block := file.read(_FRAME_BYTES):
        yield block


def _zip_type(file: File) -> FileType:
    """Return the type of a ZIP archive. If it is damaged, archives.py reports the problem."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            media_type = b""
            if "mimetype" in names:
                with archive.open("mimetype") as member:
                    media_type = member.read(_MAX_MEDIA_TYPE)
            return file_types.recognize_zip(names, media_type.decode("ascii", "replace").strip())
    except MemoryError:
        raise
    except Exception:
        return file_types.ZIP
    finally:
        file.seek(0)
