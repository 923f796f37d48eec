"""The kind of records: conversations, pairs of a prompt and an answer, or plain text in one column.

It is decided here for JSON, tables and Parquet alike, by the names of the columns in the first records. Records that
would teach the model something wrong, and those of an unknown kind, are an error that names the option that helps.

Standard library only.
"""

import csv
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcli.data.conversations.messages import (
    Record,
    RecordShape,
    filter_command,
    is_list_of_messages,
    normalized,
    record_shape,
    shape_by_keys,
)
from llmcli.errors import LLMError, brief, usage

_TEXT = "text"  # the name of a column that is read as plain text without being asked for
_TEXT_NAMES = (_TEXT, "content", "body", "story", "article", "document", "output", "completion", "response")
_PROMPT = "prompt"
_MAX_COLUMNS = 8  # that a message lists


@dataclass(frozen=True)
class Reading:
    """How files are read, as the user says; by default, as their content shows."""

    speakers: tuple[str, str] | None = None  # the names of the user and of the assistant in text with turns
    pairs: bool = False  # two columns are a prompt and its answer, whatever they are called and hold
    columns: tuple[str, ...] = ()  # one with plain text, or two with a prompt and its answer; by name, or by number
    plain: bool = False  # everything is plain text

    @property
    def is_requested(self) -> bool:
        """Whether the user says what columns are for. The speakers do not count: their text has no columns."""
        return bool(self.pairs or self.columns or self.plain)

    def as_record(self) -> dict[str, Any]:
        """For the training record."""
        fields = {"pairs": self.pairs, "columns": list(self.columns), "plain": self.plain}
        return {key: value for key, value in fields.items() if value}

    @classmethod
    def of_options(cls, speakers: tuple[str, str] | None, pairs: bool, column: str | None, plain: bool) -> "Reading":
        """`column` is NAME or PROMPT,ANSWER; a name with a comma stands in double quotes. Raises LLMError."""
        columns = tuple(map(str.strip, next(csv.reader([column], skipinitialspace=True)))) if column else ()
        if len(columns) > 2 or not all(columns) or len(set(columns)) < len(columns):
            raise usage(f"column must be one name, or two as in question,answer; found {column}")
        if pairs + plain + bool(columns) > 1:
            raise usage("pairs, column and plain exclude each other; give one of them")
        return cls(speakers, pairs, columns, plain)

    @classmethod
    def of_record(cls, record: object, speakers: tuple[str, str] | None = None) -> "Reading":
        """The reverse of `as_record`, whatever a file may hold."""
        fields = record if isinstance(record, Mapping) else {}
        columns = fields.get("columns")
        names = tuple(map(str, columns)) if isinstance(columns, list) else ()
        return cls(speakers, bool(fields.get("pairs")), names[:2], bool(fields.get("plain")))


def choose_shape(
    name: str,
    records: Iterable[object],
    reading: Reading,
    *,
    is_table: bool = False,
    must_be_known: bool = True,
    is_text: bool = True,
) -> RecordShape | None:
    """The kind of the first records of a file, each an object or None.

    None is returned if most are no objects, and for an unknown kind unless it `must_be_known`. Every cell of a table is
    text, so two columns with words are pairs. A file that `is_text` can be read as plain text. Raises LLMError for
    records that would teach the model something wrong, and for an unknown kind.
    """
    records = list(records)
    objects = [record for record in records if isinstance(record, Mapping)]
    if shape := _requested(name, objects, reading):
        return shape
    if 2 * sum({"chosen", "rejected"} <= set(map(normalized, record)) for record in objects) >= max(1, len(records)):
        raise LLMError(_explain_preferences(name, objects))
    shapes = Counter(filter(None, map(_shape, records))).most_common(1)
    if shapes and 2 * shapes[0][1] >= len(records):
        shape = shapes[0][0]
        _check_feedback(name, objects, shape)
        return shape
    if not objects or 2 * len(objects) < len(records):
        return None
    columns = _columns(objects)
    if is_table and len(columns) == 2 and _hold_words(objects):
        return RecordShape("two columns", tuple(columns))
    if not must_be_known:
        return None
    if shape := next(filter(None, map(shape_by_keys, objects)), None):
        return shape  # whose values are an error, each with its line
    raise LLMError(_explain_unknown(name, columns, objects, is_table, is_text))


def _requested(name: str, records: Sequence[Record], reading: Reading) -> RecordShape | None:
    """The kind that the user names; None if these records have no such columns."""
    columns = _columns(records)
    if reading.pairs and len(columns) == 2:
        return RecordShape("two columns", tuple(columns))
    if reading.pairs and len(columns) > 2 and not any(map(record_shape, records)):
        option = column_option(*list(columns)[-2:])
        raise LLMError(f"{name}: {len(columns)} columns ({_listed(columns)}), and --pairs takes 2; name them: {option}")
    known = {normalized(column): column for column in columns}
    wanted = [known.get(normalized(column)) for column in reading.columns]
    chosen = tuple(column for column in wanted if column is not None)
    if not wanted or len(chosen) < len(wanted):
        return None
    if len(chosen) == 2:
        return RecordShape("two columns", chosen)
    values = [value for record in records if (value := record.get(chosen[0])) is not None]
    if any(map(is_list_of_messages, values)):
        return RecordShape("messages", chosen)
    if not any(isinstance(value, str) for value in values):
        raise LLMError(f"{name}: the column {brief(chosen[0])} has no text; its columns: {_listed(columns)}")
    return RecordShape(_TEXT, chosen, is_text=True)


def _shape(record: object) -> RecordShape | None:
    if shape := record_shape(record):
        return shape
    if isinstance(record, Mapping):
        key = next((str(key) for key in record if normalized(key) == _TEXT), None)
        if key and isinstance(record[key], str):
            return RecordShape(_TEXT, (key,), is_text=True)
    return None


def column_option(*columns: str) -> str:
    """The option that names these columns, as it is typed.

    >>> column_option("my question", "answer")
    "--column 'my question,answer'"
    """
    quoted = ('"' + name.replace('"', '""') + '"' if "," in name or name[:1] == '"' else name for name in columns)
    return f"--column {shlex.quote(','.join(quoted))}"


def _columns(records: Iterable[Record]) -> dict[str, None]:
    return dict.fromkeys(str(key) for record in records for key in record)


def _hold_words(records: Sequence[Record]) -> bool:
    """Whether most rows have a letter in one of their cells, which tables of numbers do not have."""
    words = sum(any(character.isalpha() for cell in row.values() for character in str(cell)) for row in records)
    return 2 * words > len(records)


# ---- messages


def _listed(columns: Iterable[str]) -> str:
    names = list(columns)
    return ", ".join(brief(name, 30) for name in names[:_MAX_COLUMNS]) + (", ..." if len(names) > _MAX_COLUMNS else "")


def _explain_preferences(name: str, records: Sequence[Record]) -> str:
    columns = {normalized(column): column for column in _columns(records)}
    chosen = columns["chosen"]
    values = (record.get(chosen) for record in records)
    holds_prompt = any(isinstance(one, list) and len(one) > 1 and is_list_of_messages(one) for one in values)
    answer = (chosen,) if holds_prompt or _PROMPT not in columns else (columns[_PROMPT], chosen)
    return (
        f"{name}: preference data: training would also learn the rejected answers; to train on the chosen ones: "
        f"{column_option(*answer)}"
    )


def _check_feedback(name: str, records: Sequence[Record], shape: RecordShape) -> None:
    """Raise LLMError for answers of which some are, or may be, marked as bad (the format of KTO)."""
    marks = {str(record.get(key)).lower() for record in records for key in record if normalized(key) == "label"}
    if not shape.is_text and "false" in marks and marks <= {"true", "false"}:
        raise LLMError(
            f'{name}: "label" says which answers are good, and training would also learn the others; keep the good '
            f"ones only (JSON Lines: {filter_command(name, '.label')})"
        )


def _explain_unknown(
    name: str, columns: Mapping[str, None], records: Sequence[Record], is_table: bool, can_be_plain: bool
) -> str:
    def is_text(column: str) -> bool:
        return any(isinstance(value := record.get(column), str) and any(map(str.isalpha, value)) for record in records)

    texts = list(filter(is_text, columns))
    problem = f"{name}: what to train on cannot be told from its columns ({_listed(columns)})"
    if is_table and len(columns) == 2:
        return f"{problem}, which hold no words; add --pairs for prompts and their answers, or --plain for plain text"
    if not texts:
        return f"{problem}, none of which holds text" + (
            "; add --plain to read the file as plain text, as it is" if can_be_plain else ""
        )
    longest = max(texts, key=lambda column: sum(len(str(record.get(column, ""))) for record in records))
    best = next((column for wanted in _TEXT_NAMES for column in texts if normalized(column) == wanted), longest)
    pairs = f", {column_option(*texts[:2])} for prompts and their answers" if len(texts) > 1 else ""
    plain = ", or --plain for the file as it is" if can_be_plain else ""
    return f"{problem}; add {column_option(best)} for its text{pairs}{plain}"
