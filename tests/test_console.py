"""How things look: plain where a program reads, safe and coloured in a terminal."""

import io
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from llmcli import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on standard output is a terminal with colours."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    return screen


def in_a_terminal(*words: str, **environment: str) -> str:
    """What the command shows in a real pseudo terminal."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "80", **environment})
        os.execv(sys.executable, [sys.executable, "-m", "llmcli", *words])
    shown = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.waitpid(pid, 0)
    os.close(descriptor)
    return shown.decode("utf-8")


OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]")  # colours, and the cursor hidden and shown


@pytest.mark.parametrize("text", ["a\x1b]52;c;aGk=\x07b", "a\x9b31mb", "a\u202eb\u2066c", "a\x00\x7f\x08b"])
def test_no_text_commands_a_terminal(tiny_model: Path, text: str) -> None:
    for words in (["tokenize", text.replace("\0", "")], ["generate", text.replace("\0", ""), "-n", "20", "--color"]):
        shown = OURS.sub("", in_a_terminal(*words))
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown), repr(shown)


def test_no_color_and_a_dumb_terminal_are_plain(tiny_model: Path) -> None:
    assert "\x1b[48" in in_a_terminal("generate", "The cat", "-n", "5", "--color", "--seed", "1")
    assert "\x1b[48" not in in_a_terminal("generate", "The cat", "-n", "5", "--color", "--seed", "1", NO_COLOR="1")
    assert "\x1b[48" not in in_a_terminal("generate", "The cat", "-n", "5", "--color", "--seed", "1", TERM="dumb")


def test_a_pipe_gets_the_characters_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("a\x1b[31mb")
    assert capsys.readouterr().out == "a\x1b[31mb\n"


def test_a_likely_token_is_greener_than_an_unlikely_one(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    backgrounds = [re.search(r"48;5;(\d+)", console.tint("x", p))[1] for p in (0.001, 0.05, 0.2, 0.5, 0.8, 0.99)]  # type: ignore[index]
    assert backgrounds == ["88", "130", "136", "100", "64", "28"]


def test_a_background_ends_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    assert console.tint("a\nb", 0.5).split("\n")[0].endswith("\x1b[0m")


def test_tokens_stand_over_their_ids_and_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    console.tokens(["りんご"] * 12, list(range(100, 112)))
    lines = OURS.sub("", screen.getvalue()).split("\n")
    assert lines[0] == "りんご " * 5 and lines[1].split() == ["100", "101", "102", "103", "104"]
    assert lines[2] == "" and lines[4].split() == ["105", "106", "107", "108", "109"]


def test_a_tree_draws_its_rails(capsys: pytest.CaptureFixture[str]) -> None:
    console.tree([(0, "a", "", ""), (1, "b", "", ""), (1, "c", "", ""), (0, "d", "", "")])
    assert capsys.readouterr().out.split("\n")[:4] == ["├─ a", "│  ├─ b", "│  └─ c", "└─ d"]


def test_quiet_drops_notes_and_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.be_quiet(True)
    console.note("note")
    console.fail("broken\nin two lines")
    assert capsys.readouterr().err == "error: broken in two lines\n"
