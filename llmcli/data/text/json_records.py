"""Records in a JSON file with their line numbers: one per line (JSON Lines), in an array, or one after the
other.

Stricter than Python's parser: a repeated key in an object is an error. An integer may have any length.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from json import JSONDecodeError
from typing import Any, TypeAlias

from llmcli.errors import LLMError, brief

_SPACE = re.compile(r"[ \t\n\r]*")  # JSON's whitespace; str.strip removes more characters
MAX_RECORD = 64_000_000  # characters, all held in memory
_CHECKED_RECORD = 1_000_000  # characters; the number of values is limited only in longer records
_MAX_VALUES = 1_000_000  # per record; each takes about 100 bytes of memory, however short it is in the file
_MAX_DIGITS = 1_000  # longer integers are read as floats: Python converts up to 4,300 digits, and slowly
_PIECES = 4  # pieces of text that are read at once, 1 MiB each
# an error this close to the end may be a number, word or escape that is cut off
_LONGEST_WORD = 16

NumberedRecord: TypeAlias = tuple[int, object]  # (line number from 1, value)


class InvalidJSONError(LLMError):
    """A text that is not JSON."""


def records_of_lines(name: str, lines: Iterable[str]) -> Iterator[NumberedRecord]:
    """Yield (line number from 1, value) for each nonblank line. Raises LLMError for a line that is not
    JSON."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        _check_size(f"{name} line {number:,}", line)
        try:
            value, end = _value(line, _space_end(line, 0))
            if (end := _space_end(line, end)) < len(line):
                problem = f"extra text after the value: {brief(line[end : end + 20], 20)}"
                raise JSONDecodeError(problem, line, end)
        except JSONDecodeError as error:
            raise InvalidJSONError(
                f"{name} line {number:,}: invalid JSON at character {error.pos + 1:,} ({_reason(error)}); "
                f"wanted one record per line: {{...}}"
            ) from error
        yield number, value


def records_of_text(name: str, pieces: Iterable[str]) -> Iterator[NumberedRecord]:
    """Yield (line number, value) of each element of an array, or of each value, in a text that comes in
    pieces. Raises LLMError unless it is JSON."""
    text = _Values(name, pieces)
    try:
        is_array = text.skip("[")
        while text.character() not in ("", "]"):
            yield text.value()
            if is_array and not text.skip(","):
                break
        if is_array and not text.skip("]"):
            rest = text.rest()
            problem = f"wanted , or ] before {brief(rest, 20)}" if rest else "the array does not end"
            raise JSONDecodeError(problem, "", text.position)
        if rest := text.rest():
            raise JSONDecodeError(f"extra text: {brief(rest, 20)}", "", text.position)
    except JSONDecodeError as error:
        raise InvalidJSONError(
            f"{name} line {text.line(error.pos):,}: invalid JSON ({_reason(error)})"
        ) from error


def wrapped_records(value: object) -> list[object]:
    """Return the records inside a document: {"data": [...]}, or the questions of SQuAD, each with its context
    and possible answers (Rajpurkar et al. 2016). Returns [] for any other value.

    >>> wrapped_records({"version": 1, "data": [{"text": "a"}]})
    [{'text': 'a'}]
    """
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
        return []
    try:
        return [
            _squad_question(question, paragraph["context"])
            for article in data
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (LookupError, TypeError):
        return data


def _squad_question(question: dict[str, Any], context: object) -> dict[str, object]:
    # the first answer is learned; there is none if the context does not answer the question
    answers = question["answers"]
    answer = answers[0]["text"] if answers else ""
    return {"instruction": question["question"], "context": context, "response": answer}


class _Values:
    """Reads one value after the other; text before the next value is dropped."""

    def __init__(self, name: str, pieces: Iterable[str]) -> None:
        self._name = name
        self._pieces = iter(pieces)
        self._text = ""
        self.position = 0  # in this text
        self._line = 1
        self._counted = 0  # position in this text up to which lines are counted

    def line(self, position: int) -> int:
        """Return the number of the line at a position."""
        self._line += self._text.count("\n", self._counted, position)
        self._counted = position
        return self._line

    def character(self) -> str:
        """Return the next character after spaces; "" at the end."""
        while True:
            self.position = _space_end(self._text, self.position)
            if self.position < len(self._text) or not self._read_on():
                return self._text[self.position : self.position + 1]

    def rest(self) -> str:
        """Return the beginning of the remaining text."""
        return self.character() and self._text[self.position : self.position + 20]

    def skip(self, character: str) -> bool:
        """Skip the next character if it is this one. Returns whether it is."""
        is_next = self.character() == character
        self.position += is_next
        return is_next

    def value(self) -> NumberedRecord:
        """Return (line number, value)."""
        self.character()
        while True:
            try:
                value, end = _value(self._text, self.position)
            except JSONDecodeError as error:
                may_be_cut_off = (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                )
                if not (may_be_cut_off and self._read_on()):
                    raise
                continue
            if end < len(self._text) or not self._read_on():  # otherwise a number may continue
                line = self.line(self.position)
                self.position = end
                return line, value

    def _read_on(self) -> bool:
        """Read more text. Returns False at the end."""
        line = self.line(self.position)
        rest = self._text[self.position :]
        _check_size(f"{self._name} line {line:,}", rest)
        more = "".join(islice(self._pieces, _PIECES))
        if more:
            self._text = rest + more
            self.position = self._counted = 0
        return bool(more)


def _check_size(source: str, record: str) -> None:
    """Raise LLMError if a record, or the part read so far, takes too much memory."""
    if len(record) > MAX_RECORD:
        problem = f"{MAX_RECORD:,} characters"
    elif len(record) > _CHECKED_RECORD and sum(map(record.count, "[{,")) > _MAX_VALUES:
        problem = f"{_MAX_VALUES:,} values"
    else:
        return
    raise LLMError(
        f"{source}: a record of over {problem}; wanted smaller records, or `plain` to read it as plain text"
    )


def _space_end(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()  # type: ignore[union-attr]  # the pattern matches any text


def _value(text: str, position: int) -> tuple[object, int]:
    """Return (value at a position, position after it). Raises JSONDecodeError."""
    try:
        return _DECODER.raw_decode(text, position)
    except JSONDecodeError:
        raise
    except RecursionError as error:
        raise JSONDecodeError("nested too deeply", text, position) from error
    except ValueError as error:  # raised by `unique_keys`
        raise JSONDecodeError(str(error), text, position) from error


def _reason(error: JSONDecodeError) -> str:
    return re.sub(r"( starting)? at$", "", error.msg)  # the position follows in other words


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Create an object from key-value pairs. Raises ValueError for a repeated key."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} is repeated in one object")
    return keys


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=_integer)
