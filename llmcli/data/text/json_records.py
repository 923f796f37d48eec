"""The records of a JSON file, each with its line: one a line (JSON Lines), in an array, or one after the other.

Stricter than Python's parser where a file is likely to be wrong: a key that stands twice in an object is an error.
Numbers are read as floats, however many digits they have. Standard library only.
"""

import json
import re
from collections.abc import Iterable, Iterator

from llmcli.errors import LLMError, brief

_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON allows between values; Python's str.strip removes more


class _JSONError(Exception):
    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


def records_of_lines(name: str, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    """(line number from 1, value) for each line that is not blank. Raises LLMError for one that is not JSON."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, _parse(line)
        except _JSONError as error:
            raise LLMError(
                f"{name} line {number:,}: invalid JSON at character {error.position + 1:,} ({error}); wanted one "
                f"record a line: {{...}}"
            ) from error


def record_of_line(line: str) -> object:
    """The value of one line; None if it is not JSON."""
    try:
        return _parse(line)
    except _JSONError:
        return None


def _parse(text: str) -> object:
    value, end = _decode(text, _space_end(text, 0))
    end = _space_end(text, end)
    if end < len(text):
        raise _JSONError(end, f"more after the end of the value: {brief(text[end : end + 20], 20)}")
    return value


def records_of_text(name: str, text: str) -> Iterator[tuple[int, object]]:
    """(line number from 1, value) for each element of an array, or for each value of several that follow each other.

    Raises LLMError where the text is no JSON.
    """
    line, before = 1, 0
    try:
        for position, value in _values(text):
            line += text.count("\n", before, position)
            before = position
            yield line, value
    except _JSONError as error:
        line += text.count("\n", before, error.position)
        raise LLMError(f"{name} line {line:,}: invalid JSON ({error})") from error


def _values(text: str) -> Iterator[tuple[int, object]]:
    """(position, value)"""
    position = _space_end(text, 0)
    if not text.startswith("[", position):
        while position < len(text):
            value, end = _decode(text, position)
            yield position, value
            position = _space_end(text, end)
        return
    position = _space_end(text, position + 1)
    separator = ","
    if text.startswith("]", position):
        separator, position = "]", _space_end(text, position + 1)
    while separator == ",":
        value, end = _decode(text, position)
        yield position, value
        position = _space_end(text, end)
        separator = text[position : position + 1]
        if not separator:
            raise _JSONError(position, "the array does not end")
        if separator not in ",]":
            raise _JSONError(position, f"wanted , or ] before {brief(text[position : position + 20], 20)}")
        position = _space_end(text, position + 1)
    if position < len(text):
        raise _JSONError(position, f"more after the end of the array: {brief(text[position : position + 20], 20)}")


def _space_end(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _decode(text: str, position: int) -> tuple[object, int]:
    """The value that begins at a position, and the position after it. Raises _JSONError."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise _JSONError(error.pos, error.msg) from error
    except RecursionError as error:
        raise _JSONError(position, "nested too deeply") from error
    except ValueError as error:  # of `_object`
        raise _JSONError(position, str(error)) from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {brief(twice)} stands twice in one object")
    return keys


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=float)
