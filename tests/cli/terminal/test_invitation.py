"""How a class is invited in a terminal."""

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from llmcli.cli.terminal import console
from llmcli.cli.terminal.invitation import invite
from tests.cli.terminals import Terminal

ROWS = ["0000000", "0110100", "0101010", "0011110", "0000000"]


CODE, LINK = "K7MPR4", "http://192.168.1.20:8000/#K7MPR4"
CLASSROOM: Any = SimpleNamespace(code=CODE, link=LINK, invitation={"qr": ROWS})


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **environment: str) -> list[str]:
    """The lines of the QR code on this stream."""
    for name, value in ({"NO_COLOR": "", "TERM": "xterm-256color", "COLUMNS": "80"} | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    urls = ["http://127.0.0.1:8000", "http://192.168.1.20:8000"]
    invite("serving food at", " (Ctrl-C ends it)", urls, CLASSROOM)
    lines = stream.getvalue().splitlines()
    sentences = " ".join(line for line in lines if "\x1b" not in line)
    assert sentences == (
        "serving food at http://127.0.0.1:8000 and on this network at http://192.168.1.20:8000 (Ctrl-C ends it) "
        f"class code {CODE}, or open {LINK}"
    )
    return [line for line in lines if "\x1b" in line]


def test_the_blocks_are_the_modules_of_the_qr_code_in_colors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Black on white in any color scheme, so that a phone reads it."""
    modules = {" ": "00", "▀": "10", "▄": "01", "█": "11"}  # upper, lower
    drawn: list[str] = []
    for line in shown(monkeypatch, Terminal()):
        style, blocks = re.fullmatch(r"\x1b\[([\d;]+)m(.*)\x1b\[0m", line).groups()  # type: ignore[union-attr]
        assert style == "38;5;16;48;5;231"
        drawn += ["".join(modules[block][half] for block in blocks) for half in (0, 1)]
    assert drawn == [*ROWS, "0" * 7]


def test_it_is_not_drawn_where_it_could_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({"NO_COLOR": "1"}, {"COLUMNS": "6"}, {"TERM": "dumb"}):
        assert shown(monkeypatch, Terminal(), **environment) == []
    assert shown(monkeypatch, io.StringIO()) == []  # a file
    monkeypatch.setattr(console.settings, "quiet", True)
    assert shown(monkeypatch, Terminal()) == []
