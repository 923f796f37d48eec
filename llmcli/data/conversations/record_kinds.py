"""The shape of records: conversations, prompt-answer pairs, or plain text in one column.

The column names in the first records decide, in JSON, tables and Parquet alike. Preference data and records
of an unknown shape raise an error that names the option to use.
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
    is_list_of_messages,
    normalized,
    record_shape,
)
from llmcli.data.text import templates
from llmcli.data.text.encodings import codec_of
from llmcli.errors import LLMError, brief, usage
from llmcli.units import listed

_MAX_COLUMNS = 8  # columns listed in a message
_PROSE_BYTES = 100  # minimum mean size of a column of prose ...
_PROSE_RATIO = 4  # ... and its minimum ratio to the mean size of any other column
_MIN_WORDS = 8  # minimum length of prose, if its script has spaces


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files; by default, their content decides."""

    speakers: tuple[str, str] | None = None  # names of the user and the assistant in text with turns
    pairs: bool = False  # two columns are a prompt and its answer, regardless of names and contents
    columns: tuple[str, ...] = ()  # one text column, or a prompt and an answer column; by name or number
    plain: bool = False  # everything is plain text
    template: str = ""  # plain text made of `columns`: "{title}\n{body}"
    encoding: str = ""  # encoding of text that is not UTF-8
    strip_boilerplate: bool = False  # remove the lines that text/boilerplate.py finds
    # hashes of the lines to remove, as found in training; None: find them
    boilerplate: tuple[str, ...] | None = None
    text_only: bool = False  # conversations are read as plain text

    @property
    def is_for_files(self) -> bool:
        """Whether any option says how to read a file."""
        return bool(self.pairs or self.columns or self.plain or self.speakers or self.encoding)

    def as_record(self) -> dict[str, Any]:
        fields = {
            "pairs": self.pairs,
            "columns": list(self.columns),
            "plain": self.plain,
            "template": self.template,
            "encoding": self.encoding,
        }
        boilerplate = {"strip_boilerplate": list(self.boilerplate or ())} if self.strip_boilerplate else {}
        return {key: value for key, value in fields.items() if value} | boilerplate

    @classmethod
    def of_options(
        cls,
        *,
        speakers: tuple[str, str] | None = None,
        pairs: bool = False,
        column: str | None = None,
        plain: bool = False,
        template: str | None = None,
        encoding: str | None = None,
        strip_boilerplate: bool = False,
    ) -> "ReadOptions":
        """Parse the options. `column` is NAME or PROMPT,ANSWER; a name that contains a comma needs double
        quotes."""
        columns: tuple[str, ...] = ()
        if column is not None:
            columns = tuple(map(str.strip, next(csv.reader([column], skipinitialspace=True))))
            if len(columns) not in (1, 2) or not all(columns) or len(set(columns)) < len(columns):
                raise usage(
                    f"`column` must be one name, or two as in question,answer; found {column or repr('')}"
                )
        ways = {"pairs": pairs, "column": columns, "template": template is not None, "plain": plain}
        given = [f"`{way}`" for way, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise usage(f"{' and '.join(given)} cannot be combined; give one of them")
        if encoding is not None:
            codec_of(encoding)
        if template is not None:
            template = templates.unescaped(template)
            columns = templates.columns_of(template)
        return cls(speakers, pairs, columns, plain, template or "", encoding or "", strip_boilerplate)


def choose_shape(
    name: str,
    records: Sequence[object],
    reading: ReadOptions,
    *,
    cells_are_text: bool = False,
    must_be_known: bool = True,
    is_text: bool = True,
) -> RecordShape | None:
    """Choose the shape for the first records of a file, each an object or None.

    Returns None if most records are not objects, or if the shape is unknown and `must_be_known` is False.
    With `cells_are_text`, as in CSV, two columns with words are pairs; with `is_text`, the error also
    suggests `plain`.
    """
    objects = [record for record in records if isinstance(record, Mapping)]
    columns = dict.fromkeys(str(key) for record in objects for key in record)
    known = {normalized(column): column for column in columns}
    if shape := _requested(name, objects, known, reading):
        return shape
    _refuse_preferences(name, objects, len(records), known)
    shapes = Counter(filter(None, map(record_shape, records))).most_common(1)
    if shapes and 2 * shapes[0][1] >= len(records):
        shape = shapes[0][0]
        label = known.get("label")
        label_values = {str(record[label]).lower() for record in objects if label in record}
        if not shape.is_text and "false" in label_values and label_values <= {"true", "false"}:
            raise LLMError(
                f'{name}: "label" marks good answers, and the model would also learn the others; keep only '
                "the good answers"
            )
        return shape
    if not objects or 2 * len(objects) < len(records):
        return None
    prose = _prose_column(columns, objects) if must_be_known and not reading.columns else ""
    if cells_are_text and len(columns) == 2:
        # a table of numbers has few rows with a letter, and a number is not a prompt for prose
        worded = [[any(map(str.isalpha, str(row.get(column, "")))) for column in columns] for row in objects]
        if 2 * sum(map(any, worded)) > len(objects) and not (prose and not any(map(all, worded))):
            return RecordShape("two columns", tuple(columns))
    if prose:
        return RecordShape("text", (prose,), is_text=True, is_only_prose=True)
    if not must_be_known:
        return None
    if missing := [column for column in reading.columns if normalized(column) not in known]:
        raise LLMError(f"{name} has no column {_listed(missing)}; its columns: {_listed(columns)}")
    if not columns:
        raise LLMError(f"{name}: its records are empty; wanted a text, or a prompt and an answer, in each")
    as_text = ", or read it as plain text: `plain`" if is_text else ""
    texts = [column for column in columns if any(isinstance(record.get(column), str) for record in objects)]
    if not texts:
        raise LLMError(
            f"{name}: no column has text: {_listed(columns)}; wanted a text, or a prompt and an answer, in "
            f"each record{as_text}"
        )
    raise LLMError(
        f"{name}: unclear which columns to read: {_listed(columns)}; name a column of text, or two "
        f"columns of prompts and answers: {column_option(*texts[:2])}{as_text}"
    )


def _refuse_preferences(name: str, objects: Sequence[Record], count: int, known: dict[str, str]) -> None:
    """Raise LLMError if most of the `count` records are objects of preference data; `known` maps normalized
    names to columns."""
    pairs = sum({"chosen", "rejected"} <= set(map(normalized, record)) for record in objects)
    if 2 * pairs < max(1, count):
        return
    values = [record.get(known["chosen"]) for record in objects]
    includes_prompt = any(isinstance(value, list) and len(value) > 1 for value in values)
    keys = ("chosen",) if includes_prompt or "prompt" not in known else ("prompt", "chosen")
    raise LLMError(
        f"{name}: preference data: the model would also learn the rejected answers; to train on the chosen "
        f"ones: {column_option(*map(known.__getitem__, keys))}"
    )


def _prose_column(columns: Iterable[str], records: Sequence[Record]) -> str:
    """Return the column of prose, whose texts are several times longer than in any other column; "" if there
    is none."""
    sizes = {
        column: sum(_text_bytes(record.get(column)) for record in records) / len(records)
        for column in columns
    }
    longest = max(sizes, key=sizes.__getitem__, default="")
    others = [size for column, size in sizes.items() if column != longest]
    wanted = max(_PROSE_BYTES, _PROSE_RATIO * max(others, default=0))
    words = [
        value for record in records if isinstance(value := record.get(longest), str) and _is_prose(value)
    ]
    return longest if longest and sizes[longest] >= wanted and 2 * len(words) > len(records) else ""


def _text_bytes(value: object) -> int:
    """Return the size of a text, or of a list or object with text in it; 0 for numbers."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    text = str(value) if isinstance(value, list | Mapping) else ""
    return len(text.encode("utf-8", "replace")) if set(text) & {"'", '"'} else 0


def _is_prose(text: str) -> bool:
    """Return whether a text is prose: several words separated by spaces, or a script without spaces."""
    return any(map(str.isalpha, text)) and (len(text.split()) >= _MIN_WORDS or not text.isascii())


def _requested(
    name: str, records: Sequence[Record], known: dict[str, str], reading: ReadOptions
) -> RecordShape | None:
    """Return the requested shape; None if the records lack its columns. `known` maps normalized names to
    columns."""
    if reading.pairs and len(known) == 2:
        return RecordShape("two columns", tuple(known.values()))
    chosen = tuple(known[own] for column in reading.columns if (own := normalized(column)) in known)
    if not chosen or len(chosen) < len(reading.columns):
        return None
    if reading.template:
        return RecordShape("text", chosen, is_text=True, template=reading.template)
    if len(chosen) == 2:
        return RecordShape("two columns", chosen)
    values = [record.get(chosen[0]) for record in records]
    if any(map(is_list_of_messages, values)):
        return RecordShape("messages", chosen)
    if not any(isinstance(value, str) for value in values):
        raise LLMError(
            f"{name}: the column {brief(chosen[0])} has no text; its columns: {_listed(known.values())}"
        )
    return RecordShape("text", chosen, is_text=True)


def column_option(*columns: str) -> str:
    """Return the setting that names these columns, as shown in messages.

    >>> column_option("my question", "answer")
    "`column` 'my question,answer'"
    """
    quoted = (
        '"' + name.replace('"', '""') + '"' if "," in name or name[:1] == '"' else name for name in columns
    )
    return f"`column` {shlex.quote(','.join(quoted))}"


def _listed(columns: Iterable[str]) -> str:
    return listed([brief(name, 30) for name in columns], _MAX_COLUMNS)
