"""The values of options: numbers, names of files, lists, durations."""

from pathlib import Path
from typing import Any

import pytest
import typer

from llmcli.cli import app, options
from llmcli.errors import LLMError


def converted(command: str, name: str, value: object) -> Any:
    [param] = [param for param in app.subcommand(command).params if param.name == name]
    with typer.Context(app.subcommand(command), info_name=command) as context:
        return options._process_value(param, context, value)


@pytest.mark.skipif(typer.__version__ < "0.27", reason="an older Typer converts the values")
def test_values_have_the_types_of_their_options() -> None:
    for command, name, value, expected in [
        ("generate", "prompt", "a", "a"),
        ("generate", "max_tokens", "12", 12),
        ("generate", "temperature", "0.5", 0.5),
        ("generate", "top_p", "1", 1.0),
        ("generate", "stop", ("x", "y"), ["x", "y"]),
        ("generate", "stop", (), []),
        ("train", "output", "a.safetensors", Path("a.safetensors")),
    ]:
        made = converted(command, name, value)
        assert (made, type(made)) == (expected, type(expected)), (command, name)
    for name, value, wanted in [
        ("steps", "1" + "0" * 400, r"--steps must be below 2\^63, found an integer of 401 digits"),
        ("steps", "1.5", "--steps must be an integer of at least 1, found 1.5"),
        ("lora", "1025", "--lora must be an integer from 1 to 1024, found 1025"),
        ("kl_weight", "nan", "--kl-weight must be a number of at least 0.0, found nan"),
        ("epochs", "few", "--epochs must be a number, found few"),
    ]:
        with pytest.raises(LLMError, match=wanted):
            converted("train", name, value)


def test_a_duration_is_the_sum_of_its_parts() -> None:
    for text, seconds in [("1d", 86400), ("2d3h4m5s", 183845), (".5h", 1800), ("1h 30m", 5400)]:
        assert options.parse_duration(text) == seconds
