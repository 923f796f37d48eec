"""The streams: plain text for programs, safe text in a terminal, at any width; captions for a person."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmcli.cli.terminal import console, styles, tables
from llmcli.cli.terminal.text_layout import text_width
from tests.cli.terminals import STYLES, colored_stdout, in_a_terminal
from tests.conftest import Llm


@pytest.mark.slow
def test_text_cannot_control_a_terminal(tiny_model: Path) -> None:
    text = "a\x1b]52;c;aGk=\x07b a\x9b31mb a\u202eb\u2066c a\x7f\x08b"
    for words in (["tokenize", text], ["generate", text, "-n", "20", "--color"]):
        shown = STYLES.sub("", in_a_terminal(*words))
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown), repr(shown)


def drawn_at(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> str:
    """What a command shows in a terminal of `columns` columns, notes included."""
    from llmcli.cli.app import app

    screen = colored_stdout(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        app(list(words))
    assert not end.value.code, screen.getvalue()
    return screen.getvalue()


@pytest.mark.usefixtures("no_hang")
@pytest.mark.slow
def test_every_command_ends_at_any_width(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    for columns in (1, 2, 5, 12, 20, 39):
        from tests.conftest import TEXT

        # a short search: this test is about the layout
        monkeypatch.setattr("llmcli.generation.next_words.max_evaluations", lambda parameters: 3)
        Path("c.txt").write_text(TEXT, "utf-8")
        for words in (
            ["generate", "The cat sat 猫", "--steps", "2", "--seed", "1"],
            ["generate", "The cat", "--next", "3"],
            ["explain", "The cat sat"],
            ["explain", "The cat sat", "--layer", "1"],
            ["inspect"],
            ["inspect", "--tensors"],
            ["inspect", "--tensor", "model.norm.weight"],
            ["inspect", "--weights"],
            ["eval", "c.txt", "--per-token"],
            ["eval", "c.txt"],
            ["tokenize", "The cat りんご"],
        ):
            assert drawn_at(monkeypatch, columns, *words)


def test_prose_is_wrapped_in_a_terminal_and_one_line_elsewhere(monkeypatch, capsys) -> None:
    text = "every token is predicted from at least 512 tokens before it, or from all there are. " * 2
    console.note(text.strip())
    console.paragraph(text.strip())
    tables.pairs([("held-out", text.strip())])
    piped = capsys.readouterr()
    assert piped.err == piped.out.splitlines()[0] + "\n" and len(piped.out.splitlines()) == 2
    screen = colored_stdout(monkeypatch)
    monkeypatch.setenv("COLUMNS", "50")
    console.note(text)
    console.paragraph(text)
    tables.pairs([("held-out", text)])
    console.heading(text)
    console.fail(text)
    lines = STYLES.sub("", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 50 and len(lines) > 18
    assert set(" ".join(lines).split()) == {"held-out", "error:", *text.split()}
    assert any(re.match(r"  held-out  every", line) for line in lines)
    assert any(re.match(r"            \S", line) for line in lines)


def test_a_line_end_in_a_name_does_not_break_a_line(monkeypatch, capsys) -> None:
    prose = console.paragraph, console.note, console.heading, console.caption
    show = (*prose, lambda text: tables.pairs([(text, text)]))
    for each in show:
        each("a\nb: not made by llmcli")
    piped = capsys.readouterr()
    assert (piped.out + piped.err).count("\n") == 5  # a heading has an empty line before it; a caption is not shown
    for columns in [30, 80]:
        screen = colored_stdout(monkeypatch)
        monkeypatch.setenv("COLUMNS", str(columns))
        for each in show:
            each("a\nb: not made by llmcli")
        assert "a\n" not in screen.getvalue() and screen.getvalue().count("a␊b") == 6


def test_quiet_drops_notes_and_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.settings.quiet = True
    console.note("note")
    console.fail("broken\nin two lines")
    assert capsys.readouterr().err == "error: broken in two lines\n"


def test_without_a_terminal_the_status_is_a_note_now_and_then(monkeypatch, capsys) -> None:
    for second in range(25):
        monkeypatch.setattr(console.time, "monotonic", lambda second=second: 100.0 + second)
        console.status(f"{second} %")
    console.status("")
    console.status("another task")
    assert capsys.readouterr() == ("", "11 %\n22 %\n")
    console.status("")


def test_a_signal_during_a_note_is_caught_and_acknowledged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python runs a handler between two steps of a stream's writing, where the stream cannot be written to again."""
    from llmcli.signals import stop_requests

    with open(tmp_path / "notes", "wb", buffering=0) as file:

        class Interrupted(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def fileno(self) -> int:
                return file.fileno()

            def write(self, data: Any, /) -> int:
                if not caught:
                    signal.raise_signal(signal.SIGINT)
                return file.write(data)

        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted()), "utf-8"))
        with stop_requests(lambda: True, console.note_from_signal_handler) as caught:
            console.note("step 1")
    assert caught == [signal.SIGINT]
    assert sorted((tmp_path / "notes").read_text().splitlines()) == [
        "ending the run and saving; press Ctrl-C again to quit without saving", "step 1",
    ]  # fmt: skip


@pytest.mark.slow
def test_colors_have_a_legend_where_they_are_shown(tiny_model: Path) -> None:
    shown = in_a_terminal("generate", "The cat", "-n", "5", "--color", "--samples", "2")
    assert shown.count("probability of each token: ") == 1
    legend = shown.split("probability of each token: ")[1].split("\r\n")[0]
    ranges = ("<2%", "2-10%", "10-30%", "30-60%", "60-90%", "≥90%")
    for name, (_, color, _) in zip(ranges, styles.PROBABILITIES, strict=True):
        assert f"\x1b[48;5;{color};38;5;255m {name} " in legend
    assert len("probability of each token: " + STYLES.sub("", legend)) <= 80
    for words, environment in ((["-q"], {}), ([], {"NO_COLOR": "1"}), (["--json"], {})):
        output = in_a_terminal("generate", "The cat", "-n", "5", "--color", *words, **environment)
        assert "probability of each token" not in output


def test_a_background_ends_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    colored_stdout(monkeypatch)
    assert styles.by_value("a\nb", 0.5, styles.PROBABILITIES).split("\n")[0].endswith("\x1b[0m")


@pytest.mark.slow
def test_a_pipe_gets_neither_legend_nor_captions(llm: Llm, tiny_model: Path, short_search: None) -> None:
    for color in ("", "1"):
        run = subprocess.run(
            [sys.executable, "-m", "llmcli", "generate", "The cat", "-n", "5", "--color", "--seed", "1"],
            env=os.environ | {"FORCE_COLOR": color}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.returncode == 0 and run.stderr == "" and "probability of each" not in run.stdout
    Path("c.txt").write_text("The cat sat on the mat.")
    for words in CAPTIONS:
        plain = llm(*words).stdout
        assert plain and not any(caption in plain.replace("\n", " ") for caption in CAPTIONS[words])


CAPTIONS = {
    ("generate", "The cat", "--next", "3"): ("As uncertain as a choice among", "summed over its tokenizations;"),
    ("generate", "The cat", "--steps", "2"): ("the probability of the token under the model",),
    ("explain", "The cat"): ("Each row is a token", "half as likely", "if it ended after this layer", "sum to 1",
                             "summed over its tokenizations."),
    ("eval", "c.txt"): ("lower is better, 8 is a uniform guess", "most likely one"),
    ("eval", "c.txt", "--per-token"): ("probability 1/2 is 1 bit",),
    ("inspect", "--weights"): ("a histogram of a group's weights",),
}  # fmt: skip


@pytest.mark.slow
def test_a_caption_explains_each_figure(monkeypatch: pytest.MonkeyPatch, sure_model: Path) -> None:
    Path("c.txt").write_text("The cat sat on the mat.")
    for words in CAPTIONS:
        drawn = drawn_at(monkeypatch, 80, *words)
        shown = STYLES.sub("", drawn)
        dim = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", drawn)
        assert dim and all(text_width(line) <= 80 for line in dim)
        for caption in CAPTIONS[words]:
            assert caption in re.sub(r" *\n", " ", shown), caption
        quiet = STYLES.sub("", drawn_at(monkeypatch, 80, *words, "-q"))
        assert not any(caption in re.sub(r" *\n", " ", quiet) for caption in CAPTIONS[words])
