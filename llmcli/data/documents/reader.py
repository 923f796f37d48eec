"""Reads documents, archives, compressed files and tables in several child processes, which run worker.py.

For each process, a thread appends the text that it sends to a temporary file, so that memory does not grow
with the text, and files can be read ahead. If a process dies or hangs, another one continues after the
document.
"""

import math
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from llmcli.config import cpu_cores
from llmcli.data.child_process import ChildProcess, Frame, NotStartedError
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.documents.worker import FileLimits, Position
from llmcli.data.files import ConversationFile, read_records
from llmcli.data.text import file_types
from llmcli.data.text.decoding import Document, OnRead, Stored, TextDigest, display_name
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, check_temporary_space
from llmcli.errors import LLMError

LIMITS = FileLimits()
_MODULE = "llmcli.data.documents.worker"
_WAKE_SECONDS = 0.25  # between two checks for Ctrl-C and for silent processes
_SPARE_SECONDS = 30.0  # after the time limit at which a process should have ended itself
_MAX_RESTARTS = 10  # restarts after crashes while one archive is read

Content: TypeAlias = Document | ConversationFile
ReadRecords: TypeAlias = Callable[..., Content]  # `read_records` with the options of a reader

_idle: list[ChildProcess] = []  # at most one: starting it takes longer than reading a small document


@dataclass
class PendingFile:
    """A file to read, and its contents when it is done."""

    name: str  # as the user wrote it
    path: Path
    reading: ReadOptions
    is_compressed: bool
    contents: list[Content] = field(default_factory=list)
    # (name of a file, line that says why it is not read)
    problems: list[tuple[str, str]] = field(default_factory=list)
    # text rather than a document or an archive; a problem with text that the user named is an error
    is_text: bool = False
    future: "futures.Future[None]" = field(default_factory=futures.Future)


class DocumentReader:
    """Reads files in child processes."""

    def __init__(self, reading: ReadOptions, *, text_only: bool = False) -> None:
        self._reading = reading
        self.read_records = partial(read_records, reading=reading, text_only=text_only)
        self._executor = futures.ThreadPoolExecutor(cpu_cores())
        self._events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()  # arguments of OnRead
        self._closed = threading.Event()
        self._readers: list[_ProcessReader] = []
        self._free: deque[_ProcessReader] = deque()  # readers without a file

    def submit(self, name: str, path: Path, start: bytes, *, plain: bool) -> PendingFile:
        """Start reading a file that begins with these bytes. With `plain`, text with markup is read as plain
        text, and tables are not read."""
        reading = replace(self._reading, plain=plain)
        pending = PendingFile(display_name(name), path, reading, bool(file_types.compression(start)))
        pending.future = self._executor.submit(self._read, pending)
        return pending

    def _read(self, pending: PendingFile) -> None:
        try:
            reader = self._free.pop()
        except IndexError:
            reader = _ProcessReader(self.read_records, self._events, self._closed)
            self._readers.append(reader)
        reader.read(pending)
        self._free.append(reader)

    def wait(self, pending: PendingFile, on_read: OnRead) -> None:
        """Wait for a file. `on_read` receives the progress of all files, and may raise ReadingEndsError."""
        is_done = False
        while not is_done:
            is_done = bool(futures.wait([pending.future], _WAKE_SECONDS).done)
            while not self._events.empty():
                on_read(*self._events.get())
            for reader in self._readers:
                reader.end_if_silent(LIMITS.stalled_seconds + _SPARE_SECONDS)
        pending.future.result()

    def __enter__(self) -> "DocumentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._closed.set()
        for reader in self._readers:
            reader.end_if_silent()
        self._executor.shutdown()
        for reader in self._readers:
            if reader.child.is_running and not _idle:
                _idle.append(reader.child)
            else:
                reader.child.stop()


def needs_child(name: str, start: bytes, *, plain: bool) -> bool:
    """Return whether a file that begins with these bytes is read by a child process: any file except plain
    text. With `plain`, text with markup counts as plain text."""
    known = file_types.recognize(name, start)
    return bool(file_types.compression(start)) or (known is not None and not (plain and known.is_text))


class _ProcessReader:
    """A child process, the copy of the texts that it has sent, and the file that it reads."""

    def __init__(
        self,
        read_records: ReadRecords,
        events: "queue.SimpleQueue[tuple[str, int]]",
        closed: threading.Event,
    ) -> None:
        self._read_records = read_records
        self._events = events
        self._copy = TextCopy()
        try:
            self.child = _idle.pop()
        except IndexError:
            self.child = ChildProcess(_MODULE)
        self._last_sent_at = 0.0  # time of the last frame from the process; 0 while it is idle
        self._closed = closed  # set to end the reading
        self._pending: PendingFile
        # position of the current document, or else of the archive or collection around it
        self._position: Position = []
        # paths in the archive: of the archives around the item at this position, then of the item
        self._members = [""]

    @property
    def _member(self) -> str:
        return self._members[len(self._position)]

    @property
    def _name(self) -> str:
        return f"{self._pending.name}/{self._member}".rstrip("/")

    def end_if_silent(self, seconds: float = 0.0) -> None:
        """Kill the process if it reads a file, and has sent nothing for over `seconds`."""
        last_sent_at = self._last_sent_at
        if last_sent_at and time.monotonic() - last_sent_at >= seconds:
            self.child.kill()

    def read(self, pending: PendingFile) -> None:
        self._pending = pending
        self._last_sent_at = time.monotonic()
        try:
            self._read_all()
        except BaseException:
            self.child.stop()
            raise
        finally:
            self._last_sent_at = 0.0
            del self._pending  # its texts are in an open file

    def _read_all(self) -> None:
        """Read a file. If the process ends, continue after the document (or file in an archive) at which it
        ended."""
        pending = self._pending
        after: Position | None = None
        for restarts in range(1 + _MAX_RESTARTS):
            # all files of an archive together may take twice the time of a single file
            limits = replace(LIMITS, stalled_seconds=LIMITS.stalled_seconds / 2**restarts)
            self._position = []
            self._members = [""]
            request = {
                "path": str(pending.path.absolute()),
                "name": pending.name,
                "reading": asdict(pending.reading),
                "after": after,
                "limits": asdict(limits),
            }
            try:
                self._last_sent_at = time.monotonic()  # a process that starts has not been silent
                self.child.start()
                self._check_open()  # otherwise, `end_if_silent` sees this process
                self._receive(self.child.frames(request))
                return
            except NotStartedError as error:
                raise ReadingEndsError(
                    "the process that reads documents did not start; is there enough memory?"
                ) from error
            except EOFError:
                # the beginning of the item at this position
                is_kept = any(content.member.startswith(self._member) for content in pending.contents)
                problem = _reason(self.child.stop(), limits, is_kept)
            if self._closed.is_set():
                return
            self._add_problem(f"{self._name} {problem}")
            after = self._position
            if not after:
                return
        pending.problems.append(
            (
                pending.name,
                f"{pending.name} crashed the reader {1 + _MAX_RESTARTS} times; the rest is skipped",
            )
        )

    def _on_read(self, name: str, size: int) -> None:
        self._last_sent_at = time.monotonic()
        self._check_open()
        self._events.put((name, size))

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ReadingEndsError("reading was stopped")

    def _receive(self, frames: Iterator[Frame]) -> None:
        """Receive all contents. Raises EOFError if the process ends."""
        is_begun = False
        for header, _ in frames:
            if "done" in header:
                break
            self._position = header["at"]
            self._members[len(self._position) :] = [header["member"]]
            self._on_read(self._name, 0)
            if "kind" in header:
                is_begun = True
                self._receive_content(header, frames)
                self._position = self._position[:-1]
        if header["done"]:
            self._pending.problems.append((self._pending.name, header["done"]))
            self._pending.is_text = not is_begun and self._pending.is_compressed

    def _receive_content(self, begin: dict[str, Any], frames: Iterator[Frame]) -> None:
        """Receive a document, a table or another file."""
        kind = begin["kind"]
        offset = self._copy.size
        text = TextDigest(self._copy)
        is_document = kind not in ("", file_types.TABLE.kind)
        if not is_document:
            check_temporary_space(self._name, begin["content"])
            self._pending.is_text = not self._member
        add = text.add if is_document else self._copy.append
        try:
            for end, data in frames:
                self._on_read(self._name, len(data))
                if "end" in end:
                    break
                add(data)
        except EOFError:
            if is_document and text.size:
                self._add_document(begin, offset, text, {})
            else:
                self._copy.truncate(offset)
            raise
        problem = end["end"]
        skipped = end["skipped"]
        # the documents of a collection come after it
        if is_document and not text.size and (skipped or kind not in file_types.COLLECTION_KINDS):
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in skipped.items())
            problem = problem or f"{self._name} has no text" + (f" ({reasons})" if reasons else "")
        if problem:
            self._copy.truncate(offset)
            self._add_problem(problem)
        elif not is_document:
            self._read_content(begin["bytes"], Stored(offset, is_table=bool(kind)))
        elif text.size:
            self._add_document(begin, offset, text, skipped)

    def _add_document(
        self, begin: dict[str, Any], offset: int, text: TextDigest, skipped: Mapping[str, int]
    ) -> None:
        self._pending.contents.append(
            Document(
                self._name,
                self._pending.path,
                text.size,
                text.sha256.hexdigest(),
                offset,
                self._copy,
                characters=text.characters,
                member=self._member,
                kind=begin["kind"],
                file_bytes=begin["bytes"],
                skipped=tuple(skipped.items()),
            )
        )

    def _read_content(self, file_bytes: int, content: Stored) -> None:
        """Read a table or a file that may be text; `file_bytes` is the size of the file, or in an archive its
        packed size."""
        try:
            content_read = self._read_records(
                self._name, self._pending.path, content, copy=self._copy, on_read=self._on_read
            )
        except ReadingEndsError:
            raise
        except LLMError as error:
            self._copy.truncate(content.offset)
            self._add_problem(str(error))
        else:
            file_bytes = content_read.file_bytes if self._member else file_bytes
            self._pending.contents.append(replace(content_read, member=self._member, file_bytes=file_bytes))

    def _add_problem(self, problem: str) -> None:
        self._pending.problems.append((self._name, problem))


def _reason(status: int, limits: FileLimits, is_kept: bool) -> str:
    """Explain why a process ended with this exit status. `is_kept` says whether the beginning of the document
    is kept."""
    reason = f"is damaged, or needs over {limits.memory >> 20:,} MB of memory"
    if status == -getattr(signal, "SIGALRM", math.inf):
        reason = f"timed out after {limits.stalled_seconds:g} s without output"
    elif status == -getattr(signal, "SIGXCPU", math.inf):
        reason = "takes too much processor time"
    return reason + ("; the rest is skipped" if is_kept else "")
