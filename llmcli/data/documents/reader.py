"""Reads documents, archives, compressed files and tables in several child processes, which run worker.py.

For each process, a thread appends the text that it sends to a temporary file, so that memory does not grow
with the text, and files can be read ahead. If a process dies or hangs, another one continues after the
document.
"""

import contextlib
import math
import queue
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from llmcli.config import cpu_cores
from llmcli.data.child_process import ChildProcess, Frame
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.documents.worker import FileLimits, Position
from llmcli.data.files import ConversationFile, read_records
from llmcli.data.text import file_types
from llmcli.data.text.decoding import Document, OnRead, Stored
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy, check_temporary_space
from llmcli.errors import LLMError

LIMITS = FileLimits()
_WAKE_SECONDS = 0.25  # between two checks for Ctrl-C and for silent processes
_SPARE_SECONDS = 30.0  # after the time limit at which a process should have ended itself
_MAX_RESTARTS = 10  # restarts after crashes while one archive is read
_NO_DOCUMENTS = ("", file_types.TABLE.kind)  # kinds
_EXTRACTED = ReadOptions(plain=True, encoding="utf-8")  # for the text of a document

Content: TypeAlias = Document | ConversationFile
# contents of a file; (name of a file, line that says why it is not read); whether it is text rather than a
# document or an archive: a problem with text that the user named is an error
ReadFile: TypeAlias = tuple[list[Content], list[tuple[str, str]], bool]

_idle: list[ChildProcess] = []  # at most one: starting it takes longer than reading a small document


class DocumentReader:
    """Reads files in child processes."""

    def __init__(self, reading: ReadOptions) -> None:
        self.reading = reading
        self.events: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()  # arguments of OnRead
        self.closed = threading.Event()
        self._executor = futures.ThreadPoolExecutor(cpu_cores())
        self._readers = [_ProcessReader(self) for _ in range(cpu_cores())]
        self._free = self._readers[::-1]  # readers without a file

    def submit(self, name: str, path: Path, start: bytes, *, plain: bool) -> "futures.Future[ReadFile]":
        """Start reading a file that begins with these bytes. With `plain`, text with markup is read as plain
        text, and tables are not read."""
        reading = replace(self.reading, plain=plain)
        return self._executor.submit(self._read, name, path, reading, bool(file_types.compression(start)))

    def _read(self, name: str, path: Path, reading: ReadOptions, is_compressed: bool) -> ReadFile:
        reader = self._free.pop()
        try:
            return reader.read(name, path, reading, is_compressed)
        finally:
            self._free.append(reader)

    def wait(self, file: "futures.Future[ReadFile]", on_read: OnRead) -> ReadFile:
        """Wait for a file. `on_read` receives the progress of all files, and may raise ReadingEndsError."""
        is_done = False
        while not is_done:
            is_done = bool(futures.wait([file], _WAKE_SECONDS).done)
            while not self.events.empty():
                on_read(*self.events.get())
            for reader in self._readers:
                reader.end_if_silent(LIMITS.stalled_seconds + _SPARE_SECONDS)
        return file.result()

    def __enter__(self) -> "DocumentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        self.closed.set()
        for reader in self._readers:
            reader.end_if_silent()
        self._executor.shutdown()
        for reader in self._readers:
            if reader.child.is_running and not _idle:
                _idle.append(reader.child)
            else:
                reader.child.stop()
        # they refer to this object, and hold open files
        self._readers.clear()
        self._free.clear()


def needs_child(name: str, start: bytes, *, plain: bool) -> bool:
    """Return whether a file that begins with these bytes is read by a child process: any file except plain
    text. With `plain`, text with markup counts as plain text."""
    known = file_types.recognize(name, start)
    return bool(file_types.compression(start)) or (known is not None and not (plain and known.is_text))


class _ProcessReader:
    """A child process, the copy of the texts that it has sent, and the file that it reads."""

    def __init__(self, owner: DocumentReader) -> None:
        self._owner = owner
        self._copy = TextCopy()
        self.child = ChildProcess(
            "llmcli.data.documents.worker",
            "the process that reads documents did not start; is there enough memory?",
        )
        with contextlib.suppress(IndexError):
            self.child = _idle.pop()
        self._last_sent_at = 0.0  # time of the last frame from the process; 0 while it is idle

    @property
    def _name(self) -> str:
        return self._names[len(self._position)]

    @property
    def _member(self) -> str:
        return self._name[len(self._file) + 1 :]

    def end_if_silent(self, seconds: float = 0.0) -> None:
        """Kill the process if it reads a file, and has sent nothing for over `seconds`."""
        last_sent_at = self._last_sent_at
        if last_sent_at and time.monotonic() - last_sent_at >= seconds:
            self.child.kill()

    def read(self, name: str, path: Path, reading: ReadOptions, is_compressed: bool) -> ReadFile:
        """Read a file. If the process ends, continue after the document (or file in an archive) at which it
        ended."""
        self._file = name
        self._path = path
        self._contents: list[Content] = []
        self._problems: list[tuple[str, str]] = []
        self._is_text = False
        after: Position | None = None
        seconds = LIMITS.stalled_seconds
        try:
            for _ in range(1 + _MAX_RESTARTS):
                # position of the current document, or else of the archive or collection around it
                self._position: Position = []
                # names of the archives around the item at this position, then of the item
                self._names = [name]
                request = {
                    "path": str(path.absolute()),
                    "name": name,
                    "reading": asdict(reading),
                    "after": after,
                    "limits": asdict(replace(LIMITS, stalled_seconds=seconds)),
                }
                self._last_sent_at = time.monotonic()  # a process that starts has not been silent
                self.child.start()
                self._check_open()  # otherwise, `end_if_silent` sees this process
                try:
                    self._receive(self.child.frames(request), is_compressed)
                    break
                except EOFError:
                    # the beginning of the item at this position
                    is_kept = any(content.member.startswith(self._member) for content in self._contents)
                    self._add_problem(f"{self._name} {_reason(self.child.stop(), seconds, is_kept)}")
                after = self._position
                if not after or self._owner.closed.is_set():
                    break
                seconds /= 2  # all files of an archive together may take twice the time of a single file
            else:
                problem = f"{name} crashed the reader {1 + _MAX_RESTARTS} times; the rest is skipped"
                self._problems.append((name, problem))
        except BaseException:
            self.child.stop()
            raise
        finally:
            self._last_sent_at = 0.0
        return self._contents, self._problems, self._is_text

    def _on_read(self, name: str, size: int) -> None:
        self._last_sent_at = time.monotonic()
        self._check_open()
        self._owner.events.put((name, size))

    def _check_open(self) -> None:
        if self._owner.closed.is_set():
            raise ReadingEndsError("reading was stopped")

    def _receive(self, frames: Iterator[Frame], is_compressed: bool) -> None:
        """Receive all contents. Raises EOFError if the process ends."""
        is_begun = False
        for header, _ in frames:
            if "done" in header:
                break
            self._position = header["at"]
            self._names[len(self._position) :] = [header["name"]]
            self._on_read(self._name, 0)
            if "kind" in header:
                is_begun = True
                self._receive_content(header, frames)
                self._position = self._position[:-1]
        if header["done"]:
            self._problems.append((self._file, header["done"]))
            self._is_text = not is_begun and is_compressed

    def _receive_content(self, begin: dict[str, Any], frames: Iterator[Frame]) -> None:
        """Receive a document, a table or another file."""
        kind = begin["kind"]
        stored = Stored(self._copy.size, is_table=kind == file_types.TABLE.kind)
        is_document = kind not in _NO_DOCUMENTS
        if not is_document:
            check_temporary_space(self._name, begin["content"])
            self._is_text = not self._member
        try:
            for end, data in frames:
                self._on_read(self._name, len(data))
                self._copy.append(data)
                if "end" in end:
                    break
        except EOFError:
            if is_document and self._copy.size > stored.offset:
                self._add_content(begin, stored, {})
            else:
                self._copy.truncate(stored.offset)
            raise
        problem = end["end"]
        skipped = end["skipped"]
        is_empty_document = is_document and self._copy.size == stored.offset
        # the documents of a collection come after it
        if is_empty_document and (skipped or kind not in file_types.COLLECTION_KINDS):
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in skipped.items())
            problem = problem or f"{self._name} has no text" + (f" ({reasons})" if reasons else "")
        if problem:
            self._copy.truncate(stored.offset)
            self._add_problem(problem)
        elif not is_empty_document:
            self._add_content(begin, stored, skipped)

    def _add_content(self, begin: dict[str, Any], stored: Stored, skipped: dict[str, int]) -> None:
        """Read a document, a table or a file that may be text, which is stored."""
        is_document = begin["kind"] not in _NO_DOCUMENTS
        try:
            content = read_records(
                self._name,
                self._path,
                stored,
                reading=_EXTRACTED if is_document else self._owner.reading,
                copy=self._copy,
                on_read=self._on_read,
            )
        except ReadingEndsError:
            raise
        except LLMError as error:
            self._copy.truncate(stored.offset)
            self._add_problem(str(error))
            return
        facts: dict[str, Any] = {"member": self._member}
        if is_document:
            facts |= {"kind": begin["kind"], "skipped": tuple(skipped.items())}
        if is_document or not self._member:
            facts["file_bytes"] = begin["bytes"]
        self._contents.append(replace(content, **facts))

    def _add_problem(self, problem: str) -> None:
        self._problems.append((self._name, problem))


def _reason(status: int, seconds: float, is_kept: bool) -> str:
    """Explain why a process with this time limit ended with this exit status. `is_kept` says whether the
    beginning of the document is kept."""
    reason = f"is damaged, or needs over {LIMITS.memory >> 20:,} MB of memory"
    if status == -getattr(signal, "SIGALRM", math.inf):
        reason = f"timed out after {seconds:g} s without output"
    elif status == -getattr(signal, "SIGXCPU", math.inf):
        reason = "takes too much processor time"
    return reason + ("; the rest is skipped" if is_kept else "")
