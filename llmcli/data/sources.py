"""The files that a command names, each by its contents: plain text, the text in a column, or conversations."""

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

_MAX_NAMES = 3  # of files that a description lists
_MAX_SEARCHED = 256  # plain texts that are searched for tags and braces
_TABLE_LINES = 10
_NOTE_SECONDS = 5.0  # between two notes on the reading
_NOTED_BYTES = 1_000_000  # of a file; of a smaller one only the name
_READING_SHARE = 0.5  # of the time budget, for reading
_PART_BYTES, _PART_LINES = 100_000_000, 100_000  # of a text, or of records, that a message suggests to train on
_RECORD_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")  # of files with a record in a line
_HTML = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", re.I | re.S)
_JSON = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])")
_OTHER_COLUMN = "`column` NAME or `plain`"
_AUTOMATIC = ReadOptions()


@dataclass(frozen=True)
class FileGroup:
    """Files that were recognized as the same kind."""

    kind: str  # "plain text", "text in a column", "pairs", "conversations"
    detail: str = ""  # for users
    columns: tuple[str, ...] = ()
    otherwise: str = ""  # the options for another kind
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
    """The contents of files; one of the two may be empty."""

    text: Corpus
    conversation_files: tuple[ConversationFile, ...]

    @property
    def conversations(self) -> list[Conversation]:
        return [one for file in self.conversation_files for one in file.conversations]

    @property
    def notes(self) -> list[str]:
        """How files were read, what was left out and why, one line each."""
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
        """One line with the kind of each file, and the options for another one."""
        return f"data: {'; '.join(map(str, self.groups()))}"


def _kind_of_text(document: Document, *, search: bool) -> FileGroup:
    """`search` says whether to look for markup, which the model would learn too."""
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
    """Notes the progress of a long reading, and ends it after a share of the time budget."""

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
            one = self._files == 1 or self._size >= _NOTED_BYTES
            read = f"{units.size(self._size)} of it" if one else units.count(self._files, "file")
            raise ReadingEndsError(
                f"{f'{name}: ' * one}reading takes more than half of the time; {read} are read after "
                f"{units.duration(now - self._started)}; give a longer `seconds`"
                + (_take_a_part(name) if one else ", or fewer and larger files")
            )
        if now - self._noted >= _NOTE_SECONDS:
            self._noted = now
            number = f", file {self._files:,}" if self._files > 1 else ""
            amount = f": {units.size(self._size)} of text" if self._size >= _NOTED_BYTES else ""
            self._on_note(f"reading {name}{number}{amount}")


def _take_a_part(name: str) -> str:
    """Advice to train on the beginning of a file, with the command for it; "" if there is none."""
    suffix = Path(unpacked_name(name)).suffix.lower()
    if suffix in (".json", ".parquet") or name == STANDARD_INPUT:
        return ""
    head = f"head -n {_PART_LINES}" if suffix in _RECORD_SUFFIXES else f"head -c {_PART_BYTES}"
    return f", or train on a part of the text: {through(head, name, f'part{suffix}')}"


def read_sources(
    names: Iterable[str], reading: ReadOptions = _AUTOMATIC, *, text_only: bool = False, on_read: OnRead = ignore
) -> Sources:
    """Read files, directories and patterns, as `read_files` finds them, each as `read_records` does.

    Raises LLMError, also for a malformed record in a file of conversations.
    """
    copy = TextCopy()
    contents, skipped = read_files(
        names, lambda name, path: read_records(name, path, reading, copy, text_only=text_only, on_read=on_read)
    )
    files = tuple(file for file, _ in contents if isinstance(file, ConversationFile))
    documents = [(file, relative) for file, relative in contents if isinstance(file, Document)]
    return Sources(corpus_of_files(documents, skipped, may_be_empty=bool(files)), files)


def check_reading(reading: ReadOptions, sources: Iterable[Sources]) -> None:
    """Raise LLMError if the options fit none of the files."""
    sources = list(sources)
    files = [file for one in sources for file in one.conversation_files]
    if reading.speakers and named_speakers(*reading.speakers).shape not in {file.shape for file in files}:
        user, assistant = reading.speakers
        raise LLMError(
            f"`speakers` {user},{assistant}: no file has turns of both; wanted a text with lines that begin with "
            f'"{user}:" and "{assistant}:", its first line among them; check the names, or leave `speakers` out'
        )
    wanted = {normalized(column) for column in reading.columns}
    read: list[ConversationFile | Document] = [*files, *(one for group in sources for one in group.text.documents)]
    if wanted and not any(set(map(normalized, file.columns)) == wanted for file in read):
        columns = [f"{one.name} has {', '.join(one.all_columns) or 'no columns'}" for one in read[:_MAX_NAMES]]
        problem = f"no file has {'such a column' if len(wanted) == 1 else 'such columns'}"
        option = f"`column` {','.join(reading.columns)}"
        raise LLMError("; ".join([f"{option}: {problem}", *columns]) + "; ..." * (len(read) > _MAX_NAMES))
    if reading.pairs and not any(len(file.columns) == 2 for file in read):
        raise LLMError(f"`pairs`: no file is a table of two columns; {sources[0].describe()}")
