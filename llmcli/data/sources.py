"""The files that a command names, each by its contents: plain text, the text in a column, or conversations."""

import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.data.conversations.files import ConversationFile, read_records
from llmcli.data.conversations.messages import Conversation, normalized
from llmcli.data.conversations.record_kinds import Reading
from llmcli.data.conversations.turns import shape_of
from llmcli.data.text.corpus import Corpus, corpus_of_files, read_files
from llmcli.data.text.documents import STANDARD_INPUT, Document, OnRead, display_name, ignore, read_document
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy
from llmcli.errors import LLMError

_MAX_NAMES = 3  # of files that a description lists
_SEARCHED_BYTES, _SEARCHED_FILES = 4096, 256  # of plain text that are searched for tags and braces
_TABLE_LINES = 10
_NOTE_SECONDS = 5.0  # between two notes on the reading
_NOTED_BYTES = 1_000_000  # of a file; of a smaller one only the name
_READING_SHARE = 0.5  # of the time budget, for reading
_PART_BYTES, _PART_LINES = 100_000_000, 100_000  # of a text, or of records, that a message suggests to train on
_RECORD_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson"}  # of files with a record in a line
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.I | re.S)
_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])")
_AUTOMATIC = Reading()


@dataclass(frozen=True)
class FileGroup:
    """Files that were recognized as the same kind."""

    kind: str  # "plain text", "text in a column", "pairs", "conversations"
    detail: str  # for users; may be empty
    columns: tuple[str, ...]
    otherwise: str  # the options for another kind; may be empty
    names: tuple[str, ...]

    def __str__(self) -> str:
        details = "; ".join(filter(None, (self.detail, self.otherwise and f"otherwise: {self.otherwise}")))
        names = ", ".join(self.names[:_MAX_NAMES])
        if len(self.names) > _MAX_NAMES:
            names = f"{units.count(len(self.names), 'file')} ({names}, ...)"
        return f"{self.kind} in {names}" + (f" ({details})" if details else "")

    def as_record(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "detail": self.detail, "columns": list(self.columns), "files": len(self.names),
            "names": list(self.names[:_MAX_NAMES]),
        }  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """The contents of files; one of the two may be empty."""

    text: Corpus
    conversation_files: tuple[ConversationFile, ...]

    @property
    def conversations(self) -> list[Conversation]:
        return [one for file in self.conversation_files for one in file.conversations]

    @property
    def notes(self) -> list[str]:
        """How files were read, what was left out and why, one line each."""
        notes = [note for file in self.conversation_files for note in file.notes]
        return notes + [note for document in self.text.documents for note in document.notes]

    def groups(self) -> list[FileGroup]:
        """The kinds of the files, with the names of each."""
        grouped: dict[tuple[str, str, tuple[str, ...]], tuple[str, list[str]]] = {}
        for kind, detail, columns, otherwise, name in self._kinds():
            grouped.setdefault((kind, detail, columns), (otherwise, []))[1].append(name)
        return [FileGroup(*key, otherwise, tuple(names)) for key, (otherwise, names) in grouped.items()]

    def describe(self) -> str:
        """One line that says the kind of each file, and the options for another one."""
        return f"data: {'; '.join(map(str, self.groups()))}"

    def _kinds(self) -> Iterator[tuple[str, str, tuple[str, ...], str, str]]:
        """(kind, detail, columns, options for another kind, name) of each file"""
        for index, document in enumerate(self.text.documents):
            if document.columns:
                detail = f"column {document.columns[0]}"
                yield "text", detail, document.columns, "--column NAME or --plain", document.name
            else:
                yield "plain text", _markup(document) if index < _SEARCHED_FILES else "", (), "", document.name
        for file in self.conversation_files:
            detail = file.shape
            if file.shape == "two columns":
                detail = file.first_row or f"columns {' and '.join(file.columns)}"
            otherwise = "--column NAME or --plain" if file.columns and not file.first_row else "--plain"
            yield "pairs" if len(file.columns) == 2 else "conversations", detail, file.columns, otherwise, file.name


def _markup(document: Document) -> str:
    """Markup in a plain text, which the model will learn too."""
    start = "".join(document.text(0, _SEARCHED_BYTES))
    if _HTML.match(start):
        return "HTML, read with its tags"
    if _JSON.match(start):
        return "JSON, read with its keys and braces"
    tabs = [line.count("\t") for line in start.split("\n")[:_TABLE_LINES] if line.strip()]
    is_table = len(tabs) > 1 and tabs[0] > 0 and len(set(tabs)) == 1
    return "tabs separate columns; to read them as prompts and answers: --column 1,2" if is_table else ""


class ReadingProgress:
    """Notes how much is read of what takes long, and ends the reading after a share of the time budget."""

    def __init__(
        self, seconds: float | None, on_note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`seconds` is the time budget, if there is one."""
        self._seconds, self._on_note, self._clock = seconds, on_note, clock
        self._started = self._noted = clock()
        self._name, self._size, self._files = "", 0, 0

    def __call__(self, name: str, size: int) -> None:
        """Count `size` more bytes of a file. Raises ReadingEndsError."""
        if name != self._name:
            self._name, self._size, self._files = name, 0, self._files + 1
        self._size += size
        now = self._clock()
        if self._seconds and now - self._started > _READING_SHARE * self._seconds:
            one = self._files == 1 or self._size >= _NOTED_BYTES
            read = f"{units.size(self._size)} of it" if one else units.count(self._files, "file")
            raise ReadingEndsError(
                f"{f'{name}: ' * one}reading takes more than half of the time; {read} are read after "
                f"{units.duration(now - self._started)}; give a longer --time"
                + (_take_a_part(name) if one else ", or fewer and larger files")
            )
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            number = f", file {self._files:,}" if self._files > 1 else ""
            amount = f": {units.size(self._size)} of text" if self._size >= _NOTED_BYTES else ""
            self._on_note(f"reading {name}{number}{amount}")


def _take_a_part(name: str) -> str:
    """How to take the beginning of a file, where a command can do that."""
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    if suffix in (".json", ".parquet") or name == STANDARD_INPUT:
        return ""
    head = f"head -n {_PART_LINES}" if suffix in _RECORD_SUFFIXES else f"head -c {_PART_BYTES}"
    source = f"gzip -dc {shlex.quote(name)} | {head}" if name.endswith(".gz") else f"{head} {shlex.quote(name)}"
    return f", or train on a part of the text: {source} > part{suffix}"


def read_sources(
    names: Iterable[str], reading: Reading = _AUTOMATIC, *, text_only: bool = False, on_read: OnRead = ignore
) -> Sources:
    """Read files, directories and patterns, as `read_files` finds them; standard input is always plain text.

    If it is `text_only`, files of conversations are plain text too. Raises LLMError, also for a malformed record in a
    file of conversations.
    """
    copy = TextCopy()

    def read(name: str, path: Path) -> ConversationFile | Document:
        records = None
        if name != "-" and path.is_file():  # not a pipe, which can be read only once
            records = read_records(display_name(name), path, reading, copy, text_only=text_only, on_read=on_read)
        return records or read_document(name, path, copy, on_read)

    contents, skipped = read_files(names, read)
    files = tuple(file for file, _ in contents if isinstance(file, ConversationFile))
    documents = [(file, relative) for file, relative in contents if isinstance(file, Document)]
    return Sources(corpus_of_files(documents, skipped, may_be_empty=bool(files)), files)


def check_reading(reading: Reading, sources: Iterable[Sources]) -> None:
    """Raise LLMError if the options fit none of the files."""
    sources = list(sources)
    files = [file for one in sources for file in one.conversation_files]
    if reading.speakers and shape_of(*reading.speakers) not in {file.shape for file in files}:
        user, assistant = reading.speakers
        raise LLMError(
            f"--speakers {user},{assistant}: no file has turns of both; wanted a text with lines that begin with "
            f'"{user}:" and "{assistant}:", its first line among them; check the names, or leave --speakers out'
        )
    wanted = {normalized(column) for column in reading.columns}
    read: list[ConversationFile | Document] = [*files, *(one for group in sources for one in group.text.documents)]
    if wanted and not any(set(map(normalized, file.columns)) == wanted for file in read):
        columns = [f"{one.name} has {', '.join(one.all_columns) or 'no columns'}" for one in read[:_MAX_NAMES]]
        problem = f"no file has {'such a column' if len(wanted) == 1 else 'such columns'}"
        option = f"--column {','.join(reading.columns)}"
        raise LLMError("; ".join([f"{option}: {problem}", *columns]) + "; ..." * (len(read) > _MAX_NAMES))
    if reading.pairs and not any(len(file.columns) == 2 for file in read):
        raise LLMError(f"--pairs: no file is a table of two columns; {sources[0].describe()}")
