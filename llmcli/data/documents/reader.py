"""Reads documents, archives, compressed files and tables in child processes, several at once; they run
worker.py.

Each process has a thread that appends what it sends to a temporary file: memory does not grow with the text,
and files may be read before their turn. If a process dies or hangs, another one continues after its document.
"""

import contextlib
import json
import math
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from llmcli.config import cpu_cores
from llmcli.data.child_process import ChildProcess
from llmcli.data.documents.worker import Limits
from llmcli.data.text import file_types
from llmcli.data.text.documents import Document, OnRead, Stored, TextDigest, display_name, peek
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, check_temporary_space
from llmcli.errors import LLMError, missing_extra

LIMITS = Limits()
_MODULE = "llmcli.data.documents.worker"
_WAKE_SECONDS = 0.25  # between checks for Ctrl-C and for silent processes
_JOIN_SECONDS = 0.05
_SPARE_SECONDS = 30.0  # after its time limit, in which a process should end itself
_MAX_RESTARTS = 10  # processes that one archive may crash

T = TypeVar("T")
# (name, path, content: None for that of the file itself, copy for its text, on_read) -> contents of a file;
# what is not stored are the lines of a table (`table_lines`)
ReadFile = Callable[[str, Path, "Stored | Iterator[bytes] | None", TextCopy, OnRead], T]


@dataclass
class Job(Generic[T]):
    """A file to read, and its contents when it is done."""

    name: str  # as the user wrote it
    path: Path
    reading: dict[str, Any] | None  # `ReadOptions`; None to read whole texts
    # (content, path in the archive or "")
    found: list[tuple["Document | T", str]] = field(default_factory=list)
    # (name of a file, line that says why it is not read)
    problems: list[tuple[str, str]] = field(default_factory=list)
    error: Exception | None = None  # stops the reading of all files
    is_text: bool = False  # not a document or an archive: a problem with a file that was named is an error
    is_done: bool = False


class DocumentReader(Generic[T]):
    """Reads files in child processes; `read_file` reads the texts and records in archives."""

    def __init__(self, read_file: "ReadFile[T]") -> None:
        self._read_file = read_file
        self._jobs: queue.SimpleQueue[Job[T] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()  # arguments of OnRead
        self._workers: list[_Worker[T]] = []

    def submit(self, name: str, path: Path, reading: dict[str, Any] | None = None) -> Job[T]:
        """Start reading a file, with `ReadOptions` if there may be records in it."""
        job: Job[T] = Job(display_name(name), path, reading)
        self._jobs.put(job)
        if len(self._workers) < cpu_cores():
            self._workers.append(_Worker(self._jobs, self._events, self._read_file))
        return job

    def wait(self, job: Job[T], on_read: OnRead) -> None:
        """Wait for a file. `on_read` receives the progress of all files, and may raise ReadingEndsError."""
        while not (job.is_done and self._events.empty()):
            with contextlib.suppress(queue.Empty):
                on_read(*self._events.get(timeout=_WAKE_SECONDS))
            for worker in self._workers:
                worker.end_if_silent()
        if job.error:
            raise job.error

    def __enter__(self) -> "DocumentReader[T]":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.is_closed = True
            self._jobs.put(None)
        for worker in self._workers:
            worker.close()


def needs_child(name: str, start: bytes, *, plain: bool) -> bool:
    """Return whether a file that begins with these bytes is read by a child process: all but plain text; with
    `plain`, text with markup is plain, too."""
    known = file_types.recognize(name, start)
    return bool(file_types.compression(start)) or (known is not None and not (plain and known.is_text))


class _EndedError(Exception):
    """A child process ended before its answer did."""

    def __init__(self, child: ChildProcess, stalled_seconds: float) -> None:
        limits = {
            "SIGALRM": f"gave no text for {stalled_seconds:g} seconds",
            "SIGXCPU": "takes too much processor time",
        }
        status = child.stop()
        self.late = next((limits[name] for name in limits if status == -getattr(signal, name, math.inf)), "")
        self.is_kept = False  # whether the beginning of the document is kept

    def __str__(self) -> str:
        if self.late:
            return self.late + ("; what follows is not read" if self.is_kept else ", and is not read")
        return f"cannot be read: it is damaged, or needs over {LIMITS.memory >> 20:,} MB of memory"


class _Worker(Generic[T]):
    """A thread with a child process."""

    def __init__(
        self,
        jobs: "queue.SimpleQueue[Job[T] | None]",
        events: "queue.SimpleQueue[tuple[str, int]]",
        read_file: "ReadFile[T]",
    ) -> None:
        self._jobs = jobs
        self._events = events
        self._read_file = read_file
        self._copy = TextCopy()
        self._child: ChildProcess | None = None
        self._heard = 0.0  # when the process sent something; 0 while it has nothing to do
        self.is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self.is_closed:
            self._heard = time.monotonic()
            try:
                self._read(job)
            except Exception as error:
                job.error = error
                self._stop()
            self._heard = 0.0
            job.is_done = True
            self._events.put((job.name, 0))

    def end_if_silent(self) -> None:
        heard, child = self._heard, self._child
        if heard and child and time.monotonic() - heard > LIMITS.stalled_seconds + _SPARE_SECONDS:
            child.kill()

    def close(self) -> None:
        """Wait for the thread, whose process is killed unless it is idle."""
        while self._thread.is_alive():
            if self._heard and (child := self._child):
                child.kill()
            self._thread.join(_JOIN_SECONDS)
        if self._child:
            _idle.put(self._child)

    def _read(self, job: Job[T]) -> None:
        skip, without = 0, list[str]()  # what to leave out: documents, and members of an archive
        for restarts in range(1 + _MAX_RESTARTS):
            # all files of an archive together may take twice the time of one
            limits = replace(LIMITS, stalled_seconds=LIMITS.stalled_seconds / 2**restarts)
            answer = _Answer(job, self._copy, self._started(), self._on_read, self._read_file, limits)
            try:
                if not answer.read(skip, without):
                    self._stop()
                return
            except _EndedError as error:
                self._stop()
                if self.is_closed:
                    return
                if answer.member is not None:
                    skip += answer.begun
                else:  # it ended between two documents
                    error.is_kept = (
                        skip + answer.begun > answer.begun_before if answer.entered else bool(job.found)
                    )
                    answer.member, skip = answer.entered, answer.begun_before
                    without.append(answer.entered)
                job.problems.append((answer.name, f"{answer.name} {error}"))
                if not answer.member:
                    return
        job.problems.append(
            (job.name, f"{job.name} ended {1 + _MAX_RESTARTS} processes; what follows is not read")
        )

    def _on_read(self, name: str, size: int) -> None:
        self._heard = time.monotonic()
        if self.is_closed:
            raise ReadingEndsError("the reading was ended")
        self._events.put((name, size))

    def _started(self) -> ChildProcess:
        if self._child is None:
            self._child = _idle.get() or _start()
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child:
            child.stop()


class _Answer(Generic[T]):
    """The answer of a child process to a request for one file."""

    def __init__(
        self,
        job: Job[T],
        copy: TextCopy,
        child: ChildProcess,
        on_read: OnRead,
        read_file: "ReadFile[T]",
        limits: Limits,
    ) -> None:
        self._job = job
        self._copy = copy
        self._child = child
        self._on_read = on_read
        self._read_file = read_file
        self._limits = limits
        self.member: str | None = None  # of the current document; "" in no archive
        self.begun = 0  # documents
        self.entered = ""
        self.begun_before = 0  # current member of an archive, and documents begun before it

    def read(self, skip: int, without: list[str]) -> bool:
        """Read the file, without its first `skip` documents and these members. Returns whether the process
        can be used again. Raises _EndedError if the process ends."""
        job = self._job
        request = {
            "path": str(job.path.absolute()),
            "name": job.name,
            "reading": job.reading,
            "skip": skip,
            "without": without,
        }
        try:
            self._child.send(json.dumps(request | {"limits": asdict(self._limits)}).encode("ascii") + b"\n")
        except OSError as error:
            raise _EndedError(self._child, self._limits.stalled_seconds) from error
        while "done" not in (header := self.frame()[0]):
            if "enter" in header:
                self.entered = header["enter"]
                self.begun_before = header["begun"]
                continue
            self.member, self.begun = header["begin"], self.begun + 1
            if header["kind"] == file_types.TABLE.kind:
                if not self._read_table():
                    return False
            elif header["kind"]:
                self._read_document(header["kind"], header["bytes"])
            else:
                self._read_other(header["program"], header["content"])
            self.member = None
        if header["done"]:
            job.problems.append((job.name, header["done"]))
            job.is_text = not self.begun and bool(file_types.compression(peek(job.path)))
        return True

    def frame(self) -> tuple[dict[str, Any], bytes]:
        """Return the header and the data of the next frame. Raises _EndedError."""
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            raise _EndedError(self._child, self._limits.stalled_seconds)
        try:
            header: dict[str, Any] = json.loads(line)
        except ValueError as error:  # a hostile document may have taken over the process
            raise _EndedError(self._child, self._limits.stalled_seconds) from error
        size = header.get("data", 0)
        data = self._child.stdout.read(size) if size else b""
        if len(data) < size:
            raise _EndedError(self._child, self._limits.stalled_seconds)
        self._on_read(self.name, size)
        return header, data

    @property
    def name(self) -> str:
        return f"{self._job.name}/{self.member}" if self.member else self._job.name

    def _read_document(self, kind: str, file_bytes: int) -> None:
        offset, text = self._copy.size, TextDigest(self._copy)

        def add_document(skipped: tuple[tuple[str, int], ...] = ()) -> None:
            self._job.found.append(
                (
                    Document(
                        self.name,
                        self._job.path,
                        text.size,
                        text.sha256.hexdigest(),
                        offset,
                        self._copy,
                        characters=text.characters,
                        member=self.member or "",
                        kind=kind,
                        file_bytes=file_bytes,
                        skipped=skipped,
                    ),
                    self.member or "",
                )
            )

        try:
            while "end" not in (frame := self.frame())[0]:
                text.add(frame[1])
        except _EndedError as error:
            error.is_kept = bool(error.late and text.size)
            if error.is_kept:
                add_document()
            else:
                self._copy.truncate(offset)
            raise
        header, skipped = frame[0], tuple(frame[0]["skipped"].items())
        if problem := self._problem(header, is_text=kind in file_types.TEXT_KINDS):
            self._copy.truncate(offset)
            self._add(problem)
        elif not text.size and not skipped and kind in file_types.COLLECTION_KINDS:
            pass  # its documents follow
        elif not text.size:
            details = (
                f" ({', '.join(f'{reason}: {count:,}' for reason, count in skipped)})" if skipped else ""
            )
            self._add(f"{self.name} has no text{details}")
        else:
            add_document(skipped)

    def _read_other(self, program: str, content_bytes: int) -> None:
        """Read a file that is not a document, as the process has decompressed it."""
        check_temporary_space(self.name, program, content_bytes)
        self._job.is_text = not self.member
        offset, is_read = self._copy.size, False
        try:
            while "end" not in (frame := self.frame())[0]:
                self._copy.append(frame[1])
            if problem := self._problem(frame[0]):
                self._add(problem)
            else:
                is_read = self._read_content(Stored(offset, program, bool(self.member)))
        finally:
            if not is_read:
                self._copy.truncate(offset)

    def _read_table(self) -> bool:
        """Read a table. Returns whether the process can be used again: the rest of a bad table is not
        read."""
        offset, lines, is_read = self._copy.size, self._lines(), False
        self._job.is_text = not self.member
        try:
            is_read = self._read_content(lines)
        finally:
            if not is_read:
                self._copy.truncate(offset)
        if self.member and not is_read:
            with contextlib.suppress(LLMError):
                deque(lines, maxlen=0)  # other files follow
        return is_read or bool(self.member)

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines of a table. Raises LLMError for a problem with it."""
        while "end" not in (frame := self.frame())[0]:
            yield from frame[1].splitlines()
        if problem := self._problem(frame[0]):
            raise LLMError(problem)

    def _read_content(self, content: Stored | Iterator[bytes]) -> bool:
        try:
            found = self._read_file(self.name, self._job.path, content, self._copy, self._on_read)
        except ReadingEndsError:
            raise
        except LLMError as error:
            self._add(str(error))
            return False
        self._job.found.append((found, self.member or ""))
        return True

    def _problem(self, header: dict[str, Any], *, is_text: bool = False) -> str:
        """Return the problem that the last frame of a document reports, or ""."""
        if not (package := header["missing"]):
            return str(header["end"])
        error = missing_extra(f"reading {self.name}", package, "documents")
        return f"{error}; or add `plain` to read it as it is" if is_text else str(error)

    def _add(self, problem: str) -> None:
        self._job.problems.append((self.name, problem))


class _Idle:
    """Keeps one idle process: starting one takes longer than reading a small document."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None

    def get(self) -> ChildProcess | None:
        with self._lock:
            child, self._child = self._child, None
        if child and not child.is_running:
            child.stop()
            return None
        return child

    def put(self, child: ChildProcess) -> None:
        with self._lock:
            self._child, child_before = child, self._child
        if child_before:
            child_before.stop()


_idle = _Idle()


def _start() -> ChildProcess:
    try:
        return ChildProcess(_MODULE)
    except (OSError, EOFError) as error:  # TimeoutError is an OSError
        raise ReadingEndsError(
            "the process that reads documents does not start; is there enough memory?"
        ) from error
