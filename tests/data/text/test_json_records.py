"""Records of JSON files with their lines, compared with Python's parser."""

import itertools
import json
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.text import json_records
from llmcli.data.text.json_records import records_of_lines, records_of_text
from tests.data.corpora import error_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_every_form_gives_the_values_and_their_lines(values: list[Any], indent: int | None, ascii_only: bool) -> None:
    compact = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    written = [json.dumps(value, ensure_ascii=ascii_only, indent=indent) for value in values]
    numbered = list(zip(range(1, len(values) + 1), values, strict=True))
    assert list(records_of_lines("a", [f" {line}\t\r" for line in compact])) == numbered
    assert list(records_of_text("a", ["[" + ",\n".join(compact) + "]"])) == numbered
    starts = [1 + sum(text.count("\n") + 2 for text in written[:i]) for i in range(len(values))]
    with_lines = list(zip(starts, values, strict=True))
    text = "[" + " \r\n\n,".join(written) + "]\n"
    assert list(records_of_text("a", text)) == list(records_of_text("a", [text])) == with_lines  # in any pieces
    if not written or not written[0].startswith("["):
        text = "\n\n".join(written)
        assert list(records_of_text("a", text)) == list(records_of_text("a", [text])) == with_lines


def test_blank_lines_count_but_are_no_records() -> None:
    assert list(records_of_lines("a", ["", " \r", "1", "\u3000", "2"])) == [(3, 1), (5, 2)]


INVALID = {
    "cut off": ('{"a": 1', "line 2: invalid JSON at character 8 ("),
    "single quotes": ("{'a': 1}", "line 2: invalid JSON at character 2 ("),
    "two values": ('{"a": 1} {"b": 2}', "line 2: invalid JSON at character 10 (extra text after the value: "),
    "a key twice": ('{"x": {"a": 1, "b": 2, "a": 3}}', "the key 'a' is repeated in one object)"),
    "nested": ("[" * 100_000, "line 2: invalid JSON at character 1 (nested too deeply)"),
    "a text without an end": ('{"a": "x}', "line 2: invalid JSON at character 7 (Unterminated string)"),
}


def test_the_error_gives_the_line_and_the_character() -> None:
    for kind in INVALID:
        line, problem = INVALID[kind]
        message = error_of(list, records_of_lines("a.jsonl", ["{}", line]))
        assert message.startswith("a.jsonl line 2: invalid JSON at character ") and problem in message, kind
        assert message.endswith("; wanted one record per line: {...}") and len(message) < 200


ARRAYS = {
    "cut off in a record": ('[\n{"a": 1},\n{"a": ', 1, "line 3: invalid JSON ("),
    "no end": ('[\n{"a": 1}\n\n', 1, "line 4: invalid JSON (the array does not end)"),
    "no comma": ('[{"a": 1}\n{"a": 2}]', 1, "line 2: invalid JSON (wanted , or ] before '{\"a\": 2}]')"),
    "two commas": ('[{"a": 1},\n,{"a": 2}]', 1, "line 2: invalid JSON ("),
    "more after it": ('[{"a": 1}\n]\n[{"a": 2}]', 1, "line 3: invalid JSON (extra text: "),
    "a key twice": ('[{"a": 1},\n\n{"b": 1, "b": 2}]', 1, "line 3: invalid JSON (the key 'b' is repeated in one "),
    "nested": ('[{"a": 1},\n' + "[" * 100_000, 1, "line 2: invalid JSON (nested too deeply)"),
    "no value": ('{"a": 1}\n{"a": 2}\nx', 2, "line 3: invalid JSON ("),
}


def test_an_array_gives_the_records_before_the_damage_and_its_line() -> None:
    for kind in ARRAYS:
        text, before, problem = ARRAYS[kind]
        records = records_of_text("a.json", [text[start : start + 1000] for start in range(0, len(text), 1000)])
        for _ in range(before):
            next(records)
        assert error_of(next, records).startswith(f"a.json {problem}"), kind


def test_numbers_of_any_length_are_read() -> None:
    [(_, record)] = records_of_lines("a", [f'{{"a": 1{"0" * 5000}, "b": 1e999, "c": -{"7" * 20}}}'])
    assert repr(record) == f"{{'a': inf, 'b': inf, 'c': -{'7' * 20}}}"


def test_a_line_of_too_many_values_is_not_parsed_and_long_text_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value takes fifty times as much memory as "[],"."""
    monkeypatch.setattr(json_records, "_MAX_VALUES", 5000)
    monkeypatch.setattr(json_records, "_CHECKED_RECORD", 5000)
    prose = "One, two, three, four [five]. " * 1000
    assert list(records_of_lines("a", [json.dumps({"text": prose})])) == [(1, {"text": prose})]
    line = '{"text": "a", "x": [' + "[]," * 5000 + "[]]}"
    problem = "a line 2: a record of over 5,000 values; wanted smaller records"
    assert error_of(list, records_of_lines("a", ["{}", line])).startswith(problem)
    pieces = itertools.chain(["[{},\n", line[:9020]], itertools.repeat("[]," * 5000))
    assert error_of(list, records_of_text("a", pieces)).startswith(problem)


def test_of_a_text_without_end_little_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = islice(records_of_text("a", itertools.repeat("3 [1, 2]\n")), 4)
    assert list(values) == [(1, 3), (1, [1, 2]), (2, 3), (2, [1, 2])]
    monkeypatch.setattr(json_records, "MAX_RECORD", 64_000)
    problem = "a line 1: a record of over 64,000 characters; wanted smaller records"
    endless = itertools.chain(['["'], itertools.repeat("a" * 1000))
    assert error_of(list, records_of_text("a", endless)).startswith(problem)
    assert error_of(list, records_of_lines("a", ['"' + "a" * 64_000])).startswith(problem)
