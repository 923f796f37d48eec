"""Notes on text that is JSON or JSON Lines: training on it as it is includes its keys and braces.

Standard library only.
"""

import json
import shlex
from collections.abc import Iterable

from llmcli.data.file_types import text_file_name

_TEXT_FIELDS = ("text", "content", "body", "story", "article", "document", "output", "completion", "response")


def json_notes(texts: Iterable[tuple[str, str, bool]]) -> list[str]:
    """`json_note` of several texts (name, text, whether it is complete), in at most two lines."""
    notes = [note for name, text, complete in texts if (note := json_note(name, text, complete=complete))]
    return [*notes[:1], *([f"and {len(notes) - 1:,} more files are JSON"] if len(notes) > 1 else [])]


def json_note(name: str, text: str, *, complete: bool) -> str | None:
    """One line on a text that is JSON or JSON Lines, with the command that extracts its text; None for other text.
    `text` is the beginning of the file, or all of it if `complete`.

    >>> json_note("a.jsonl", '{"text": "Hello"}\\n{"text": "Bye"}\\n', complete=True).split("; ")[2]
    'to train on one field only: jq -r .text a.jsonl > a.txt'
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not complete:
        lines = lines[:-1]  # the last may be cut off
    records = [record for record in map(_parse_object, lines[:3]) if record is not None]
    if lines and len(records) == len(lines[:3]) and (len(lines) > 1 or name.lower().endswith((".jsonl", ".ndjson"))):
        return _note(name, "JSON Lines", records[0], "")
    value = _parse(text) if complete else None
    if isinstance(value, dict | list) and value:
        first = value[0] if isinstance(value, list) else value
        return _note(name, "JSON", first if isinstance(first, dict) else {}, ".[]" if isinstance(value, list) else "")
    if not complete and name.lower().endswith(".json") and text.lstrip()[:1] in ("{", "["):
        return _note(name, "JSON", {}, "")
    if lines and name.lower().endswith((".jsonl", ".ndjson")):
        return _broken_lines_note(name, text)
    return None


def _broken_lines_note(name: str, text: str) -> str | None:
    """On JSON Lines with a line among the first that is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and _parse_object(line) is None:
            return f"{name} line {number}: no JSON object, as a file of that name has; the file is used as plain text"
    return None


def _note(name: str, file_format: str, record: dict[str, object], prefix: str) -> str:
    """`record` is an example of the objects in the file; `prefix` is the jq path to them."""
    fields = [key for key, value in record.items() if isinstance(value, str)]
    longest = max(fields, key=lambda key: len(str(record[key])), default="")
    field = next((key for key in _TEXT_FIELDS if key in fields), longest)
    query = _jq_step(field) if field else _jq_path_to_messages(record)
    advice = ""
    if query:
        query = prefix + query if prefix or query.startswith(".") else f".{query}"
        command = shlex.join(["jq", "-r", query, name])
        advice = f"; to train on one field only: {command} > {shlex.quote(text_file_name(name))}"
    return f"{name} is {file_format}; it is used as plain text, with its keys and braces{advice}"


def _jq_path_to_messages(record: dict[str, object]) -> str:
    """The path to the texts of a conversation such as {"messages": [{"role": ..., "content": ...}, ...]}."""
    for key, value in record.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict):
            field = next((name for name in ("content", "value", "text") if isinstance(first.get(name), str)), "")
            return f"{_jq_step(key)}[]{_jq_step(field)}" if field else ""
    return ""


def _jq_step(key: str) -> str:
    """A key as one step of a jq path."""
    return f".{key}" if key.isidentifier() and key.isascii() else f"[{json.dumps(key, ensure_ascii=False)}]"


def _parse_object(line: str) -> dict[str, object] | None:
    value = _parse(line)
    return value if isinstance(value, dict) else None


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
