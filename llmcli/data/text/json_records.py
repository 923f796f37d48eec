"""Records in a JSON file with their line numbers: one per line (JSON Lines), in an array, or one after the other.

Stricter than Python's parser: a repeated key in an object is an error. Numbers of any length are read as floats.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

from llmcli.errors import LLMError, brief

_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON allows between values; Python's str.strip removes more
# a value takes a hundred bytes of memory, also if it has two in the file: a line of over 1 MB ...
_CHECKED_LINE, _MAX_VALUES = 1 << 20, 1_000_000  # ... may have at most this many


class _JSONError(Exception):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def records_of_lines(name: str, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """Yield (line number from 1, value) for each nonblank line. Raises LLMError for a line that is not JSON."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            _check_values(line)
            value, end = _value(line, _space_end(line, 0))
            _check_end(line, end, "value")
        except _JSONError as error:
            raise LLMError(
                f"{name} line {number:,}: invalid JSON at character {error.position + 1:,} ({error}); wanted one "
                f"record per line: {{...}}"
            ) from error
        yield number, value


def records_of_text(name: str, text: str) -> Iterator[tuple[int, object]]:
    """Yield (line number, value) of each element of an array, or of each value. Raises LLMError unless it is JSON."""
    line, before = 1, 0
    try:
        for position, value in _array(text) if text.startswith("[", _space_end(text, 0)) else _values(text):
            line += text.count("\n", before, position)
            before = position
            yield line, value
    except _JSONError as error:
        line += text.count("\n", before, error.position)
        raise LLMError(f"{name} line {line:,}: invalid JSON ({error})") from error


def wrapped_records(value: object) -> list[object]:
    """Return the records of a document that wraps them: {"data": [...]}, or the questions of SQuAD, where each has a
    context and possible answers (Rajpurkar et al. 2016); [] for any other value.

    >>> wrapped_records({"version": 1, "data": [{"text": "a"}]})
    [{'text': 'a'}]
    """
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
        return []
    if not any("paragraphs" in record for record in data):
        return data
    return [question for article in data for question in _squad_questions(article)]


def _squad_questions(article: dict[str, object]) -> Iterator[dict[str, object]]:
    paragraphs = article.get("paragraphs")
    for paragraph in filter(_is_object, paragraphs if isinstance(paragraphs, list) else ()):
        questions = paragraph.get("qas")
        for question in filter(_is_object, questions if isinstance(questions, list) else ()):
            answers = question.get("answers")
            first = answers[0] if isinstance(answers, list) and answers else None
            answer = first.get("text") if _is_object(first) else ""  # no answer is in the context
            yield {"instruction": question.get("question"), "context": paragraph.get("context"), "response": answer}


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _values(text: str) -> Iterator[tuple[int, object]]:
    """Yield (position, value)."""
    position = _space_end(text, 0)
    while position < len(text):
        value, end = _value(text, position)
        yield position, value
        position = end


def _array(text: str) -> Iterator[tuple[int, object]]:
    position = _space_end(text, _space_end(text, 0) + 1)
    separator = "," if text[position : position + 1] != "]" else "]"
    end = position
    while separator == ",":
        value, end = _value(text, position)
        yield position, value
        separator, position = text[end : end + 1], _space_end(text, end + 1)
        if not separator:
            raise _JSONError(end, "the array does not end")
        if separator not in ",]":
            raise _JSONError(end, f"wanted , or ] before {brief(text[end : end + 20], 20)}")
    _check_end(text, _space_end(text, end + 1), "array")


def _check_values(line: str) -> None:
    if len(line) > _CHECKED_LINE and sum(map(line.count, "[{,")) > _MAX_VALUES:
        raise _JSONError(0, f"over {_MAX_VALUES:,} values in one line")


def _check_end(text: str, end: int, what: str) -> None:
    if end < len(text):
        raise _JSONError(end, f"extra text after the {what}: {brief(text[end : end + 20], 20)}")


def _space_end(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # the pattern matches any text


def _value(text: str, position: int) -> tuple[object, int]:
    """Return (value at a position, position after it). Raises _JSONError."""
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _JSONError(error.pos, error.msg) from error
    except RecursionError as error:
        raise _JSONError(position, "nested too deeply") from error
    except ValueError as error:  # raised by `unique_keys`
        raise _JSONError(position, str(error)) from error
    return value, _space_end(text, end)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of key-value pairs. Raises ValueError for a repeated key."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} is repeated in one object")
    return keys


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=float)
