"""How things look: plain where a program reads, safe and coloured in a terminal."""

import io
import os
import pty
import re
import signal
import sys
from pathlib import Path
from typing import Any

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


def test_a_pipe_gets_the_characters_of_a_text_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.verbatim("a\x1b[31mb\n")
    assert capsys.readouterr().out == "a\x1b[31mb\n"


def test_a_line_of_ours_has_no_control_characters_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("a\x1b[31mb\nc")
    assert capsys.readouterr().out == "a␛[31mb␊c\n"


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


# ---- a run


def run(view: console.TrainingView, steps: int, seconds: float) -> None:
    """So many steps in so many seconds, the loss falling from 8 to 1 nats per token; a look at each tenth."""
    for step in range(1, steps + 1):
        view.step(
            step=step, progress=step / steps, loss=1 + 7 / step, epoch=step / 10, seconds=seconds * step / steps,
            tokens=round(1000 * seconds * step / steps), tokens_per_second=1000.0,
        )  # fmt: skip
        if step * 10 % steps == 0:
            view.evaluation(step, 2.0 + 1 / step)
            view.sample("りんご", "を食べる\n" * 900)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50), (80, 15), (80, 8), (40, 4), (20, 2), (500, 100)])
def test_the_view_of_a_run_fits_the_terminal_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    from rich.cells import cell_len

    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    with console.TrainingView(4.0) as view:
        run(view, 100, 60)
    drawn = screen.getvalue()
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")  # the cursor is there again
    last = OURS.sub("", drawn[drawn.rindex("\x1b[2K") + 4 :] if "\x1b[2K" in drawn else drawn).rstrip("\n").split("\n")
    assert len(last) < max(2, rows)
    assert max(cell_len(line) for line in last) <= columns
    if rows >= 15:
        chart = [line for line in last if "│" in line and "りんご" not in line]
        assert len(chart) >= 5 and max(map(len, chart)) <= columns
        assert sum(line.count("o") for line in chart) >= 5
        assert "held-out 2.010  best 2.010 (step 100)" in "\n".join(last)
        assert any(line.startswith("りんご│") for line in last) and last[-1].endswith("…")


def test_the_cursor_comes_back_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(KeyboardInterrupt), console.TrainingView(4.0) as view:
        run(view, 3, 1)
        raise KeyboardInterrupt
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(("seconds", "lines"), [(1, 2), (60, 7), (7200, 51)])
def test_elsewhere_a_run_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str], seconds: float, lines: int) -> None:
    with console.TrainingView(4.0) as view:
        run(view, 1000, seconds)
    said = capsys.readouterr().err.splitlines()
    assert abs(len(said) - lines) <= 1
    assert said[-1].startswith("100%  step 1,000  0:00 left  1,000 tokens/s  loss ") and "held-out" in said[-1]


def test_the_time_left_does_not_count_what_the_plan_took(capsys: pytest.CaptureFixture[str]) -> None:
    with console.TrainingView(4.0) as view:  # 20 of 70 seconds went into learning, a fifth is done
        view.step(step=9, progress=0.2, loss=1, tokens=20_000, epoch=1, seconds=70, tokens_per_second=1000)
    assert "1:20 left" in capsys.readouterr().err


def test_a_view_that_is_still_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    with console.TrainingView(4.0, still=True):
        print("one event")
    assert screen.getvalue() == "one event\n"


def test_a_growing_curve_is_thinned_to_means() -> None:
    thinned = console._Thinned()
    for step in range(1, 10_001):
        thinned.add(step, float(step))
    steps, means = thinned.points()
    assert thinned.MOST / 2 <= len(steps) <= thinned.MOST and steps[-1] == 10_000
    assert means[0] == (1 + steps[0]) / 2 and means[1] == (steps[0] + 1 + steps[1]) / 2


def test_quiet_drops_notes_and_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.be_quiet(True)
    console.note("note")
    console.fail("broken\nin two lines")
    assert capsys.readouterr().err == "error: broken in two lines\n"


def test_a_signal_in_the_middle_of_a_note_is_caught_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python runs a handler between two steps of a stream's writing, where the stream cannot be written to again."""
    from llmcli.commands.train import _signals

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
        with _signals() as caught:
            console.note("step 1")
    assert caught == [signal.SIGINT]
    assert sorted((tmp_path / "notes").read_text().splitlines()) == [
        "finishing this step and saving; once more to quit without", "step 1",
    ]  # fmt: skip
