"""Tables in CSV and TSV files: the delimiter, the header, and the rows as records.

A file is a table if at least four in five of its first rows have the same number of columns, two or more; a
row with a different number is then an error. Prose with commas is not a table. The first row is a header if
it names known columns, such as question and answer, if all its cells are common column names, or if a column
has letters only in that row.
"""

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, TypeAlias

from llmcli.data.conversations.messages import PAIRS, normalized
from llmcli.data.conversations.record_kinds import ReadOptions, column_option
from llmcli.data.text.decoding import Document, OnRead, ignore
from llmcli.errors import LLMError, brief
from llmcli.units import count

TABLE_SUFFIXES = (".csv", ".tsv")
_PEEKED_LINES = 50
_PEEKED_ROWS = 10
# maximum characters of a cell, and of a line; Python's own limit of 131,072 is too small for some answers
MAX_CELL = 64_000_000
_HEADERS = ({"text"}, {"messages"}, {"conversations"}, {"chosen", "rejected"}, *map(set, PAIRS))
_NAMES = {  # if all cells of the first row are among these, it is a header
    "answer",
    "article",
    "back",
    "body",
    "category",
    "chinese",
    "class",
    "content",
    "de",
    "definition",
    "description",
    "en",
    "english",
    "es",
    "example",
    "expression",
    "fr",
    "french",
    "front",
    "german",
    "headline",
    "id",
    "it",
    "italian",
    "ja",
    "japanese",
    "key",
    "korean",
    "label",
    "language",
    "latin",
    "meaning",
    "name",
    "notes",
    "number",
    "phone",
    "phrase",
    "portuguese",
    "prompt",
    "pt",
    "question",
    "reading",
    "response",
    "russian",
    "sentence",
    "source",
    "spanish",
    "summary",
    "tags",
    "target",
    "term",
    "text",
    "title",
    "translation",
    "url",
    "value",
    "vocabulary",
    "word",
    "zh",
    "単語",
    "意味",
    "英語",
    "日本語",
    "表",
    "裏",
    "名前",
    "答え",
    "質問",
    "回答",
    "原文",
    "訳",
}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}

# (delimiter, whether a quoted cell may contain it, line ends and doubled quotation marks)
_Dialect: TypeAlias = tuple[str, bool]
_NumberedRow: TypeAlias = tuple[int, list[str]]  # (first line, cells)


class _QuotingError(LLMError):
    """A row that breaks the rules of RFC 4180 for quotation marks."""


@dataclass(frozen=True)
class Table:
    """A table; notes are added while its records are read."""

    columns: tuple[str, ...]  # names, or "1", "2", ... without a header
    first_row: tuple[str, ...]
    has_header: bool
    first_records: Sequence[Mapping[str, str]]
    records: Iterator[tuple[int, Mapping[str, str]]]  # (line, cells by column) of all rows after the header
    notes: list[str]

    def first_row_as(self, used: Sequence[str]) -> str:
        """Describe whether the first row is data or a header, and name the option for the other case."""
        row = f"the first row ({', '.join(brief(cell.strip(), 30) for cell in self.first_row)})"
        if self.has_header:
            numbers = (str(self.columns.index(column) + 1) for column in used)
            return f"{row} is the header; if it is data: {column_option(*numbers)}"
        return (
            f"{row} is data; if it is the header, name the columns of prompts and answers: `column` NAME,NAME"
        )


def read_table(
    document: Document, suffix: str, reading: ReadOptions, on_read: OnRead = ignore
) -> Table | None:
    """Read a table; None if the file is not a table. Unless the suffix is in TABLE_SUFFIXES, only tabs
    separate columns. Empty rows are left out. Raises LLMError for a row with a different number of columns;
    so does reading the records."""
    dialects: list[_Dialect] = [("\t", True), ("\t", False)]
    if suffix == ".csv":
        dialects = [(delimiter, True) for delimiter in DELIMITERS]
    starts = [(dialect, rows) for dialect in dialects if (rows := _first_rows(document, dialect))]
    starts.sort(key=lambda start: len(start[1]) < 2)  # last, if a quote hides all rows but the header
    widths = (
        (dialect, rows, _width(rows, share, reading)) for share in (1.0, 0.8) for dialect, rows in starts
    )
    dialect, rows, width = next((candidate for candidate in widths if candidate[2]), (dialects[0], [], 0))
    if not width:
        return None
    has_header = _has_header(rows, width, reading)
    columns = _column_names(rows[0] if has_header else [""] * width)
    first = [dict(zip(columns, row, strict=True)) for row in rows[has_header:] if len(row) == width]
    notes: list[str] = []
    all_rows = islice(_rows_of_file(document, dialect, notes, on_read), int(has_header), None)
    return Table(
        columns, tuple(rows[0]), has_header, first, _records(document.name, all_rows, columns), notes
    )


def _first_rows(document: Document, dialect: _Dialect) -> list[list[str]]:
    """Return the rows before the first unreadable one, which is reported later unless another dialect
    fits."""
    rows: list[list[str]] = []
    with contextlib.suppress(_QuotingError):
        lines = islice(_lines(document), _PEEKED_LINES)
        rows.extend(row for _, row in islice(_rows(document.name, lines, dialect), _PEEKED_ROWS + 1))
    return rows


def _width(rows: list[list[str]], share: float, reading: ReadOptions) -> int:
    """Return the number of columns that at least this share of the rows have, or 0. A single column must have
    the header "text", or the requested name."""
    if _is_known_header(rows[0]) or _has_columns(rows[0], reading):
        return len(rows[0])
    [(width, count)] = Counter(map(len, rows)).most_common(1)
    return width if width > 1 and count >= share * len(rows) else 0


def _is_known_header(row: list[str]) -> bool:
    names = set(map(normalized, row))
    return any(header <= names for header in _HEADERS)


def _has_header(rows: list[list[str]], width: int, reading: ReadOptions) -> bool:
    first = rows[0]
    others = [row for row in rows[1:] if len(row) == width]
    if len(first) != width:
        return False
    if _has_columns(first, reading):
        return True
    if reading.columns and all(column.isdecimal() and 0 < int(column) <= width for column in reading.columns):
        return False
    names = set(map(normalized, first))
    if _is_known_header(first) or (names <= _NAMES and len(names) == width):
        return True
    return len(others) > 1 and any(
        _has_letter(first[i]) and not any(_has_letter(row[i]) for row in others) for i in range(width)
    )


def _has_columns(row: list[str], reading: ReadOptions) -> bool:
    """Return whether a row names the requested columns."""
    return bool(reading.columns) and set(map(normalized, row)) >= set(map(normalized, reading.columns))


def _has_letter(cell: str) -> bool:
    return any(map(str.isalpha, cell))


def _column_names(header: list[str]) -> tuple[str, ...]:
    """Return the column names in a header. An unnamed column is named by its number; a repeated name gets its
    number appended."""
    names: dict[str, str] = {}  # normalized name -> name
    for number, cell in enumerate(map(str.strip, header), 1):
        name = cell or str(number)
        while normalized(name) in names:
            name = f"{name} {number}"
        names[normalized(name)] = name
    return tuple(names.values())


def _records(
    name: str, rows: Iterable[_NumberedRow], columns: tuple[str, ...]
) -> Iterator[tuple[int, Mapping[str, str]]]:
    for line, row in rows:
        if len(row) != len(columns):
            names = ", ".join(brief(column, 30) for column in columns)
            raise LLMError(
                f"{name} line {line:,}: {count(len(row), 'column')}; wanted {len(columns)} ({names}), with "
                "double quotes around text that contains the delimiter; "
                "or `plain` to read the file as plain text"
            )
        yield line, dict(zip(columns, row, strict=True))


def _rows_of_file(
    document: Document, dialect: _Dialect, notes: list[str], on_read: OnRead
) -> Iterator[_NumberedRow]:
    """Yield the rows of a file. TSV has no rule for quotation marks: they are read as in RFC 4180 if the
    whole file (which is held in memory for this) can be; otherwise they are part of the text."""
    if dialect == ("\t", True):
        try:
            yield from list(_rows(document.name, _lines(document, on_read), dialect))
            return
        except _QuotingError:
            dialect = ("\t", False)
    if not dialect[1]:
        notes.append(f"{document.name}: its quotation marks are part of the text")
    yield from _rows(document.name, _lines(document, on_read), dialect)


def _lines(document: Document, on_read: OnRead = ignore) -> Iterator[str]:
    """Yield the lines of a table. If the text is a single line, carriage returns end lines, as in files of
    old Mac programs. Raises LLMError for a line that takes too much memory."""
    lines = (_checked(document.name, line) for line in document.lines(on_read, MAX_CELL))
    start = list(islice(lines, 2))
    return chain(start if len(start) > 1 else "".join(start).removesuffix("\r").split("\r"), lines)


def _checked(name: str, line: str) -> str:
    if len(line) > MAX_CELL:
        raise LLMError(
            f"{name}: a line of over {MAX_CELL:,} characters; `plain` reads the file as plain text"
        )
    return line


def _has_space_before_quote(row: str, delimiter: str) -> bool:
    """Return whether a row has a quoted cell after a delimiter and spaces, as in `"id", "text"`."""
    delimiter = re.escape(delimiter)
    return re.search(rf'{delimiter} +"[^"]*"({delimiter}|\r?$)', row) is not None


def _rows(name: str, lines: Iterable[str], dialect: _Dialect) -> Iterator[_NumberedRow]:
    """Yield (first line, cells) of each nonempty row. Raises _QuotingError."""
    csv.field_size_limit(MAX_CELL)
    delimiter, is_quoted = dialect
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    lines = iter(lines)
    first = next(lines, "")
    reader = csv.reader(
        (line + "\n" for line in chain([first], lines)),
        delimiter=delimiter,
        quoting=quoting,
        strict=True,
        skipinitialspace=is_quoted and _has_space_before_quote(first, delimiter),
    )
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _QuotingError(
                f"{name} line {start:,}: {str(error).partition(' - ')[0]}; wanted double quotes around text "
                f"with a {DELIMITERS[delimiter]} or a quotation mark, and each quotation mark inside doubled"
            ) from error
        if row is None:
            return
        if start == 1 and delimiter.join(row).rstrip("\r") == f"sep={delimiter}":
            continue  # "sep=;", which tells Excel the delimiter
        if any(cell.strip() for cell in row):
            yield start, [cell.replace("\r\n", "\n") for cell in row]
