"""Reads documents, archives, compressed files and Parquet tables in a separate process: `main` reads requests
from standard input and streams the contents back, in the frames of data/child_process.py.

The file is untrusted: it may try to fill the memory or the disk, or never end. This process therefore has
limits and may die at any time; reader.py then starts a new one.

A request is {"path": PATH, "name": NAME, "reading": OPTIONS, "after": POSITION, "limits": {}}, where OPTIONS
are `ReadOptions`. The answer has these frames for each document or other file after POSITION (null: for all):

    {"at": POSITION, "member": MEMBER, "kind": KIND, "bytes": SIZE, "content": SIZE}
    {"data": SIZE} and the bytes, several times
    {"end": PROBLEM, "skipped": {REASON: COUNT}}

MEMBER is the path in the archive. A POSITION is a list of numbers: of the member in the archive, of the
member in a nested archive, and so on, and of the document in a collection. The data are text in UTF-8; for a
Parquet table, the lines of `table_lines`; for any other file (KIND is ""), its content of "content" bytes (0
if unknown). A frame {"at": POSITION, "member": MEMBER} precedes each file in an archive. The last frame is
{"done": PROBLEM}, where PROBLEM prevented reading the rest of the file. A PROBLEM is one line for users.
"""

import contextlib
import importlib
import io
import itertools
import json
import math
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llmcli import units
from llmcli.data.child_process import become_child, end_after, write_frame
from llmcli.data.documents.compressed import content_size, decompressed
from llmcli.data.documents.extracted import DocumentStart, Extracted, ExtractionError, File, SkippedParts
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
    with become_child(FileLimits.memory) as answers, contextlib.suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            request = json.loads(line)
            end_after(request["limits"]["stalled_seconds"])
            answer = _AnswerWriter(answers, request)
            problem = answer.problem_of("", _read_path, Path(request["path"]))
            end_after(0)
            write_frame(answers, {"done": problem})


def _problem(name: str, error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, LLMError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{name} needs over {FileLimits.memory >> 20:,} MB of memory"
    text = " ".join(str(error).split())
    if not isinstance(error, ExtractionError):
        text = f"is damaged ({text or type(error).__name__})"
    return f"{name} {text if len(text) <= _MAX_PROBLEM else f'{text[:_MAX_PROBLEM]}...'}"


class _AnswerWriter:
    """Writes the frames of an answer, except for documents that were read before, and enforces the limits."""

    def __init__(self, file: File, request: dict[str, Any]) -> None:
        self._file = file
        self.limits = FileLimits(**request["limits"])
        # with "plain", text with markup is sent as it is, and tables are not read
        self.reading: dict[str, Any] = request["reading"]
        self._name = request["name"]
        self._after: Position | None = request["after"]
        self._taken = self._begun = self._members = self._allowed_members = 0
        self._limit = _LimitError(self._name, "")  # raised when more is taken
        self._texts: list[str] = []
        self._size = 0
        self._is_skipping = False

    def start(self, file_bytes: int) -> None:
        """Begin a file of this size."""
        self._allowed_members = max(self.limits.members, file_bytes // self.limits.bytes_per_member)
        self._limit_processor_time(file_bytes)

    def name_of(self, member: str) -> str:
        return f"{self._name}/{member}".rstrip("/")

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

    def problem_of(self, member: str, read: Callable[..., None], *arguments: Any) -> str:
        """Call `read` for a file. Returns the problem that prevented reading all of it, or "".
        Raises _LimitError if the archive around it exceeds a limit."""
        begun = self._begun
        name = self.name_of(member)
        try:
            read(self, *arguments)
        except BrokenPipeError:
            raise
        except _LimitError as error:
            if error.name != name:
                raise
            is_kept = self._begun > begun
            return error.problem + ("; the rest is skipped" if is_kept else "")
        except Exception as error:
            return _problem(name, error)
        return ""

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

    def enter(self, at: Position, member: str) -> bool:
        """Begin a file in an archive. Returns whether to read it, which is False if it was read before."""
        if self._is_before(at):
            return False
        self._send({"at": at, "member": member})
        return True

    def begin(self, at: Position, member: str, kind: str, size: int, content: int = 0) -> bool:
        """Begin a document or another file. Returns whether to read it, which is False if it was read
        before."""
        self._begun += 1
        self._is_skipping = self._is_before(at)
        if not self._is_skipping:
            self._limit_processor_time(size)
            self._send({"at": at, "member": member, "kind": kind, "bytes": size, "content": content})
        return not self._is_skipping

    def _is_before(self, at: Position) -> bool:
        """Return whether a position was handled by an earlier process: it is neither after the position in
        the request nor an archive that contains it."""
        after = self._after
        return after is not None and at <= after and (at == after or after[: len(at)] != at)

    def text(self, text: str) -> None:
        self.take(len(text))
        if self._is_skipping:
            return
        self._texts.append(text)
        self._size += len(text)
        if self._size >= _FRAME_BYTES:
            self._flush()

    def data(self, data: bytes) -> None:
        self.take(len(data))
        self._send({"data": len(data)}, data)

    def end(self, problem: str = "", skipped: SkippedParts | None = None) -> None:
        if not self._is_skipping:
            self._flush()
            self._send({"end": problem, "skipped": skipped or {}})

    def _flush(self) -> None:
        if text := "".join(self._texts).replace("\0", ""):
            data = text.encode("utf-8", "replace")  # text from JSON may have lone surrogates
            self._send({"data": len(data)}, data)
        self._texts = []
        self._size = 0

    def _send(self, header: dict[str, Any], data: bytes = b"") -> None:
        seconds_left = end_after(0)  # no limit while sending: the parent may be slow or suspended
        write_frame(self._file, header, data)
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


def _read_path(answer: _AnswerWriter, path: Path) -> None:
    try:
        file = open_regular(path)  # closed below; errors of reading have another message
    except OSError as error:
        raise ExtractionError(f"cannot be read: {error.strerror or error}") from error
    with file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        answer.start(size)
        _read(answer, file, "", [], size)


def _read(answer: _AnswerWriter, file: File, member: str, at: Position, size: int) -> None:
    """Send the text or document in a file, or the contents of an archive. `member` is the path in the
    archive around it, which can only be read forwards."""
    name = answer.name_of(member)
    content = file
    unpacked = 0
    start = file.read(START_BYTES)
    with contextlib.ExitStack() as stack:
        if program := compression(start):
            packed = file
            if member:
                with answer.limited(name, size):
                    packed = stack.enter_context(_spooled(answer, file, start))
            packed.seek(0)
            unpacked = content_size(name, packed, program)
            content = stack.enter_context(decompressed(name, packed, program))
            start = content.read(START_BYTES)
        known = file_types.recognize(name, start)
        if known and known.is_text and answer.reading["plain"]:
            known = None
        is_archive = known is not None and known.module == "archives"
        stack.enter_context(answer.limited(name, size, is_archive=is_archive))
        if known is None:
            if problem := file_types.describe_binary(name, start):
                _refuse(answer, member, at, problem)
            elif answer.begin(at, member, "", size, unpacked):
                with _ending(answer, name, Counter()):
                    for block in itertools.chain([start], _blocks(content)):
                        answer.data(block)
            return
        is_read_in_order = known is not file_types.ZIP and known.module in _READ_IN_ORDER
        if (program and not is_read_in_order) or (member and not program):
            content = stack.enter_context(_spooled(answer, content, start))
        content.seek(0)
        if known is file_types.ZIP:
            known = _zip_type(content)
            is_archive = known is file_types.ZIP
            stack.enter_context(answer.limited(name, size, is_archive=is_archive))
        if is_archive:
            _read_members(answer, content, member, at)
        else:
            _read_document(answer, content, member, at, known, size)


def _read_members(answer: _AnswerWriter, file: File, path: str, at: Position) -> None:
    from llmcli.data.documents import archives

    if len(at) == answer.limits.depth:
        raise ExtractionError(f"is an archive inside {len(at)} others and is not read; unpack it first")
    name = answer.name_of(path)
    skipped = Counter[str]()
    is_empty = True
    for number, member in enumerate(archives.members(file, answer.count)):
        answer.count_member()
        if isinstance(member, str):
            skipped[member] += 1
        elif not file_types.is_hidden(member.name.split("/")):
            is_empty = False
            inner = f"{path}/{member.name}".lstrip("/")
            place = [*at, number]
            if answer.enter(place, inner):  # a problem with one file does not affect the next ones
                arguments = member.content, inner, place, member.stored_bytes
                if problem := answer.problem_of(inner, _read, *arguments):
                    _send_problem(answer, inner, place, problem)
    if skipped:
        counts = ", ".join(f"{reason} ({number:,})" for reason, number in skipped.items())
        _send_problem(answer, path, at, f"{name} has members that cannot be read: {counts}")
    elif is_empty:
        raise ExtractionError("has no files to read")


def _read_document(
    answer: _AnswerWriter, file: File, member: str, at: Position, known: FileType, size: int
) -> None:
    """Send a document, a table, or each document in a collection."""
    name = answer.name_of(member)
    skipped = Counter[str]()  # since the last text
    if known is file_types.TABLE and not answer.reading["plain"]:
        from llmcli.data.files import table_lines

        blocks: Extracted = table_lines(name, file, answer.reading)
    elif known is file_types.TABLE or not known.module:
        _refuse(answer, member, at, file_types.describe(name, known))
        return
    else:
        blocks = _extracted(file, skipped, known.module)
    part: DocumentStart | None = DocumentStart("", size)
    for number in itertools.count():
        if part is None:
            return
        if number:
            answer.count_member()
        place = [*at, number] if known.is_collection else at
        path = f"{member}/{part.name}".strip("/")
        is_read = answer.begin(place, path, known.kind, part.bytes)
        if not (is_read or known.is_collection):
            return
        part = None
        skipped_in_document = Counter[str]()
        with _ending(answer, answer.name_of(path), skipped_in_document, known):
            for block in blocks:
                if isinstance(block, DocumentStart):
                    part = block
                    break
                answer.text(block)
                skipped_in_document.update(skipped)
                skipped.clear()
            else:
                skipped_in_document.update(skipped)


@contextlib.contextmanager
def _ending(
    answer: _AnswerWriter, name: str, skipped: SkippedParts, known: FileType | None = None
) -> Iterator[None]:
    """Send the last frame of a document: what was `skipped`, or the problem. A _LimitError of the file around
    it is raised again."""
    try:
        yield
    except BrokenPipeError:
        raise
    except _LimitError as error:
        if error.name != name:
            answer.end(f"{name} is not read: {error.problem}")
            raise
        answer.end(error.problem)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        problem = str(missing_extra(f"reading {name}", package, "documents"))
        as_text = "; or `plain` to read it as it is" if known and known.is_text else ""
        answer.end(problem + as_text)
    except Exception as error:
        answer.end(_problem(name, error))
    else:
        answer.end("", +skipped)  # without zeros


def _refuse(answer: _AnswerWriter, member: str, at: Position, description: str) -> None:
    """Report the type of a file that is not read; without advice if it is in an archive."""
    description = description.partition("; ")[0] if member else description
    _send_problem(answer, member, at, f"{answer.name_of(member)} {description}")


def _send_problem(answer: _AnswerWriter, member: str, at: Position, problem: str) -> None:
    if answer.begin(at, member, "", 0):
        answer.end(problem)


def _spooled(answer: _AnswerWriter, content: File, start: bytes) -> File:
    """Return a seekable file with `start` and the rest of a stream."""

    def blocks() -> Iterator[bytes]:
        yield start
        for block in _blocks(content):
            answer.take(len(block))
            yield block

    return spooled(blocks())


def _extracted(file: File, skipped: SkippedParts, module: str) -> Extracted:
    """Import a module, which may need a missing package, when the first block is read."""
    yield from importlib.import_module(f"llmcli.data.documents.{module}").extract(file, skipped)


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
