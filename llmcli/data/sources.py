"""The files that a command names, recognized by content: plain text, text in a column, or conversations."""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmcli import units
from llmcli.data.conversations.messages import Conversation, normalized
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.conversations.turns import named_speakers
from llmcli.data.files import ConversationFile, read_records
from llmcli.data.text.corpus import Corpus, corpus_of_files, read_files
from llmcli.data.text.documents import STANDARD_INPUT, Document, OnRead, ignore
from llmcli.data.text.file_types import through, unpacked_name
from llmcli.data.text.temporary_files import ReadingEndsError, TextCopy
from llmcli.errors import LLMError

_MAX_NAMES = 3  # files listed in a description
_MAX_SEARCHED = 256  # plain texts checked for tags and braces
_TABLE_LINES = 10
_NOTE_SECONDS = 5.0  # between two progress notes
_NOTED_BYTES = 1_000_000  # notes on a smaller file show only its name
_READING_SHARE = 0.5  # of the time budget
_PART_BYTES, _PART_LINES = 100_000_000, 100_000  # size of the part that a message suggests
_RECORD_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")  # one record per line
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.I | re.S)
_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])")
_OTHER_COLUMN = "`column` NAME or `plain`"
_AUTOMATIC = ReadOptions()


@dataclass(frozen=True)
class FileGroup:
    """Files recognized as the same kind."""

    kind: str  # "plain text", "text in a column", "pairs", "conversations"
    detail: str = ""  # for users
    columns: tuple[str, ...] = ()
    otherwise: str = ""  # options to read them as another kind
    names: tuple[str, ...] = ()

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
    """The contents of files: text and conversations, one of which may be empty."""

    text: Corpus
    conversation_files: tuple[ConversationFile, ...]

    @property
    def conversations(self) -> list[Conversation]:
        return [conversation for file in self.conversation_files for conversation in file.conversations]

    @property
    def notes(self) -> list[str]:
        """Notes on how files were read and what was left out, one line each."""
        files: list[ConversationFile | Document] = [*self.conversation_files, *self.text.documents]
        return [note for file in files for note in file.notes]

    def groups(self) -> list[FileGroup]:
        names: dict[FileGroup, list[str]] = {}
        for index, document in enumerate(self.text.documents):
            names.setdefault(_kind_of_text(document, search=index < _MAX_SEARCHED), []).append(document.name)
        for file in self.conversation_files:
            names.setdefault(_kind_of_conversations(file), []).append(file.name)
        return [replace(group, names=tuple(files)) for group, files in names.items()]

    def describe(self) -> str:
        """Describe the kind of each file, and the options to read it differently, in one line."""
        return f"data: {'; '.join(map(str, self.groups()))}"


def _kind_of_text(document: Document, *, search: bool) -> FileGroup:
    """With `search`, the text is checked for markup, which the model would learn too."""
    if document.columns:
        return FileGroup("text", f"column {document.columns[0]}", document.columns, _OTHER_COLUMN)
    start = document.start if search else ""
    lines = [line for line in start.split("\n")[:_TABLE_LINES] if line.strip()]
    tabs = {line.count("\t") for line in lines}
    detail = ""
    if _HTML.match(start):
        detail = "HTML, read with its tags"
    elif _JSON.match(start):
        detail = "JSON, read with its keys and braces"
    elif len(lines) > 1 and len(tabs) == 1 and tabs != {0}:
        detail = "tabs separate columns; to read them as prompts and answers: `column` 1,2"
    return FileGroup("plain text", detail)


def _kind_of_conversations(file: ConversationFile) -> FileGroup:
    detail = file.shape
    if file.shape == "two columns":
        detail = file.first_row or f"columns {' and '.join(file.columns)}"
    otherwise = _OTHER_COLUMN if file.columns and not file.first_row else "`plain`"
    return FileGroup("pairs" if len(file.columns) == 2 else "conversations", detail, file.columns, otherwise)


class ReadingProgress:
    """Reports the progress of reading, and stops it after a share of the time budget."""

    def __init__(
        self, seconds: float | None, on_note: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
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
            is_one = self._files == 1 or self._size >= _NOTED_BYTES
            read = units.size(self._size) if is_one else units.count(self._files, "file")
            raise ReadingEndsError(
                f"{f'{name}: ' * is_one}reading takes more than half of the time: {read} in "
                f"{units.duration(now - self._started)}; give a longer `seconds`"
                + (_part_advice(name) if is_one else ", or fewer and larger files")
            )
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            number = f", file {self._files:,}" if self._files > 1 else ""
            amount = f": {units.size(self._size)} of text" if self._size >= _NOTED_BYTES else ""
            self._on_note(f"reading {name}{number}{amount}")


def _part_advice(name: str) -> str:
    """Advise to train on the beginning of a file, with the command; "" if there is none."""
    suffix = Path(unpacked_name(name)).suffix.lower()
    if suffix in (".json", ".parquet") or name == STANDARD_INPUT:
        return ""
    head = f"head -n {_PART_LINES}" if suffix in _RECORD_SUFFIXES else f"head -c {_PART_BYTES}"
    return f", or train on part of the text: {through(head, name, f'part{suffix}')}"


def read_sources(
    names: Iterable[str], reading: ReadOptions = _AUTOMATIC, *, text_only: bool = False, on_read: OnRead = ignore
) -> Sources:
    """Find files, directories and patterns with `read_files`, and read each file with `read_records`.

    Raises LLMError, for instance for a malformed record in a conversation file.
    """
    copy = TextCopy()
    contents, skipped = read_files(
        names, lambda name, path: read_records(name, path, reading, copy, text_only=text_only, on_read=on_read)
    )
    files = tuple(file for file, _ in contents if isinstance(file, ConversationFile))
    documents = [(file, relative) for file, relative in contents if isinstance(file, Document)]
    return Sources(corpus_of_files(documents, skipped, may_be_empty=bool(files)), files)


def check_reading(reading: ReadOptions, sources: Iterable[Sources]) -> None:
    """Raise LLMError if the options match none of the files."""
    sources = list(sources)
    files = [file for source in sources for file in source.conversation_files]
    if reading.speakers and named_speakers(*reading.speakers).shape not in {file.shape for file in files}:
        user, assistant = reading.speakers
        raise LLMError(
            f"`speakers` {user},{assistant}: no file has turns of both; wanted a text with lines that begin with "
            f'"{user}:" and "{assistant}:", including the first line; check the names, or leave `speakers` out'
        )
    requested = {normalized(column) for column in reading.columns}
    read: list[ConversationFile | Document] = [*files, *(text for source in sources for text in source.text.documents)]
    if requested and not any(set(map(normalized, file.columns)) == requested for file in read):
        columns = [f"{file.name} has {', '.join(file.all_columns) or 'no columns'}" for file in read[:_MAX_NAMES]]
        problem = f"no file has {'this column' if len(requested) == 1 else 'these columns'}"
        option = f"`column` {','.join(reading.columns)}"
        raise LLMError("; ".join([f"{option}: {problem}", *columns]) + "; ..." * (len(read) > _MAX_NAMES))
    if reading.pairs and not any(len(file.columns) == 2 for file in read):
        raise LLMError(f"`pairs`: no file is a two-column table; {sources[0].describe()}")
