"""A file of records: conversations, or plain text in a column. Records without an answer are left out and counted.

- JSON: one record a line, records in an array, or one after the other. A file is recognized if at least half of its
  first ten records are of one shape; then a record of another kind is an error. The kinds of records: record_kinds.py.
- Tables in CSV, TSV and Parquet files: each row is a record whose keys are the columns (tables.py).
- Plain text with turns: see turns.py.

Files of conversations are in memory while they are read, as messages; JSON other than one record a line also as text.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from llmcli.data.conversations.messages import (
    Conversation,
    RecordShape,
    answered,
    from_record,
    text_of_record,
    unread_keys,
    without_blank_answers,
)
from llmcli.data.conversations.record_kinds import Reading, choose_shape
from llmcli.data.conversations.tables import TABLE_SUFFIXES, Table, read_table
from llmcli.data.conversations.turns import read_turns
from llmcli.data.text.documents import BLOCK_BYTES, Document, OnRead, document_of_texts, ignore, open_regular_file
from llmcli.data.text.json_records import record_of_line, records_of_lines, records_of_text
from llmcli.data.text.lines import MissingZstdError, TextLines, open_lines
from llmcli.data.text.parquet_records import is_parquet, open_parquet
from llmcli.data.text.temporary_files import TextCopy
from llmcli.errors import LLMError, brief

_PEEKED_RECORDS = 10
_JSON_START = re.compile(r"\s*(?:\{|\[\s*[\[{])")
_JSON_LINES_SUFFIXES = {".jsonl", ".ndjson"}
_JSON_SUFFIXES = _JSON_LINES_SUFFIXES | {".json"}
_AUTOMATIC = Reading()
_SUFFIXES = _JSON_SUFFIXES | TABLE_SUFFIXES | {".txt"}  # of files that are likely to hold conversations


@dataclass(frozen=True)
class ConversationFile:
    """The conversations of a file that can be learned from: each ends with an answer, and none of its answers is
    blank."""

    name: str  # as the user wrote it
    path: Path
    shape: str  # for users: "messages", "prompt/completion", "ShareGPT", "two columns", "User:/Assistant: turns", ...
    columns: tuple[str, ...] = field(kw_only=True, default=())  # of the prompt and the answer, or of the messages
    all_columns: tuple[str, ...] = field(kw_only=True, default=())  # also the ones that are not read
    first_row: str = field(kw_only=True, default="")  # of a table without a header that has a known name: what it is
    conversations: tuple[Conversation, ...] = field(repr=False)
    dropped: int  # conversations without an answer, or with a blank one before the last
    notes: tuple[str, ...]  # one line each: how the file was read, what was dropped and why
    text_bytes: int  # size of all messages in UTF-8
    sha256: str  # of the file, decompressed


@dataclass(frozen=True)
class _Contents:
    """The conversations of a file, or its `texts`. Notes and all columns are complete after the last one is read."""

    shape: str
    conversations: Iterable[Conversation]
    notes: list[str]
    columns: tuple[str, ...] = ()
    all_columns: Iterable[str] = ()
    first_row: str = ""
    texts: Iterable[str] | None = None


def read_conversations(name: str, path: Path, reading: Reading = _AUTOMATIC) -> ConversationFile | None:
    """The conversations of a file; None if it holds none: text, {"text"} records, records of unknown shapes.

    Raises LLMError, with the name and the line, for what is malformed in a file that was recognized; if nothing can be
    learned from it; and if a library is missing that the file needs.
    """
    file = read_records(name, path, reading, TextCopy())
    return file if isinstance(file, ConversationFile) else None


def read_records(
    name: str, path: Path, reading: Reading, copy: TextCopy, *, text_only: bool = False, on_read: OnRead = ignore
) -> ConversationFile | Document | None:
    """The conversations in a file, or the text in a column of it, which is appended to `copy`. None for any other file,
    which is plain text or no text, and if it is `text_only`, for conversations.

    Raises LLMError as `read_conversations` does, for records of unknown columns, and for those better not learned.
    """
    if reading.plain:
        return None
    if is_parquet(name, path):
        with open_parquet(name, path) as table:
            if not table.first_rows:
                raise LLMError(f"{name} has no rows; wanted rows with text, or with a prompt and an answer")
            contents = None
            if shape := choose_shape(name, table.first_rows, reading, is_text=False):
                contents = _record_contents(name, "row", table.rows(shape.used_keys), shape, table.columns)
            return _collect(name, path, contents, copy, lambda: _file_sha256(name, path), text_only)
    try:
        with open_lines(name, path, on_read) as lines:
            contents = _text_contents(lines, _suffix(path), reading, text_only)
            return _collect(name, path, contents, copy, lambda: lines.sha256, text_only)
    except MissingZstdError:
        if _suffix(path) in _SUFFIXES:
            raise
        return None


def require_conversations(name: str, path: Path, reading: Reading = _AUTOMATIC) -> ConversationFile:
    """Like `read_conversations`, for a file that must hold conversations: raises LLMError if it holds none, with the
    reason where there is one: it is no text, or JSON whose first record is malformed or no conversation."""
    if file := read_conversations(name, path, reading):
        return file
    if not is_parquet(name, path):
        with open_lines(name, path) as lines:
            if _suffix(path) in _JSON_SUFFIXES or _JSON_START.match(lines.start):
                start = next(filter(str.strip, lines.peek(3 * _PEEKED_RECORDS)), "")
                is_array = start.lstrip().startswith("[") and record_of_line(start) is None
                records = records_of_text(name, "\n".join(lines)) if is_array else records_of_lines(name, lines)
                for number, record in islice(records, 1):
                    from_record(record, f"{name} line {number:,}")
            for _ in lines:  # raises LLMError where it is no text
                pass
    raise LLMError(
        f'{name} has no conversations; expected records with "messages", "prompt" and "completion", "instruction" and '
        '"output" or "conversations", two columns, or turns such as User: and Assistant:'
    )


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


# ---- what a file holds


def _text_contents(lines: TextLines, suffix: str, reading: Reading, text_only: bool) -> _Contents | None:
    if suffix in _JSON_SUFFIXES or (suffix not in TABLE_SUFFIXES and _JSON_START.match(lines.start)):
        return _json_contents(lines, suffix, reading)
    if suffix in TABLE_SUFFIXES or reading.pairs or reading.columns:
        table = read_table(lines, suffix, reading)
        if table:
            return _table_contents(lines.name, table, reading)
        if suffix in TABLE_SUFFIXES:
            return None
    turns = None if text_only else read_turns(lines, reading.speakers)
    return _Contents(turns.shape, turns.conversations, turns.notes) if turns else None


def _table_contents(name: str, table: Table, reading: Reading) -> _Contents:
    shape = choose_shape(name, table.first_records, reading, is_table=True)
    if shape is None:
        raise LLMError(_nothing_to_learn(name))
    contents = _record_contents(name, "line", table.records, shape, table.columns, table.notes)
    return replace(contents, first_row=table.first_row_as(shape.keys) if shape.name == "two columns" else "")


def _json_contents(lines: TextLines, suffix: str, reading: Reading) -> _Contents | None:
    peeked = lines.peek(3 * _PEEKED_RECORDS)
    start = [line for line in peeked if line.strip()][:_PEEKED_RECORDS]
    records = [record_of_line(line) for line in start]
    first_is_record = bool(start) and records[0] is not None
    begins_array = bool(start) and start[0].lstrip().startswith("[") and not first_is_record
    is_lines = suffix in _JSON_LINES_SUFFIXES or len(records) > 1
    shape = None if begins_array else choose_shape(lines.name, records, reading, must_be_known=is_lines)
    if shape:
        return _record_contents(lines.name, "line", records_of_lines(lines.name, lines), shape)
    contents = None
    if _JSON_START.match(lines.start) and not (first_is_record and start[0].lstrip().startswith("{")):
        contents = _json_text_contents(lines, reading)
    if contents is None and suffix in _JSON_LINES_SUFFIXES and None in records:
        for _ in records_of_lines(lines.name, peeked):  # raises LLMError for the line that is none
            pass
    return contents


def _json_text_contents(lines: TextLines, reading: Reading) -> _Contents | None:
    read: list[str] = []
    damage: LLMError | None = None
    try:
        for line in lines:
            read.append(line)
    except LLMError as error:
        damage = error
    text = "\n".join(read)
    first: list[object] = []
    try:
        for _, record in islice(records_of_text(lines.name, text), _PEEKED_RECORDS):
            first.append(record)
    except LLMError:
        first.append(None)  # not a record
    shape = choose_shape(lines.name, first, reading, must_be_known=len(first) > 1)
    if shape and damage:
        raise damage
    return _record_contents(lines.name, "line", records_of_text(lines.name, text), shape) if shape else None


def _record_contents(
    name: str,
    place: str,
    records: Iterable[tuple[int, object]],
    shape: RecordShape,
    columns: Iterable[str] = (),
    notes: list[str] | None = None,
) -> _Contents:
    """`place` is what the number of a record counts; `columns` are keys that the records may be read without."""
    notes = [] if notes is None else notes
    keys = dict.fromkeys(columns)  # in order
    inner: dict[str, None] = {}

    def numbered() -> Iterator[tuple[str, object]]:
        for number, record in records:
            yield f"{name} {place} {number:,}", record
            if isinstance(record, Mapping):
                keys.update(dict.fromkeys(record))
            inner.update(dict.fromkeys(unread_keys(record, shape)))
        others = [str(key) for key in keys if key not in shape.used_keys]
        read = shape.name if shape.name != "two columns" else " and ".join(shape.keys)
        for what, unused in ((f"read: {read}; not used", others), ("not used in messages", list(inner))):
            if unused:
                notes.append(f"{name}: {what}: {', '.join(unused[:5])}{', ...' if len(unused) > 5 else ''}")

    def texts() -> Iterator[str]:
        without = 0
        for source, record in numbered():
            text = text_of_record(record, source, shape)
            without += not text
            if text:
                yield text
        if without:
            notes.append(f"{name}: {without:,} records without text left out")

    if shape.is_text:
        return _Contents(shape.name, (), notes, shape.keys, keys, texts=texts())
    conversations = (from_record(record, source, shape) for source, record in numbered())
    return _Contents(shape.name, conversations, notes, shape.keys, keys)


# ---- what can be learned from


def _collect(
    name: str, path: Path, contents: _Contents | None, copy: TextCopy, sha256: Callable[[], str], text_only: bool
) -> ConversationFile | Document | None:
    if contents is None or (text_only and contents.texts is None):
        return None
    if contents.texts is not None:
        document = document_of_texts(name, path, contents.texts, copy)
        if not document.text_bytes:
            raise LLMError(f"{name}: the column {contents.columns[0]} has no text; name another one: --column NAME")
        columns = tuple(map(str, contents.all_columns))
        return replace(document, columns=contents.columns, all_columns=columns, notes=tuple(contents.notes))
    kept: list[Conversation] = []
    unanswered: list[str] = []  # the sources of conversations
    blank: list[str] = []
    shortened: list[str] = []
    answer_count = 0
    for conversation in contents.conversations:
        answers = answered(conversation.messages)
        if not answers:
            unanswered.append(conversation.source)
            continue
        if len(answers) < len(conversation.messages):
            shortened.append(conversation.source)
        answer_count += sum(message.role == "assistant" for message in answers)
        messages, questions = without_blank_answers(answers)
        for question in questions:
            blank.append(f"that to {brief(question.content, 40)}, in the conversation of {conversation.source}")
        kept.append(Conversation(tuple(messages), conversation.source))
    total = len(kept) + len(unanswered)
    if not kept:
        raise LLMError(_nothing_to_learn(name, total, *unanswered[:1]))
    notes = contents.notes + [
        f"{name}: {len(sources):,} {what} (the first: {sources[0]})"
        for sources, what in (
            (unanswered, f"of {total:,} conversations dropped: without an answer"),
            (blank, f"of {answer_count:,} answers left out, with the question: blank"),
            (shortened, f"of {total:,} conversations cut after the last answer: the messages after it have none"),
        )
        if sources
    ]
    text_bytes = sum(conversation.text_bytes for conversation in kept)
    return ConversationFile(
        name, path, contents.shape, tuple(kept), len(unanswered), tuple(notes), text_bytes, sha256(),
        columns=contents.columns, all_columns=tuple(map(str, contents.all_columns)), first_row=contents.first_row,
    )  # fmt: skip


def _nothing_to_learn(name: str, total: int = 0, first: str = "") -> str:
    if not total:
        return f"{name} holds no conversation, only a header; wanted rows of a prompt and an answer"
    others = f", as in all {total:,} conversations of the file" if total > 1 else ""
    return f"{first}: no answer{others}; wanted answers, to learn from"
