"""Conversations of a table with two columns, a prompt and its answer: CSV and TSV files.

A file is taken as one by the ending of its name, if
- its first row is a header of a known pair such as question,answer, or
- all of its first rows have two columns, and most a word in both, which tables of numbers do not have, or
- four in five of its first rows have two columns with a word in both: then a row that has not is an error.

Standard library only.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from llmcli.data.conversations import SHAPES, Conversation, Message
from llmcli.data.text_lines import TextLines
from llmcli.errors import LLMError, brief
from llmcli.units import count

_PEEKED_LINES, _PEEKED_ROWS = 50, 10
_HEADERS = {  # names of the two columns, in lower case
    *(shape.keys for shape in SHAPES if len(shape.keys) == 2),
    ("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("q", "a"), ("質問", "回答"), ("問", "答"),
}  # fmt: skip


class _QuotingError(LLMError):
    """A row that does not follow the rules for quotation marks of RFC 4180."""


@dataclass(frozen=True)
class Table:
    """A recognized table: its conversations and notes come as it is read."""

    conversations: Iterator[Conversation]
    notes: list[str]


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    quoted: bool = True  # a cell in quotation marks may hold the delimiter, line ends and doubled quotation marks

    @property
    def delimiter_name(self) -> str:
        return {",": "comma", ";": "semicolon", "\t": "tab"}[self.delimiter]


_DIALECTS = {".csv": (_Dialect(","), _Dialect(";")), ".tsv": (_Dialect("\t"), _Dialect("\t", quoted=False))}
TABLE_SUFFIXES = frozenset(_DIALECTS)


def read_table(lines: TextLines, suffix: str) -> Table | None:
    """The conversations of a file whose name ends with `suffix`, one of TABLE_SUFFIXES; None if it is no such table.

    Raises LLMError, also later while the conversations are read, for a row without exactly two columns. Rows whose
    cells are empty are left out.
    """
    starts = [(dialect, rows) for dialect in _DIALECTS[suffix] if (rows := _first_rows(lines, dialect))]
    for fits in (_holds_words, _nearly_holds_words):
        for dialect, rows in starts:
            columns = _header(rows[0])
            if columns or fits(rows):
                return _table(lines, dialect, rows[0], columns)
    return None


def _first_rows(lines: TextLines, dialect: _Dialect) -> list[list[str]]:
    """The rows up to the first that cannot be read; it is an error later, unless there is another dialect."""
    rows = []
    try:
        for _, row in _rows(lines.name, lines.peek(_PEEKED_LINES), dialect):
            rows.append(row)
            if len(rows) > _PEEKED_ROWS:
                break
    except _QuotingError:
        pass
    return rows


def _header(row: list[str]) -> tuple[int, int] | None:
    """The columns of the prompt and of the answer, if a row names them."""
    names = tuple(cell.strip().lower() for cell in row)  # of any length
    if names in _HEADERS:
        return 0, 1
    return (1, 0) if names[::-1] in _HEADERS else None


def _holds_words(rows: list[list[str]]) -> bool:
    return _pairs_of_words(rows) * 2 > len(rows) and all(len(row) == 2 for row in rows)


def _nearly_holds_words(rows: list[list[str]]) -> bool:
    return _pairs_of_words(rows) * 5 >= len(rows) * 4


def _pairs_of_words(rows: list[list[str]]) -> int:
    """The number of rows of two columns with a letter in each."""
    return sum(len(row) == 2 and all(any(map(str.isalpha, cell)) for cell in row) for row in rows)


def _table(lines: TextLines, dialect: _Dialect, first_row: list[str], columns: tuple[int, int] | None) -> Table:
    shown = ", ".join(brief(cell, 30) for cell in first_row)
    if columns:
        order = "" if columns == (0, 1) else "; the answer stands in the first column"
        notes = [f"{lines.name}: the first row is the header ({shown}){order}"]
    else:
        notes = [f"{lines.name}: the first row ({shown}) is data; a header would be question,answer or source,target"]
    rows = _rows_of_file(lines, dialect, notes)
    return Table(_conversations(lines.name, rows, columns), notes)


def _conversations(
    name: str, rows: Iterator[tuple[int, list[str]]], columns: tuple[int, int] | None
) -> Iterator[Conversation]:
    if columns:
        next(rows)
    prompt, answer = columns or (0, 1)
    for line, row in rows:
        source = f"{name} line {line:,}"
        if len(row) != 2:
            raise LLMError(
                f"{source}: {count(len(row), 'column')}; wanted 2, a prompt and an answer (text with the "
                f"delimiter in it stands in double quotes)"
            )
        yield Conversation((Message("user", row[prompt]), Message("assistant", row[answer])), source)


# ---- rows


def _rows_of_file(lines: TextLines, dialect: _Dialect, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file. Quotation marks of a TSV file, which has no rule for them, are those of RFC 4180 if all of
    the file can be read so, and else part of the text; it is held in memory for that."""
    if dialect != _Dialect("\t"):
        if not dialect.quoted:
            notes.append(f"{lines.name}: its quotation marks are part of the text")
        yield from _rows(lines.name, lines, dialect)
        return
    text = list(lines)
    try:
        rows = list(_rows(lines.name, text, dialect))
    except _QuotingError:
        notes.append(f"{lines.name}: its quotation marks are part of the text")
        rows = list(_rows(lines.name, text, _Dialect("\t", quoted=False)))
    yield from rows


def _rows(name: str, lines: Iterable[str], dialect: _Dialect) -> Iterator[tuple[int, list[str]]]:
    """(line in which the row begins, its cells) for rows that are not empty. Raises _QuotingError."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    reader = csv.reader((line + "\n" for line in lines), delimiter=dialect.delimiter, quoting=quoting, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _QuotingError(
                f"{name} line {start:,}: {_reason(str(error))}; wanted text with a {dialect.delimiter_name} or a "
                f'quotation mark in it as "text", each quotation mark inside doubled'
            ) from error
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield start, [cell.replace("\r\n", "\n") for cell in row]


def _reason(error: str) -> str:
    """An error of Python's csv module in the words of this one."""
    if "unexpected end of data" in error:
        return "a quotation mark without its partner"
    if "field limit" in error:
        return f"a cell of more than {csv.field_size_limit():,} characters (a quotation mark without its partner?)"
    if "new-line" in error:
        return "a carriage return inside a row"
    return "text after the quotation mark that ends a cell"
