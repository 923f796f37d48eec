"""What is typed during an answer is not shown, and not lost."""

import os
import sys

import pytest

from llmcli.cli.terminal.console import without_echo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")


def test_what_is_typed_is_read_later_but_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import select
    import termios

    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        before = termios.tcgetattr(terminal)
        with without_echo():
            os.write(keyboard, b"ahead\n")
            assert stream.readline() == "ahead\n"
            assert not select.select([keyboard], [], [], 0)[0]
        assert termios.tcgetattr(terminal) == before
        os.write(keyboard, b"shown\n")
        assert stream.readline() == "shown\n"
        assert os.read(keyboard, 100) == b"shown\r\n"
    os.close(keyboard)


def test_other_input_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with without_echo():
            pass
    monkeypatch.setattr(sys, "stdin", None)  # a process without standard input
    with without_echo():
        pass
