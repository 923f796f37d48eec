"""Tables in CSV and TSV files: which delimiter, whether the first row is a header, and the rows as records.

A file is a table if at least four in five of its first rows have the same number of columns, two or more; then any
other row is an error. So prose with commas is no table.

The first row is a header if it has the names of known columns, as question and answer, or if a column is a number in
all other rows but not there.

Standard library only.
"""

import contextlib
import csv
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from llmcli.data.conversations.messages import SHAPES, normalized
from llmcli.data.conversations.record_kinds import Reading
from llmcli.data.text.lines import TextLines
from llmcli.errors import LLMError, brief
from llmcli.units import count

_PEEKED_LINES, _PEEKED_ROWS = 50, 10
_MAX_CELL = 2**31 - 1  # characters; Python's own limit of 131,072 is smaller than answers can be
_MAX_HEADER = 40  # characters of two names of columns
_ALONE = {"text", "messages", "conversations"}  # a name that makes a header without a second one
_PAIRS = (*(shape.keys for shape in SHAPES if len(shape.keys) == 2), ("chosen", "rejected"))
_NAMES = {  # if all cells of the first row are among these, it is a header
    "answer", "article", "back", "body", "category", "chinese", "class", "content", "de", "definition",
    "description", "en", "english", "es", "example", "expression", "fr", "french", "front", "german", "headline",
    "id", "it", "italian", "ja", "japanese", "key", "korean", "label", "language", "latin", "meaning", "name",
    "notes", "number", "phone", "phrase", "portuguese", "prompt", "pt", "question", "reading", "response",
    "russian", "sentence", "source", "spanish", "summary", "tags", "target", "term", "text", "title", "translation",
    "url", "value", "vocabulary", "word", "zh", "単語", "意味", "英語", "日本語", "表", "裏", "名前", "答え", "質問",
    "回答", "原文", "訳",
}  # fmt: skip


class _QuotingError(LLMError):
    """A row that does not follow the rules for quotation marks of RFC 4180."""


@dataclass(frozen=True)
class Table:
    """A table; notes are added while it is read."""

    columns: tuple[str, ...]  # their names, or "1", "2", ... without a header
    first_row: tuple[str, ...]
    has_header: bool
    first_records: list[Mapping[str, str]]
    records: Iterator[tuple[int, Mapping[str, str]]]  # (line, cells by column) of all rows after the header
    notes: list[str]

    def first_row_as(self, used: Sequence[str]) -> str:
        """Whether the first row is data or a header, and the option for the other."""
        cells = [cell.strip() for cell in self.first_row]
        row = ", ".join(brief(cell, 30) for cell in cells)
        if self.has_header:
            numbers = ",".join(str(self.columns.index(column) + 1) for column in used)
            return f"the first row ({row}) is the header; if it is data: --column {numbers}"
        if len(cells) < len(self.columns):
            return f"the first row ({row}) is data"  # and an error when it is read
        header = ",".join(cells[int(column) - 1] for column in used)
        if len(header) > _MAX_HEADER or header.count(",") > 1 or any(map(str.isdigit, header)):
            return f"the first row ({row}) is data"
        return f"the first row ({row}) is data; if it is the header: --column {shlex.quote(header)}"


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quoted: bool = True  # a cell in quotation marks may hold the delimiter, line ends and doubled quotation marks


_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_DIALECTS = {".csv": tuple(map(_Dialect, _DELIMITERS)), ".tsv": (_Dialect("\t"), _Dialect("\t", quoted=False))}
TABLE_SUFFIXES = frozenset(_DIALECTS)


def read_table(lines: TextLines, suffix: str, reading: Reading) -> Table | None:
    """The table in a file whose name ends with `suffix`: one of TABLE_SUFFIXES, or another, where only tabs separate
    columns. None if it is no table.

    Raises LLMError, also later while the records are read, for a row with another number of columns. Rows whose cells
    are empty are left out.
    """
    lines.split_at_carriage_returns()
    dialects = _DIALECTS.get(suffix, _DIALECTS[".tsv"])
    starts = [(dialect, rows) for dialect in dialects if (rows := _first_rows(lines, dialect))]
    for share in (1.0, 0.8):
        for dialect, rows in starts:
            if width := _width(rows, share):
                return _table(lines, dialect, rows, width, reading)
    return None


def _first_rows(lines: TextLines, dialect: _Dialect) -> list[list[str]]:
    """The rows up to the first that cannot be read; it is an error later, unless there is another dialect."""
    rows = []
    with contextlib.suppress(_QuotingError):
        for _, row in islice(_rows(lines.name, lines.peek(_PEEKED_LINES), dialect), _PEEKED_ROWS + 1):
            rows.append(row)
    return rows


def _width(rows: list[list[str]], share: float) -> int:
    """The number of columns that at least this share of the rows have; 0 if there is none. A single column is a table
    if its header is "text"."""
    if _is_header_of_known_columns(rows[0]):
        return len(rows[0])
    [(width, most)] = Counter(map(len, rows)).most_common(1)
    return width if width > 1 and most >= share * len(rows) else 0


def _is_header_of_known_columns(row: list[str]) -> bool:
    names = [normalized(cell) for cell in row]
    return not _ALONE.isdisjoint(names) or any(set(pair) <= set(names) for pair in _PAIRS)


def _has_header(rows: list[list[str]], width: int, reading: Reading) -> bool:
    first, others = rows[0], [row for row in rows[1:] if len(row) == width]
    names = {normalized(cell) for cell in first}
    if len(first) != width:
        return False
    if reading.columns and names >= set(map(normalized, reading.columns)):
        return True
    if reading.columns and all(column.isdecimal() and 0 < int(column) <= width for column in reading.columns):
        return False
    if _is_header_of_known_columns(first) or (names <= _NAMES and len(names) == width):
        return True
    return len(others) > 1 and any(
        _has_letter(first[i]) and not any(_has_letter(row[i]) for row in others) for i in range(width)
    )


def _has_letter(cell: str) -> bool:
    return any(map(str.isalpha, cell))


def _table(lines: TextLines, dialect: _Dialect, rows: list[list[str]], width: int, reading: Reading) -> Table:
    has_header = _has_header(rows, width, reading)
    columns = _column_names(rows[0] if has_header else [""] * width)
    first: list[Mapping[str, str]]
    first = [dict(zip(columns, row, strict=True)) for row in rows[has_header:] if len(row) == width]
    notes: list[str] = []
    records = _records(lines.name, _rows_of_file(lines, dialect, notes), columns, has_header)
    return Table(columns, tuple(rows[0]), has_header, first, records, notes)


def _column_names(header: list[str]) -> tuple[str, ...]:
    """The cells of a header; a column without a name gets its number, and one with the name of an earlier column both.

    >>> _column_names(["", "answer", "answer"])
    ('1', 'answer', 'answer 3')
    """
    names: dict[str, None] = {}
    for number, cell in enumerate(map(str.strip, header), 1):
        taken = {normalized(name) for name in names}
        name = cell or str(number)
        while normalized(name) in taken:
            name = f"{name} {number}"
        names[name] = None
    return tuple(names)


def _records(
    name: str, rows: Iterator[tuple[int, list[str]]], columns: tuple[str, ...], has_header: bool
) -> Iterator[tuple[int, Mapping[str, str]]]:
    if has_header:
        next(rows)
    for line, row in rows:
        if len(row) != len(columns):
            names = ", ".join(brief(column, 30) for column in columns)
            raise LLMError(
                f"{name} line {line:,}: {count(len(row), 'column')}; wanted {len(columns)} ({names}), where text with "
                f"the delimiter in it stands in double quotes; or add --plain to read the file as plain text"
            )
        yield line, dict(zip(columns, row, strict=True))


# ---- rows


def _rows_of_file(lines: TextLines, dialect: _Dialect, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file. TSV has no rule for quotation marks: they are those of RFC 4180 if the whole file, which is
    held in memory for that, can be read so, and else part of the text."""
    text: Iterable[str] = lines
    if dialect == _Dialect("\t"):
        text = list(lines)
        try:
            yield from list(_rows(lines.name, text, dialect))
            return
        except _QuotingError:
            dialect = _Dialect("\t", quoted=False)
    if not dialect.quoted:
        notes.append(f"{lines.name}: its quotation marks are part of the text")
    yield from _rows(lines.name, text, dialect)


def _rows(name: str, lines: Iterable[str], dialect: _Dialect) -> Iterator[tuple[int, list[str]]]:
    """(line in which the row begins, its cells) for rows that are not empty. Raises _QuotingError."""
    csv.field_size_limit(_MAX_CELL)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader((line + "\n" for line in lines), delimiter=dialect.delimiter, quoting=quoting, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            delimiter = _DELIMITERS[dialect.delimiter]
            raise _QuotingError(
                f"{name} line {start:,}: {_reason(str(error))}; wanted text with a {delimiter} or a quotation mark in "
                f'it as "text", each quotation mark inside doubled'
            ) from error
        if row is None:
            return
        if start == 1 and dialect.delimiter.join(row).rstrip("\r") == f"sep={dialect.delimiter}":
            continue  # for Excel, which takes the delimiter from it
        if any(cell.strip() for cell in row):
            yield start, [cell.replace("\r\n", "\n") for cell in row]


def _reason(error: str) -> str:
    """An error of Python's csv module in the words of this one."""
    if "unexpected end of data" in error:
        return "a quotation mark without its partner"
    if "new-line" in error:
        return "a carriage return inside a row"
    return "text after the quotation mark that ends a cell"
