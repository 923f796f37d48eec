"""Reads documents, archives, compressed files and Parquet tables in a separate process: `main` reads requests
from standard input and streams the contents back.

The file is untrusted: it may try to fill the memory or the disk, or never end. This process therefore has
limits and may end at any time; reader.py then starts another.

A request is a line of JSON: {"path": PATH, "name": NAME, "reading": OPTIONS, "skip": N, "without": [MEMBER,
...], "limits": {}}, where OPTIONS are `ReadOptions`, or null to read whole texts. The answer has these frames
for each document, or other file, except the first N and those in the members "without":

    {"begin": MEMBER, "kind": KIND, "bytes": SIZE, "program": PROGRAM, "content": SIZE}
    {"data": SIZE} and the bytes, several times
    {"end": PROBLEM, "missing": PACKAGE, "skipped": {REASON: COUNT}}

MEMBER is the path in the archive. The data are text in UTF-8; for a Parquet table, the lines of
`table_lines`; for another file, where KIND is "", its content, decompressed by PROGRAM to SIZE bytes (0 if
unknown). The last frame is {"done": PROBLEM}, where PROBLEM prevented reading the rest of the file. A PROBLEM
is a line for users. Before and after each file in an archive there is a frame {"enter": MEMBER, "begun": N},
where MEMBER is "" after it, and N the number of documents so far.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmcli import units
from llmcli.data.child_process import become_child, end_after
from llmcli.data.documents.compressed import content_size, decompressed
from llmcli.data.documents.extracted import Extracted, ExtractionError, Part, Skipped
from llmcli.data.regular_file import open_regular
from llmcli.data.text import file_types
from llmcli.data.text.file_types import START_BYTES, FileType, compression
from llmcli.data.text.temporary_files import spooled
from llmcli.errors import LLMError

if TYPE_CHECKING:
    from llmcli.data.documents.archives import Member

_FRAME_BYTES = 1 << 16  # text per frame
_MAX_PROBLEM = 300  # characters
_READ_IN_ORDER = ("archives", "warc")  # modules that need no temporary copy of a compressed file
_MAX_MEDIA_TYPE = 200  # bytes of the member "mimetype"


@dataclass(frozen=True)
class Limits:
    """Limits for one file."""

    memory: int = 1 << 30  # bytes of this process, if the system can limit it
    stalled_seconds: float = 60.0  # without any text
    processor_seconds: float = 300.0  # per document ...
    bytes_per_second: int = 5_000_000  # ... and more for a large one, at this speed
    depth: int = 3  # archives in archives
    members: int = 100_000  # files in an archive, including archives in it, or documents in a collection ...
    bytes_per_member: int = 1000  # ... or more in a file with this many bytes for each
    bytes: int = 1 << 34  # text and unpacked content ...
    usual_ratio: int = 20  # ... or this times the size of the file, if that is more
    # text and unpacked content / size of the file, or of a file in an archive as it is stored ...
    ratio: int = 200
    unpacked_bytes: int = 1 << 25  # ... above this size ...
    # ... and of an archive above this one, so that several files in it may exceed theirs
    archive_bytes: int = 1 << 28


@dataclass(frozen=True)
class _Bound:
    """How much may be taken for a file, counted from the beginning of the answer."""

    name: str
    bytes: float = math.inf
    problem: str = ""  # if it is more


class _LimitError(Exception):
    """Stops the reading of a file, or of a file in an archive; the documents read before are kept."""

    def __init__(self, name: str, problem: str, rest: str = "what follows is not read") -> None:
        self.name = name  # of the file that exceeds its limit
        self.problem = f"{name} {problem}"
        self.rest = rest
        self.is_reported = False


def main() -> None:
    with become_child(Limits.memory) as answers, contextlib.suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            request = json.loads(line)
            end_after(request["limits"]["stalled_seconds"])
            answer = _Answer(answers, Limits(**request["limits"]), request["name"], request["skip"])
            answer.done(_problem_of(request, answer))
            end_after(0)


def _problem_of(request: dict[str, Any], answer: "_Answer") -> str:
    """Read a file. Returns the problem that prevented reading all of it, or ""."""
    name = request["name"]
    try:
        file = open_regular(Path(request["path"]))  # closed below; errors of reading have another message
    except OSError as error:
        return f"{name} cannot be read: {error.strerror or error}"
    with file:
        answer.start(file.seek(0, io.SEEK_END))
        reader = _FileReader(answer, request["reading"], request["without"])
        return answer.problem_of(name, lambda: reader.read(file, name, "", 0))


def _problem(name: str, error: Exception, limits: Limits) -> str:
    """Describe an error in one line."""
    if isinstance(error, LLMError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{name} needs over {limits.memory >> 20:,} MB of memory"
    text = " ".join(str(error).split())
    if not isinstance(error, ExtractionError):
        text = f"is damaged ({text or type(error).__name__})"
    return f"{name} {text if len(text) <= _MAX_PROBLEM else f'{text[:_MAX_PROBLEM]}...'}"


class _Answer:
    """Writes the frames of an answer, but not those of documents that were read before, and enforces the
    limits."""

    def __init__(self, file: IO[bytes], limits: Limits, name: str, skip: int) -> None:
        self._file = file
        self.limits = limits
        self._name = name
        self._skip = skip
        self._taken = self._begun = self._members = self._allowed_members = 0
        self._bound = _Bound(name)
        self._texts: list[str] = []
        self._size = 0
        self._is_skipping = False

    def start(self, file_bytes: int) -> None:
        """Begin a file of this size."""
        self._allowed_members = max(self.limits.members, file_bytes // self.limits.bytes_per_member)
        self._limit_processor_time(file_bytes)

    @contextlib.contextmanager
    def limited(self, name: str, file_bytes: int, *, is_archive: bool = False) -> Iterator[None]:
        """In the block, limit what a file of this size may unpack to; what it is in may have less left."""
        limits, outer = self.limits, self._bound
        most = max(limits.bytes, limits.usual_ratio * file_bytes)
        by_ratio = max(
            limits.ratio * file_bytes, limits.archive_bytes if is_archive else limits.unpacked_bytes
        )
        allowed = min(most, by_ratio)
        if self._taken + allowed < outer.bytes:
            times = f", over {limits.ratio} times its size" if by_ratio < most else ""
            self._bound = _Bound(name, self._taken + allowed, f"unpacks to over {units.size(allowed)}{times}")
        try:
            yield
        finally:
            self._bound = outer

    def problem_of(self, name: str, read: Callable[[], None]) -> str:
        """Read a file. Returns the problem that prevented reading all of it, or "". Raises _LimitError for a
        limit of what it is in."""
        begun = self._begun
        try:
            read()
        except BrokenPipeError:
            raise
        except _LimitError as error:
            if error.name != name:
                raise
            if error.is_reported:
                return ""
            return (
                f"{error.problem}; {error.rest}"
                if self._begun > begun
                else f"{error.problem}, and is not read"
            )
        except Exception as error:
            return _problem(name, error, self.limits)
        return ""

    def take(self, size: int) -> None:
        """Count bytes of text or unpacked content. Raises _LimitError."""
        end_after(self.limits.stalled_seconds)
        self.count(size)

    def count(self, size: int) -> None:
        """Count bytes that are read and not used, which are no reason to wait longer. Raises _LimitError."""
        self._taken += size
        if self._taken > self._bound.bytes:
            raise _LimitError(self._bound.name, self._bound.problem)

    def count_member(self) -> None:
        end_after(self.limits.stalled_seconds)
        self._members += 1
        if self._members > self._allowed_members:
            rest = "those that follow are not read"
            raise _LimitError(self._name, f"has over {self._allowed_members:,} members", rest)

    def enter(self, member: str) -> None:
        self._send({"enter": member, "begun": self._begun})

    def begin(self, member: str, kind: str, size: int, program: str = "", content: int = 0) -> bool:
        """Begin a document or another file. Returns whether to read it: the first `skip` are not read
        again."""
        self._begun += 1
        self._is_skipping = self._begun <= self._skip
        if self._is_skipping:
            return False
        self._limit_processor_time(size)
        self._send({"begin": member, "kind": kind, "bytes": size, "program": program, "content": content})
        return True

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

    def end(self, problem: str = "", missing: str = "", skipped: Counter[str] | None = None) -> None:
        if self._is_skipping:
            return
        self._flush()
        self._send({"end": problem, "missing": missing, "skipped": skipped or {}})

    def done(self, problem: str) -> None:
        self._send({"done": problem})

    def _flush(self) -> None:
        if text := "".join(self._texts).replace("\0", ""):
            data = text.encode("utf-8", "replace")  # JSON may hold half a character
            self._send({"data": len(data)}, data)
        self._texts = []
        self._size = 0

    def _send(self, header: dict[str, Any], data: bytes = b"") -> None:
        seconds_left = end_after(0)  # the other process may be slow or suspended
        self._file.write(json.dumps(header).encode("ascii") + b"\n" + data)
        self._file.flush()
        end_after(seconds_left)

    def _limit_processor_time(self, file_bytes: int) -> None:
        """End this process after the processor time that a file of this size may take, if the system can do
        that."""
        with contextlib.suppress(ImportError, OSError, ValueError):
            import resource

            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = self.limits.processor_seconds + file_bytes / self.limits.bytes_per_second
            limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


class _FileReader:
    """Sends the contents of a file. With `plain` in `reading`, text with markup is sent as it is; without
    `reading`, tables are not read."""

    def __init__(self, answer: _Answer, reading: dict[str, Any] | None, without: Sequence[str]) -> None:
        self._answer = answer
        self._reading = reading
        self._without = without
        self._plain = bool(reading and reading["plain"])

    def read(self, file: IO[bytes], name: str, member: str, depth: int) -> None:
        """Send the document or the contents of the archive in a seekable file; `member` is its path in the
        archive."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        start = file.read(START_BYTES)
        file.seek(0)
        with contextlib.ExitStack() as stack:
            content, unpacked = file, 0
            if program := compression(start):
                unpacked = content_size(name, file, program)
                content = stack.enter_context(decompressed(name, file, program))
                start = content.read(START_BYTES)
                content.seek(0)
            known = file_types.recognize(name, start)
            is_archive = bool(known and known.module == "archives")
            stack.enter_context(self._answer.limited(name, size, is_archive=is_archive))
            if known is None or (self._plain and known.is_text):
                problem = file_types.describe_binary(name, start, program)
                if problem:
                    self._refuse(name, member, problem)
                elif self._answer.begin(member, "", size, program, unpacked):
                    self._send_file(content, name)
                return
            if program and (known is file_types.ZIP or known.module not in _READ_IN_ORDER):
                content = stack.enter_context(self._spooled(content))
            if known is file_types.ZIP:
                known = _zip_type(content)
                stack.enter_context(self._answer.limited(name, size, is_archive=known is file_types.ZIP))
            if known.module == "archives":
                self._read_members(content, name, member, depth)
            elif known is file_types.TABLE:
                self._send_table(content, name, member, size)
            else:
                self._send_document(content, name, member, known, size)

    def _read_members(self, file: IO[bytes], name: str, path: str, depth: int) -> None:
        from llmcli.data.documents import archives

        if depth == self._answer.limits.depth:
            raise ExtractionError(f"is an archive in {depth} others, and not read; unpack it first")
        skipped: Counter[str] = Counter()
        is_empty = True
        for member in archives.members(file, name, self._answer.count):
            self._answer.count_member()
            if isinstance(member, Skipped):
                skipped[member.reason] += member.count
            elif not file_types.is_hidden(member.name.split("/")):
                is_empty = False
                inner = f"{path}/{member.name}".lstrip("/")
                if inner not in self._without:
                    self._answer.enter(inner)
                    self._read_member(member, f"{name}/{member.name}", inner, depth + 1)
                    self._answer.enter("")
        if skipped:
            counts = ", ".join(f"{reason} ({number:,})" for reason, number in skipped.items())
            self._send_problem(path, f"{name} has what cannot be read: {counts}")
        elif is_empty:
            raise ExtractionError("holds no files to read")

    def _read_member(self, file: "Member", name: str, path: str, depth: int) -> None:
        """Send a file in an archive. A problem with it does not affect those that follow."""
        with self._answer.limited(name, file.stored_bytes):
            problem = self._answer.problem_of(
                name, lambda: self._send_member(file.content, name, path, depth)
            )
        if problem:
            self._send_problem(path, problem)

    def _send_member(self, content: IO[bytes] | ExtractionError, name: str, member: str, depth: int) -> None:
        if isinstance(content, ExtractionError):
            raise content
        start = content.read(START_BYTES)
        known = file_types.recognize(name, start)
        if compression(start) or (known and not (self._plain and known.is_text)):
            with self._spooled(content, start) as file:
                self.read(file, name, member, depth)
        elif problem := file_types.describe_binary(name, start):
            self._refuse(name, member, problem)
        elif self._answer.begin(member, "", 0):
            self._send_file(content, name, start)

    def _send_document(self, file: IO[bytes], name: str, member: str, known: FileType, size: int) -> None:
        """Send a document, or each document in a collection."""
        if not known.module:
            self._refuse(name, member, file_types.describe(name, known))
            return
        blocks = _extracted(file, name, known.module)
        part: Part | None = Part("", size)
        while part:
            if part.name:
                self._answer.count_member()
            is_read = self._answer.begin(f"{member}/{part.name}".strip("/"), known.kind, part.bytes)
            if not (is_read or known.is_collection):
                return
            name_of_part, part = f"{name}/{part.name}".rstrip("/"), None
            with self._ending(name_of_part) as skipped:
                for block in blocks:
                    if isinstance(block, Part):
                        part = block
                        break
                    if isinstance(block, Skipped):
                        skipped[block.reason] += block.count
                        self._answer.take(0)
                    else:
                        self._answer.text(block)

    def _send_table(self, file: IO[bytes], name: str, member: str, size: int) -> None:
        from llmcli.data.files import table_lines

        if self._reading is None or self._plain:
            self._refuse(name, member, file_types.describe(name, file_types.TABLE))
        elif self._answer.begin(member, file_types.TABLE.kind, size):
            with self._ending(name):
                for line in table_lines(name, file, self._reading):
                    self._answer.text(line)

    def _send_file(self, file: IO[bytes], name: str, start: bytes = b"") -> None:
        """Send the content of a file that may be text; `start` was read from it before."""
        with self._ending(name):
            for block in itertools.chain([start] if start else [], _blocks(file)):
                self._answer.data(block)

    @contextlib.contextmanager
    def _ending(self, name: str) -> Iterator[Counter[str]]:
        """Send the last frame of a document: what was skipped, or the problem. A limit of the file is raised
        again."""
        skipped: Counter[str] = Counter()
        try:
            yield skipped
        except BrokenPipeError:
            raise
        except _LimitError as error:
            error.is_reported = error.name == name
            reason = f"{error.problem}, and is not read"
            self._answer.end(reason if error.is_reported else f"{name} is not read: {error.problem}")
            raise
        except ModuleNotFoundError as error:
            self._answer.end(missing=(error.name or "").partition(".")[0])
        except Exception as error:
            self._answer.end(_problem(name, error, self._answer.limits), skipped=skipped)
        else:
            self._answer.end(skipped=skipped)

    def _refuse(self, name: str, member: str, description: str) -> None:
        """Say what a file is that is not read; without advice if it is in an archive."""
        self._send_problem(member, f"{name} {description.partition('; ')[0] if member else description}")

    def _send_problem(self, member: str, problem: str) -> None:
        if self._answer.begin(member, "", 0):
            self._answer.end(problem)

    def _spooled(self, content: IO[bytes], start: bytes = b"") -> IO[bytes]:
        """Return a seekable file with `start` and the rest of a stream."""

        def blocks() -> Iterator[bytes]:
            yield start
            for block in _blocks(content):
                self._answer.take(len(block))
                yield block

        return spooled(blocks())


def _extracted(file: IO[bytes], name: str, module: str) -> Extracted:
    """Import a module, which may need a missing package, when the first block is read."""
    yield from importlib.import_module(f"llmcli.data.documents.{module}").extract(file, name)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_FRAME_BYTES):
        yield block


def _zip_type(file: IO[bytes]) -> FileType:
    """Return the type of a ZIP archive. For a damaged one, archives.py will say what is wrong."""
    try:
        with zipfile.ZipFile(file) as archive:
            names, media_type = archive.namelist(), b""
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
