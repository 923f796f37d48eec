"""One file of records or plain text as conversations, the text in a column, or plain text: `read_records`.
Documents (PDF, HTML, ...) are read in data/documents/ first, unless they are read as plain text.

- JSON: one record a line, an array of records, or records one after the other (text/json_records.py).
- Tables in CSV, TSV (conversations/tables.py) and Parquet files (text/parquet_records.py): each row is a
  record whose keys are the columns.
- Plain text with turns: conversations/turns.py. Other text: text/decoding.py.

The first ten records decide the shape of all (conversations/record_kinds.py); a later record of another shape
is an error. Records without an answer are left out and counted. Conversations are held in memory.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from llmcli.data.conversations.messages import (
    Conversation,
    Message,
    RecordShape,
    from_record,
    is_list_of_messages,
    text_of_record,
)
from llmcli.data.conversations.record_kinds import ReadOptions, choose_shape
from llmcli.data.conversations.tables import TABLE_SUFFIXES, read_table
from llmcli.data.conversations.turns import read_turns
from llmcli.data.text import decoding, file_types
from llmcli.data.text.decoding import Document, FileContent, FileFacts, OnRead, Stored, ignore
from llmcli.data.text.json_records import (
    MAX_RECORD,
    InvalidJSONError,
    NumberedRecord,
    records_of_lines,
    records_of_text,
    wrapped_records,
)
from llmcli.data.text.parquet_records import open_table
from llmcli.data.text.temporary_files import TextCopy
from llmcli.errors import LLMError, brief
from llmcli.units import count, listed

MARKUP = "read with"  # part of the description of text whose markup the model would learn
_TABLE_LINES = 10
_JSON_TEXT = re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])")
_PEEKED_RECORDS = 10
_JSON_START = re.compile(r"\s*(?:\{|\[\s*[\[{])")
_JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
_MAX_KEYS = 5  # columns listed in a note


@dataclass(frozen=True)
class ConversationFile(FileFacts):
    """The usable conversations in a file: each ends with an answer, and no answer is blank."""

    shape: str  # "messages", "prompt/completion", "ShareGPT", "two columns", "User:/Assistant: turns", ...
    conversations: tuple[Conversation, ...] = field(repr=False)
    dropped: int = 0  # conversations without an answer
    first_row: str = ""  # how the first row of a table with unknown names was read


def read_records(
    name: str,
    path: Path,
    content: FileContent,
    *,
    reading: ReadOptions,
    copy: TextCopy,
    on_read: OnRead = ignore,
) -> ConversationFile | Document:
    """Read a file as conversations, the text in a column, or plain text. Standard input is always plain text.
    `content` is the open file, or its content stored in `copy`; decoded text is appended to `copy`. Raises
    LLMError, for example for a malformed record or unknown columns."""
    if isinstance(content, Stored) and content.is_table:
        return _read_table(name, path, content, copy, reading.text_only)
    document = decoding.read_document(name, path, content, copy, on_read, reading.encoding)
    start = document.start
    document = replace(document, detail=_markup(start))
    if name == decoding.STANDARD_INPUT or reading.plain:
        return document
    suffix = file_types.suffix_of(name)
    is_table = suffix in TABLE_SUFFIXES
    file = None
    if not is_table and (suffix in (*_JSON_LINES_SUFFIXES, ".json") or _JSON_START.match(start)):
        file = _from_json(document, start, copy, reading, on_read)
    elif is_table or reading.pairs or reading.columns:
        file = _from_table(document, copy, reading, on_read)
    if file:
        return file
    if reading.text_only or is_table or not (turns := read_turns(document, reading.speakers, start)):
        return document
    return _conversation_file(document, *turns)


def _markup(start: str) -> str:
    """Describe the markup in a text with this beginning, which the model would also learn; "" if there is
    none."""
    lines = [line for line in start.split("\n", _TABLE_LINES)[:_TABLE_LINES] if line.strip()]
    tabs = {line.count("\t") for line in lines}
    if file_types.is_page(start):
        return f"HTML, {MARKUP} its tags"
    if start.startswith("<?xml "):
        return f"XML, {MARKUP} its tags"
    if _JSON_TEXT.match(start):
        return f"JSON, {MARKUP} its keys and braces"
    if len(lines) > 1 and len(tabs) == 1 and tabs != {0}:
        return "tabs separate columns; to read them as prompts and answers: `column` 1,2"
    return ""


def _contents(
    file: Document,
    copy: TextCopy,
    text_only: bool,
    shape: RecordShape,
    records: Iterable[NumberedRecord],
    columns: Iterable[str] = (),
    place: str = "line",
    first_row: str = "",
    notes: Sequence[str] = (),
) -> ConversationFile | Document:
    """Read records of a `file` as conversations, or as the text in the column or columns. `place` is the unit
    of their numbers. Columns of the records are added to `columns`; `notes` are complete once all records are
    read."""
    if text_only and not shape.is_text:
        return file
    all_columns = dict.fromkeys(columns)

    def with_sources() -> Iterator[tuple[object, str]]:
        for number, record in records:
            yield record, f"{file.name} {place} {number:,}"
            if isinstance(record, Mapping):
                all_columns.update(dict.fromkeys(record))

    content: ConversationFile | Document
    if shape.is_text:
        content = _text_in_columns(file, shape, with_sources(), copy)
    else:
        conversations = [from_record(record, source, shape) for record, source in with_sources()]
        content = replace(_conversation_file(file, shape.name, conversations), first_row=first_row)
    by_column = shape.is_text or shape.name == "two columns"
    read = " and ".join(shape.keys) if by_column else shape.name
    names = tuple(map(str, all_columns))
    others = [name for name in names if name not in shape.used_keys]
    unused = [f"{file.name}: read: {read}; not used: {listed(others, _MAX_KEYS)}"] if others else []
    all_notes = (*notes, *unused, *content.notes)
    return replace(content, columns=shape.keys, all_columns=names, notes=all_notes)


def _text_in_columns(
    file: Document, shape: RecordShape, records: Iterable[tuple[object, str]], copy: TextCopy
) -> Document:
    """Append the text in the column or columns of records (with their sources) to `copy`. Raises LLMError if
    there is no text."""
    blank = 0

    def texts() -> Iterator[str]:
        nonlocal blank
        for record, source in records:
            if text := text_of_record(record, source, shape):
                yield text
            else:
                blank += 1

    name = file.name
    keys = shape.keys
    document = decoding.document_of_texts(name, file.path, texts(), copy)
    if not document.text_bytes:
        raise LLMError(
            f"{name}: the column {listed(keys, _MAX_KEYS)} has no text; name another: `column` NAME"
        )
    detail = f"column {keys[0]}" + (", the only one with prose" if shape.is_only_prose else "")
    return replace(
        document,
        notes=(f"{name}: left out {count(blank, 'record')} without text",) if blank else (),
        template=shape.template,
        detail=f"columns {', '.join(keys)}" if shape.template else detail,
        encoding=file.encoding,
        file_bytes=file.file_bytes,
        skipped=(("record without text", blank),) if blank else (),
    )


def table_lines(name: str, file: IO[bytes], reading: Mapping[str, Any]) -> Iterator[str]:
    """Yield the rows of a Parquet file as lines of JSON, each a list of the values in the columns that are
    read; the first line describes the table. Runs in the child process with limits; `reading` has the fields
    of `ReadOptions`. Raises LLMError."""
    file_facts = {"sha256": _sha256(file), "bytes": file.seek(0, io.SEEK_END)}
    with open_table(name, file) as (columns, rows):
        if not (first := list(islice(rows(columns), _PEEKED_RECORDS))):
            raise LLMError(f"{name} has no rows; wanted rows with text, or with a prompt and an answer")
        shape = choose_shape(name, first, ReadOptions(**reading), is_text=False)
        if shape is None:
            raise _no_text(name)
        used = [column for column in columns if column in shape.used_keys]
        yield _json_line({"shape": asdict(shape), "columns": columns, "used": used} | file_facts)
        for record in rows(used):
            yield _json_line([record[column] for column in used])


def _json_line(value: object) -> str:
    """Return a value as a line of JSON. Values of other types, such as dates and bytes, are not read, and
    become objects."""
    return json.dumps(value, ensure_ascii=False, default=lambda other: {"type": type(other).__name__}) + "\n"


def _read_table(
    name: str, path: Path, content: Stored, copy: TextCopy, text_only: bool
) -> ConversationFile | Document:
    """Read the lines that `table_lines` yields."""
    lines = Document(name, path, copy.size - content.offset, "", content.offset, copy).lines()
    table = json.loads(next(lines))
    shape = RecordShape(**table["shape"] | {"keys": tuple(table["shape"]["keys"])})
    if text_only and not shape.is_text:
        raise _no_text(name)
    rows = (dict(zip(table["used"], json.loads(line), strict=True)) for line in lines)
    file = Document(name, path, 0, table["sha256"], file_bytes=table["bytes"])
    return _contents(file, copy, text_only, shape, enumerate(rows, 1), table["columns"], "row")


def _no_text(name: str) -> LLMError:
    return LLMError(f"{name} {file_types.describe(name, file_types.TABLE)}")


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(decoding.BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _from_table(
    document: Document, copy: TextCopy, reading: ReadOptions, on_read: OnRead
) -> ConversationFile | Document | None:
    table = read_table(document, file_types.suffix_of(document.name), reading, on_read)
    if table is None:
        return None
    shape = choose_shape(document.name, table.first_records, reading, cells_are_text=True)
    if shape is None:
        next(iter(table.records), None)  # raises the error of the first row, if it cannot be read
        raise LLMError(
            f"{document.name} has a header but no conversations; wanted rows with a prompt and an answer"
        )
    first_row = table.first_row_as(shape.keys) if shape.name == "two columns" else ""
    return _contents(
        document,
        copy,
        reading.text_only,
        shape,
        table.records,
        table.columns,
        first_row=first_row,
        notes=table.notes,
    )


def _from_json(
    document: Document, start: str, copy: TextCopy, reading: ReadOptions, on_read: OnRead
) -> ConversationFile | Document | None:
    name = document.name
    suffix = file_types.suffix_of(name)
    begins_array = start.lstrip().startswith("[")
    must_be_lines = suffix in _JSON_LINES_SUFFIXES and not begins_array
    lines = records_of_lines(name, document.lines(ignore, MAX_RECORD))
    first = _first(lines, () if must_be_lines else LLMError) or [None]  # the text is empty
    records: Iterable[NumberedRecord]
    if must_be_lines or isinstance(first[0], Mapping) or is_list_of_messages(first[0]):
        records = records_of_lines(name, document.lines(on_read, MAX_RECORD))
    else:
        first = _first(records_of_text(name, document.text()), InvalidJSONError)
        records = records_of_text(name, document.pieces(on_read))
    place = "line"
    if not must_be_lines and len(first) == 1 and (inner := wrapped_records(first[0])):
        first = inner[:_PEEKED_RECORDS]
        records = enumerate(inner, 1)
        place = "record"
    must_be_known = suffix in _JSON_LINES_SUFFIXES or len(first) > 1
    shape = choose_shape(name, first, reading, must_be_known=must_be_known)
    return _contents(document, copy, reading.text_only, shape, records, place=place) if shape else None


def _first(records: Iterable[NumberedRecord], ignored: type[LLMError] | tuple[()]) -> list[object]:
    """Return the first records, up to an error; a record whose error is `ignored` is None in the list."""
    first: list[object] = []
    try:
        first.extend(record for _, record in islice(records, _PEEKED_RECORDS))
    except ignored:
        first.append(None)
    return first


def _conversation_file(
    document: Document, shape: str, conversations: Iterable[Conversation], notes: Iterable[str] = ()
) -> ConversationFile:
    """Keep the conversations that have an answer, each up to its last answer. Raises LLMError if there are
    none."""
    kept: list[Conversation] = []
    unanswered: list[str] = []  # sources of the conversations
    cut: list[str] = []
    blank: list[str] = []
    total = answer_count = 0
    for total, conversation in enumerate(conversations, 1):  # noqa: B007 (used below)
        messages = conversation.messages
        source = conversation.source
        answered = [i for i, m in enumerate(messages, 1) if m.role == "assistant" and m.content.strip()]
        if not answered:
            unanswered.append(source)
            continue
        if answered[-1] < len(messages):
            cut.append(source)
        learned: list[Message] = []
        for message in messages[: answered[-1]]:
            answer_count += message.role == "assistant"
            if message.role != "assistant" or message.content.strip():
                learned.append(message)
                continue
            # a blank answer is left out with its questions
            question = learned[-1] if learned else message
            blank.append(f"to {brief(question.content, 40)} in {source}")
            while learned and learned[-1].role == "user":
                learned.pop()
        kept.append(Conversation(tuple(learned), source))
    if not kept:
        none = f"{document.name}: none of the {total:,} conversations has an answer"
        raise LLMError(f"{f'{unanswered[0]}: no answer' if total == 1 else none}; wanted answers to train on")
    of_all = f"of {total:,} conversations"
    of_answers = f"of {answer_count:,} answers left out with their questions: blank"
    parts = [
        (unanswered, "conversation without an answer", f"{of_all} left out: no answer"),
        (cut, "end of a conversation without an answer", f"{of_all} cut after the last answer"),
        (blank, "blank answer", of_answers),
    ]
    parts = [part for part in parts if part[0]]
    dropped = (f"{document.name}: {len(who):,} {what} (first: {who[0]})" for who, _, what in parts)
    return ConversationFile(
        document.name,
        document.path,
        sum(conversation.text_bytes for conversation in kept),
        document.sha256,
        shape,
        tuple(kept),
        len(unanswered),
        encoding=document.encoding,
        file_bytes=document.file_bytes,
        notes=(*notes, *dropped),
        skipped=tuple((reason, len(who)) for who, reason, _ in parts),
    )
