"""No regular expression of the package takes more than linear time, whatever the text: each runs on long repetitive
texts, and so do functions that make one or call one repeatedly. One that is exponential or quadratic does not end."""

import ast
import contextlib
import faulthandler
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from llmcli.cli.options import parse_duration
from llmcli.data.conversations.turns import speakers_in
from llmcli.data.text.file_types import is_page
from llmcli.errors import LLMError, with_hub_names
from tests.test_layout import MODULES

METHODS = ("match", "fullmatch", "search", "finditer", "findall", "split", "sub")
FUNCTIONS = (is_page, parse_duration, speakers_in, with_hub_names)
LENGTH, SECONDS = 30_000, 5  # each expression takes less than half a second, if it is linear
BOUNDED = {r"\s*\S*\Z": 200}  # pattern -> most characters of a text that it searches
PREFIXES = ("<?xml ", "user :", ": llm ")
REPEATED = (
    " ", "\t", "\n", " \n", "a", "a ", "1", "1 ", ".", ". ", "..", "-", "--", "- ", "=", "* ", "'", '"', "\\", "`",
    "`a", "/", "/a", "//", ":", ": ", ":/", "a:", ";", ", ", "(", "[", "{", "{a", "{{", "}", "<", "<a", "<a>", "<li ",
    "<li></", "<!--", "-->", "<!-- a -->\n", "&#", ">", "> ", ">\n", "|", "^", "#", "@", "あ", "\u3000", "。", "a.b",
    "a--", "a:/", "models--a--", "/models--a", "/models--a--b", "hf:a/", "data:image/", ";base64,", "charset= ", "iv ",
    "charset='", "End of ", "From a 12:34 ", "license: ", "user: ", "Q 1 : ", "*** START OF PROJECT GUTENBERG", "0x",
    ": llm ", "1d", "é", "\xa0", "\x80", "generation ",
)  # fmt: skip

Expression = re.Pattern[str] | re.Pattern[bytes]


def expressions() -> Iterator[tuple[str, Expression, set[str]]]:
    """Yield (name, expression, methods that are called)."""
    sources = {module: file.read_text("utf-8") for module, file in MODULES.items()}
    calls: dict[str, set[str]] = {}
    for name, method in re.findall(rf"\b(\w+)\.({'|'.join(METHODS)})\(", "\n".join(sources.values())):
        calls.setdefault(name, set()).add(method)
    for module, source in sources.items():
        for call in ast.walk(ast.parse(source)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("re.") and call.args:
                method, pattern = ast.unparse(call.func).removeprefix("re."), call.args[0]
                value = pattern.value if isinstance(pattern, ast.Constant) else None
                if isinstance(pattern, ast.Name):  # a constant of the module, or a local variable
                    value = getattr(importlib.import_module(f"llmcli.{module}"), pattern.id, None)
                if isinstance(value, str) and method in METHODS:
                    yield f"{module}:{call.lineno}", re.compile(value), {method}
        if "re.compile" in source:
            try:
                values = vars(importlib.import_module(f"llmcli.{module}"))
            except ImportError:  # an optional package is missing
                continue
            for name, value in values.items():
                for expression in compiled(value):
                    yield f"{module}.{name}", expression, calls.get(name, set())


def compiled(value: object) -> Iterator[Expression]:
    """Yield the expressions in a constant."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | dict):
        for one in value:
            yield from compiled(one)


def run_all() -> None:
    """Print each name, and exit if its expression takes longer than SECONDS."""
    for name, expression, methods in expressions():
        print(name, ascii(expression.pattern), flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        is_searched = bool(methods - {"match", "fullmatch"})
        method = "findall" if is_searched else "fullmatch" if methods == {"fullmatch"} else "match"
        for text in texts(BOUNDED.get(str(expression.pattern), LENGTH)):
            getattr(expression, method)(text if isinstance(expression.pattern, str) else text.encode("utf-8"))
    for function in FUNCTIONS:
        print(function.__name__, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        for text in texts(LENGTH):
            with contextlib.suppress(LLMError):
                function(text)


@cache
def texts(length: int) -> list[str]:
    long = [(repeated * length)[:length] + "\0" for repeated in REPEATED]
    return [*long, *(prefix + text[: length // 4] + "\0" for prefix in PREFIXES for text in long)]


@pytest.mark.slow
def test_every_regular_expression_ends_in_linear_time() -> None:
    command = [sys.executable, "-m", "tests.test_regular_expressions"]
    ended = subprocess.run(command, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0, f"does not end: {lines[-1]}"
    assert lines[-1] == FUNCTIONS[-1].__name__
    assert len({line.partition(" ")[2] for line in lines}) > 80  # patterns


if __name__ == "__main__":
    run_all()
