"""A file of conversations: recognized by its content, read, and what cannot be learned from left out and counted.

- JSON: one record a line, records in an array, or one after the other, in the shapes of conversations.py. A file is
  recognized if at least half of its first ten records are of one shape; then a record of another kind is an error.
- Parquet: a table whose columns are the keys of such records.
- CSV and TSV with two columns, and plain text with turns: see conversation_tables.py and conversation_turns.py.

Files of conversations are in memory while they are read, as messages; JSON other than one record a line also as text.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from llmcli.data.conversation_tables import TABLE_SUFFIXES, read_table
from llmcli.data.conversation_turns import read_turns
from llmcli.data.conversations import Conversation, RecordShape, answered, from_record, record_shape
from llmcli.data.documents import BLOCK_BYTES, open_regular_file
from llmcli.data.json_records import record_of_line, records_of_lines, records_of_text
from llmcli.data.parquet_records import MAGIC, open_parquet
from llmcli.data.text_lines import MissingZstdError, TextLines, open_lines
from llmcli.errors import LLMError

_PEEKED_RECORDS = 10
_JSON_START = re.compile(r"\s*(?:\{|\[\s*[\[{])")
_JSON_SUFFIXES = {".jsonl", ".ndjson", ".json"}
_SUFFIXES = _JSON_SUFFIXES | TABLE_SUFFIXES | {".txt"}  # of files that are likely to hold conversations


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file that can be learned from: each ends with an answer, and none of its answers is
    blank."""

    name: str  # as the user wrote it
    path: Path
    shape: str  # for users: "messages", "prompt/completion", "ShareGPT", "two columns", "User:/Assistant: turns", ...
    conversations: tuple[Conversation, ...] = field(repr=False)
    dropped: int  # conversations without an answer, or with a blank one before the last
    notes: tuple[str, ...]  # one line each: how the file was read, what was dropped and why
    text_bytes: int  # size of all messages in UTF-8
    sha256: str  # of the file, decompressed


@dataclass(frozen=True)
class _Recognized:
    """What is in a file. `notes` are complete after the last of the conversations."""

    shape: str
    conversations: Iterable[Conversation]
    notes: list[str]


def read_conversations(name: str, path: Path, *, speakers: tuple[str, str] | None = None) -> ConversationFile | None:
    """The conversations of a file; None if it holds none: text, {"text"} records, records of unknown shapes.

    `speakers` are the names by which plain text shows who asks and who answers, if they are others than the known ones.
    Raises LLMError, with the name and the line, for what is malformed in a file that was recognized; if nothing can be
    learned from it; and if a library is missing that the file needs.
    """
    if _is_parquet(name, path):
        return _read_parquet(name, path)
    suffix = _suffix(path)
    try:
        with open_lines(name, path) as lines:
            recognized = _recognize_text(lines, suffix, speakers)
            return _collect(name, path, recognized, lambda: lines.sha256) if recognized else None
    except MissingZstdError:
        if suffix in _SUFFIXES:
            raise
        return None


def require_conversations(name: str, path: Path, *, speakers: tuple[str, str] | None = None) -> ConversationFile:
    """Like `read_conversations`, for a file that must hold conversations: raises LLMError if it holds none, with the
    reason where there is one, such as a first record that is malformed."""
    file = read_conversations(name, path, speakers=speakers)
    if file is not None:
        return file
    if not _is_parquet(name, path):
        _check_text(name, path)
    raise LLMError(
        f'{name} has no conversations; expected records with "messages", "prompt" and "completion", "instruction" and '
        '"output" or "conversations", two columns, or turns such as User: and Assistant:'
    )


def _check_text(name: str, path: Path) -> None:
    """Raise LLMError for a file that is no text, and for JSON whose first record is malformed or no conversation."""
    with open_lines(name, path) as lines:
        if _suffix(path) in _JSON_SUFFIXES or _JSON_START.match(lines.start):
            _check_first_record(lines)
        for _ in lines:  # raises LLMError where it is no text
            pass


def _check_first_record(lines: TextLines) -> None:
    """Raise LLMError for a first record that is malformed or no conversation."""
    start = next((line for line in lines.peek(3 * _PEEKED_RECORDS) if line.strip()), "")
    is_array = start.lstrip().startswith("[") and record_of_line(start) is None
    records = records_of_text(lines.name, "\n".join(lines)) if is_array else records_of_lines(lines.name, lines)
    for number, record in islice(records, 1):
        from_record(record, f"{lines.name} line {number:,}")


def _is_parquet(name: str, path: Path) -> bool:
    with open_regular_file(name, path) as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_parquet(name: str, path: Path) -> ConversationFile | None:
    with open_parquet(name, path) as table:
        if table.shape is None:
            return None
        recognized = _recognize_records(name, "row", table.rows(), table.shape, table.columns)
        return _collect(name, path, recognized, lambda: _file_sha256(name, path))


def _suffix(path: Path) -> str:
    """The ending of a file's name, in lower case, without that of the compression.

    >>> _suffix(Path("a.b.CSV.gz")), _suffix(Path("a.zst"))
    ('.csv', '')
    """
    file = path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path
    return file.suffix.lower()


def _file_sha256(name: str, path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular_file(name, path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


# ---- recognizing


def _recognize_text(lines: TextLines, suffix: str, speakers: tuple[str, str] | None) -> _Recognized | None:
    if suffix in TABLE_SUFFIXES:
        table = read_table(lines, suffix)
        return _Recognized("two columns", table.conversations, table.notes) if table else None
    if suffix in _JSON_SUFFIXES or _JSON_START.match(lines.start):
        return _recognize_json(lines)
    turns = read_turns(lines, speakers)
    return _Recognized(turns.shape, turns.conversations, turns.notes) if turns else None


def _recognize_json(lines: TextLines) -> _Recognized | None:
    start = [line for line in lines.peek(3 * _PEEKED_RECORDS) if line.strip()][:_PEEKED_RECORDS]
    first_is_record = bool(start) and record_of_line(start[0]) is not None
    begins_array = bool(start) and start[0].lstrip().startswith("[") and not first_is_record
    shape = None if begins_array else _common_shape(map(record_of_line, start))
    if shape:
        return _recognize_records(lines.name, "line", records_of_lines(lines.name, lines), shape)
    if not _JSON_START.match(lines.start) or (first_is_record and start[0].lstrip().startswith("{")):
        return None  # no JSON, or one record a line of an unknown shape
    return _recognize_json_text(lines)


def _recognize_json_text(lines: TextLines) -> _Recognized | None:
    """Records in an array, or one after the other over several lines."""
    read: list[str] = []
    damage: LLMError | None = None
    try:
        for line in lines:
            read.append(line)
    except LLMError as error:
        damage = error
    text = "\n".join(read)
    shape = _common_shape(_first_records(lines.name, text))
    if shape and damage:
        raise damage
    return _recognize_records(lines.name, "line", records_of_text(lines.name, text), shape) if shape else None


def _first_records(name: str, text: str) -> Iterator[object]:
    """The first records of a text; None for what is no JSON, after which nothing follows."""
    try:
        for _, record in islice(records_of_text(name, text), _PEEKED_RECORDS):
            yield record
    except LLMError:
        yield None


def _common_shape(records: Iterable[object]) -> RecordShape | None:
    """The shape of at least half of the records; None stands for what is no record."""
    shapes = [record_shape(record) for record in records]
    most = Counter(filter(None, shapes)).most_common(1)
    return most[0][0] if most and 2 * most[0][1] >= len(shapes) else None


def _recognize_records(
    name: str, place: str, records: Iterable[tuple[int, object]], shape: RecordShape, columns: Iterable[str] = ()
) -> _Recognized:
    """`place` is what the number of a record counts; `columns` are keys that the records are read without."""
    notes: list[str] = []
    keys = dict.fromkeys(columns)  # in order

    def conversations() -> Iterator[Conversation]:
        for number, record in records:
            yield from_record(record, f"{name} {place} {number:,}", shape)
            if isinstance(record, Mapping):
                keys.update(dict.fromkeys(record))
        others = [str(key) for key in keys if key not in shape.used_keys]
        if others:
            more = ", ..." if len(others) > 5 else ""
            notes.append(f"{name}: {shape.name} is read; not used: {', '.join(others[:5])}{more}")

    return _Recognized(shape.name, conversations(), notes)


# ---- what can be learned from


@dataclass
class _Tally:
    """How many conversations something is true of, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, source: str) -> None:
        self.count += 1
        self.first = self.first or source

    def notes(self, name: str, text: str) -> list[str]:
        return [f"{name}: {self.count:,} {text} (the first: {self.first})"] if self.count else []


def _collect(name: str, path: Path, recognized: _Recognized, sha256: Callable[[], str]) -> ConversationFile:
    kept: list[Conversation] = []
    unanswered, blank, shortened = _Tally(), _Tally(), _Tally()
    for conversation in recognized.conversations:
        messages = answered(conversation.messages)
        if not messages:
            unanswered.add(conversation.source)
        elif any(message.role == "assistant" and not message.content.strip() for message in messages):
            blank.add(conversation.source)
        else:
            if len(messages) < len(conversation.messages):
                shortened.add(conversation.source)
            kept.append(Conversation(tuple(messages), conversation.source))
    dropped = unanswered.count + blank.count
    total = len(kept) + dropped
    if not kept:
        raise LLMError(_nothing_to_learn(name, total, unanswered.first or blank.first))
    notes = [
        *recognized.notes,
        *unanswered.notes(name, f"of {total:,} conversations dropped: without an answer"),
        *blank.notes(name, f"of {total:,} conversations dropped: an answer before the last is blank"),
        *shortened.notes(
            name, f"of {total:,} conversations cut after the last answer: the messages after it have none"
        ),
    ]
    text_bytes = sum(conversation.text_bytes for conversation in kept)
    return ConversationFile(name, path, recognized.shape, tuple(kept), dropped, tuple(notes), text_bytes, sha256())


def _nothing_to_learn(name: str, total: int, first: str) -> str:
    if not total:
        return f"{name} holds no conversation, only a header; wanted rows of a prompt and an answer"
    others = f", as in all {total:,} conversations of the file" if total > 1 else ""
    return f"{first}: no answer{others}; wanted answers, to learn from"
