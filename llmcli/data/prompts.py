"""Prompts of a batch: the lines of a text, the records of a JSON Lines file, or a column of a table.

A record that cannot be read gets an error instead of a prompt, so that the others are still processed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.config import SAMPLING
from llmcli.data.conversations.messages import ROLES, Message, normalized
from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.conversations.tables import TABLE_SUFFIXES, read_table
from llmcli.data.sources import read_text
from llmcli.data.text.decoding import Document
from llmcli.data.text.file_types import suffix_of
from llmcli.errors import LLMError, brief, brief_json, usage
from llmcli.units import listed

_SETTINGS = SAMPLING.keys() - {"seed"}  # the seed is in results, which may be prompts again
_WANTED = 'wanted {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class PromptRow:
    """A row with a prompt, messages or an error."""

    number: int  # number of the line, or of the row in a table, from 1
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    id: Any = None  # identifier in a JSON record, copied to the result
    error: str = ""

    def conversation(self) -> list[Message]:
        """Return the messages; a prompt is a user message. Raises LLMError if it is empty."""
        if not self.messages and not self.prompt.strip():
            raise usage("the message is empty; give a text to answer")
        return [Message(message["role"], message["content"]) for message in self.messages] or [
            Message("user", self.prompt)
        ]


def read_prompts(name: str, column: str | None = None) -> list[PromptRow]:
    """Read a table (.csv, .tsv, or if a column is named), JSON Lines (if the first line is an object), or a
    text with one prompt per line; empty lines are left out. Raises LLMError for a file that cannot be read or
    has no prompts."""
    document = read_text(name)
    suffix = suffix_of(name)
    if suffix in TABLE_SUFFIXES or column is not None:
        rows = _table_rows(document, suffix, column)
    else:
        numbered = enumerate(document.lines(), 1)
        filled = [(number, line.rstrip("\r")) for number, line in numbered if line.strip()]
        is_json = bool(filled) and (suffix in (".jsonl", ".ndjson") or _is_object(filled[0][1]))
        rows = (_json_row(*line) if is_json else PromptRow(*line) for line in filled)
    if not (result := list(rows)):
        raise LLMError(f"{document.name} has no prompts; wanted one on each line")
    return result


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_row(number: int, line: str) -> PromptRow:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # fails for a lone surrogate
    except (ValueError, RecursionError) as error:
        return PromptRow(number, error=f"not JSON ({error}); {_WANTED}")
    if not isinstance(record, dict):
        return PromptRow(number, error=f"found {brief_json(record)}; {_WANTED}")
    prompt = record.get("prompt")
    messages = record.get("messages")
    name = record.get("id")
    if settings := [brief(key) for key in record if key in _SETTINGS]:
        problem = f"found {listed(settings, 3)}; give settings as options, which apply to all rows"
        return PromptRow(number, id=name, error=problem)
    if isinstance(prompt, str) and messages is None:
        return PromptRow(number, prompt, id=name)
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return PromptRow(number, messages=tuple(messages), id=name)
    return PromptRow(number, id=name, error=f"found {brief_json(record)}; {_WANTED}")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)


def _table_rows(document: Document, suffix: str, column: str | None) -> Iterator[PromptRow]:
    """Yield the cells of a column, named by the header or by a number from 1. Raises LLMError if there is
    none, and for a malformed row."""
    wanted = "prompt" if column is None else column.strip()
    table = read_table(document, suffix, ReadOptions(columns=(wanted,)))
    columns = {normalized(name): name for name in table.columns} if table else {}
    if table is None or normalized(wanted) not in columns:
        first_row = (
            listed(list(map(brief, table.first_row)), 10)
            if table
            else brief(document.start.partition("\n")[0])
        )
        raise usage(
            f"{document.name} has no column {brief(wanted)}; name one: `column` NAME, or a number; "
            f"the first row is {first_row}"
        )
    try:
        records = list(table.records)
    except LLMError as error:
        raise LLMError(str(error).partition("; or `plain`")[0]) from error  # --batch has no --plain
    for number, (_, record) in enumerate(records, 1):
        yield PromptRow(number, record[columns[normalized(wanted)]].strip())
