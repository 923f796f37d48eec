"""Terminals for tests: a stream that says it is one, and a real pseudo-terminal."""

import codecs
import io
import os
import re
import select
import sys
import time

import pytest

STYLES = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]")  # escape sequences of ours: colors, cursor hidden and shown

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\r\b]")  # and those of prompt_toolkit
READS, PROMPT = "\x1b[?2004h", "⟦prompt⟧"  # what prompt_toolkit writes when it begins to read, and our name for it


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def colored_stdout(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on standard output and standard error are a terminal with colors."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
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


class Typist:
    """A command in a pseudo-terminal, and a person who reads and types.

    `wait_for` a text before the next keys are typed: what the program has not asked for yet would be echoed.
    """

    def __init__(self, *arguments: str, columns: int = 80, **environment: str) -> None:
        pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals", exc_type=ImportError)
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            # no terminal answers when prompt_toolkit asks where the cursor is
            settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.environ.update(settings | environment)
            os.execv(sys.executable, [sys.executable, "-m", "llmcli", *arguments])
        self._unread = ""  # of the screen, since the last text that was waited for
        self.screen = ""  # all of it
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Read until a text appears; what appeared before it, escape sequences left out. AssertionError at the end of
        the program."""
        deadline = time.monotonic() + seconds
        while text not in (plain := ESCAPES.sub("", self._unread.replace(READS, PROMPT))):
            ready = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"{text!r} did not appear after {self.screen[-2000:]!r}"
            assert self._read(), f"the program ended before {text!r} appeared: {self.screen[-2000:]!r}"
        before, _, self._unread = plain.partition(text)
        return before

    def say(self, keys: str, answer: str) -> str:
        """Type keys at the prompt and read until the answer appears; what appeared before it."""
        self.wait_for(PROMPT)
        self.type(keys)
        return self.wait_for(answer)

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode("utf-8"))

    def end(self) -> int:
        """Wait for the end of the program; its exit code."""
        while self._read():
            pass
        _, status = os.waitpid(self._pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        """More of the screen; False at the end of the program."""
        try:
            block = os.read(self._descriptor, 65536)
        except OSError:
            return False
        text = self._decoder.decode(block)
        self._unread += text
        self.screen += text
        return bool(block)


def on_screen(drawn: str, columns: int, rows: int) -> list[str]:
    """The lines that a terminal shows after this output, those that it has scrolled away included."""
    lines, top, row, column = [[" "] * columns], 0, 0, 0
    for text, number, command in re.findall(r"([^\x1b]+)|\x1b\[[?]?([0-9;]*)([A-Za-z])", drawn):
        for character in text:
            if character == "\n" or (column == columns and character != "\r"):
                row, column = row + 1, 0
                lines += [[" "] * columns for _ in range(row + 1 - len(lines))]
                top = max(top, row + 1 - rows)
            if character == "\r":
                column = 0
            elif character != "\n":
                lines[row][column] = character
                column += 1
        if command == "A":
            row = max(top, row - int(number or 1))
        elif command == "K" and number == "2":
            lines[row] = [" "] * columns
        elif command == "J":
            lines[row][column:] = [" "] * (columns - column)
            del lines[row + 1 :]
        else:
            assert not command or command in "mhl", f"the terminal does not know {command}"
    return ["".join(line).rstrip() for line in lines]
