"""Values that are converted without Typer's pydantic are those that Typer makes of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from llmcli.cli import app, options

pytest.importorskip("typer._adapters", reason="an older Typer converts without pydantic")
TEXTS = ["", " ", "1", "+2", "007", "0x1", "1_0", "1.0", "1e3", ".5", "5.", "nan", "inf", "٣", " 4", "4\n", "1" * 25,
         "true", "no", "x", "-", "é", "0", "1024", "1025", "300", "2.5", "-0.5", "true\n"]  # fmt: skip
VALUES: list[Any] = [None, True, False, 0, 1, 2, 300, 1.5, 0.0, [], (), ["a", "b"], ("a",), (1,), Path("a"), *TEXTS]


def params() -> Iterator[Any]:
    """One option of each kind that the subcommands have."""
    kinds = {}
    for name in app.SUBCOMMANDS:
        for param in app.subcommand(name).params:
            descriptor: Any = getattr(param, "type_descriptor", None)
            info = descriptor.parameter_info
            key = (
                str(descriptor.annotation),
                info.min,
                info.max,
                param.nargs,
                param.required,
                getattr(param, "multiple", 0),
            )
            kinds.setdefault(key, param)
    yield from kinds.values()


def by_typer(param: Any, context: Any, value: Any) -> Any:
    try:
        return type(param).process_value(param, context, value)
    except typer.BadParameter.__mro__[1]:
        return "an error"


def test_values_are_those_of_typer() -> None:
    converted = 0
    for param in params():
        callback, param.callback = param.callback, None
        with typer.Context(app.subcommand("generate"), info_name="generate") as context:
            for value in VALUES:
                mine = options._converted(param, value)
                if mine is options._UNKNOWN:
                    continue
                converted += 1
                theirs = by_typer(param, context, value)
                assert (mine, type(mine)) == (theirs, type(theirs)), (param.name, value)
        param.callback = callback
    assert converted > 150


def test_plain_values_are_converted_without_typer() -> None:
    given = {"prompt": "a", "max_tokens": "12", "temperature": "0.5", "next": "5", "stop": ("x",), "top_p": "1"}
    by_name = {param.name: param for param in app.subcommand("generate").params}
    made = {name: options._converted(by_name[name], value) for name, value in given.items()}
    assert made == {"prompt": "a", "max_tokens": 12, "temperature": 0.5, "next": 5, "stop": ["x"], "top_p": 1.0}


def test_a_duration_is_the_sum_of_its_parts() -> None:
    for text, seconds in [("1d", 86400), ("2d3h4m5s", 183845), (".5h", 1800), ("1h 30m", 5400)]:
        assert options.parse_duration(text) == seconds
