"""Violations of a schema are reported with their path in the document."""

from typing import Any

import pytest

from llmcli.formats.json_schema import COUNT, NUMBER, TEXT, Required, Tuple, validation_error


@pytest.mark.parametrize(
    ("value", "schema", "error"),
    [
        (5, [COUNT], "it is 5; expected a list"),
        ([1, -1], [COUNT], "it[1] is -1; expected a whole number of at least 0"),
        (True, COUNT, "it is True; expected a whole number of at least 0"),
        (1.0, COUNT, "it is 1.0; expected a whole number of at least 0"),
        (2**53, COUNT, "it is 9007199254740992; expected a whole number of at least 0"),
        (10**400, NUMBER, "it is a number of 1329 bits; expected a number"),
        (float("nan"), NUMBER, ""),
        ({"a": {"b": []}}, {"a": {"b": TEXT}}, "a.b is []; expected a string"),
        ({"c": 1}, {"a": TEXT}, ""),
        ({"c": 1}, Required(a=TEXT), "a is missing"),
        ({"a": "x"}, Required(a=TEXT).with_optional(b=COUNT), ""),
        (
            {"a": "x", "b": "y"},
            Required(a=TEXT).with_optional(b=COUNT),
            "b is 'y'; expected a whole number of at least 0",
        ),
        ({"b": 1}, Required(a=TEXT).with_optional(b=COUNT), "a is missing"),
        ([1, "a"], Tuple((COUNT, TEXT)), ""),
        ([1], Tuple((COUNT, TEXT)), "it is [1]; expected a list of a whole number of at least 0, a string"),
        (["a", 1], Tuple((COUNT, TEXT)), "it is ['a', 1]; expected a list of a whole number of at least 0, a string"),
        ({}, (COUNT, [COUNT]), "it is {}; expected a whole number of at least 0 or a list"),
        ([{}], (COUNT, [COUNT]), "it[0] is {}; expected a whole number of at least 0"),
    ],
)
def test_a_violation_is_reported_with_its_path(value: Any, schema: Any, error: str) -> None:
    assert validation_error(value, schema) == error
