"""Terminals for tests: a stream that says it is one, and a real pseudo-terminal."""

import io
import os
import re
import sys

import pytest

STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]")  # escape sequences of ours: colours, cursor hidden and shown


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def coloured_stdout(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on standard output is a terminal with colours."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


def in_a_terminal(*arguments: str, **environment: str) -> str:
    """What `llm ARGUMENTS` shows in a pseudo-terminal of 80 columns."""
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals", exc_type=ImportError)
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "80", **environment})
        os.execv(sys.executable, [sys.executable, "-m", "llmcli", *arguments])
    output = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        output += block
    os.waitpid(pid, 0)
    os.close(descriptor)
    return output.decode("utf-8")
