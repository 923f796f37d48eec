"""How things look: plain where a program reads, safe and coloured in a terminal."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import Result

from llmcli.cli import console


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
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals", exc_type=ImportError)
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


# ---- any number of columns


def shown_at(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> str:
    """What a command shows in a terminal of so many columns, its notes among the rest, without colours."""
    from llmcli.cli.app import app

    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        app(list(words))
    assert not end.value.code, screen.getvalue()
    return OURS.sub("", screen.getvalue())


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("columns", [*range(1, 21), 39])
def test_every_command_ends_at_any_width(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, columns: int) -> None:
    from tests.conftest import TEXT

    monkeypatch.setattr(
        "llmcli.generation.next_words.most_looks", lambda parameters: 3
    )  # what is shown counts here, not what is found
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
        ["inspect", "--diff", "model.safetensors"],
        ["eval", "c.txt", "--per-token"],
        ["eval", "c.txt"],
        ["tokenize", "The cat りんご"],
    ):
        assert shown_at(monkeypatch, columns, *words)


@pytest.mark.parametrize("columns", range(-2, 21))
@pytest.mark.parametrize("text", ["", "apple pie\n", "りんごを食べる", "🍎 が"])
def test_text_is_cut_to_any_number_of_columns(columns: int, text: str) -> None:
    from rich.cells import cell_len

    line = console.one_line(text, columns)
    assert cell_len(line) <= max(0, columns) and "\n" not in line
    whole = console.shown(text).replace("·", " ")
    assert line == whole or columns < 1 or (line[0] == "…" and whole.endswith(line[1:]))
    assert cell_len(console.cut(text.strip(), columns)) <= max(0, columns)


@given(st.lists(st.text("abé-/,", min_size=1, max_size=50)), st.integers(10, 60), st.integers(0, 6), st.integers(0, 6))
def test_words_wrap_as_the_standard_library_wraps_them(words: list[str], columns: int, first: int, later: int) -> None:
    text = " ".join(words)
    wanted = textwrap.wrap(
        text, columns, initial_indent=" " * first, subsequent_indent=" " * later, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    assert console.wrapped(text, columns, first, later) == (wanted or [""])


CHARACTERS = st.lists(st.sampled_from(["私", "🍎", "カ\u3099", "、", "。", "「", "」", "e", "e\u0301"])).map("".join)


@settings(max_examples=500)
@given(CHARACTERS, st.integers(1, 40))
def test_text_without_spaces_wraps_by_the_columns_it_takes(text: str, columns: int) -> None:
    from rich.cells import cell_len

    lines = console.wrapped(text, columns)
    assert "".join(lines) == text
    for line in lines[1:]:
        assert line[0] not in "、。」\u0301\u3099"
    for line in lines[:-1]:
        assert line[-1] != "「"
    for line in lines:  # one wide character or a run of narrow ones, with its punctuation, is not broken
        one = re.fullmatch("「*(私|🍎|カ\u3099|(e\u0301?)+)?[、。」]*", line)
        assert cell_len(line) <= columns or one, (line, lines)


def test_a_combining_mark_does_not_hide_the_width_of_what_it_is_combined_with() -> None:
    assert console.wrapped("私\u0301e", 2) == ["私\u0301", "e"]


def test_a_command_to_type_is_not_broken() -> None:
    command = "llm train c.txt -o 'my model.safetensors' --context 16 --no-tie --threads 1 --force --steps 8"
    lines = console.wrapped(f"It was still improving; more time would help: {command}", 40)
    assert lines[-1] == command and all(len(line) <= 40 for line in lines[:-1])
    asked = 'Ask it: llm generate "..." -m x.safetensors; look into it: llm inspect x.safetensors'
    assert console.wrapped(asked, 50) == [
        'Ask it: llm generate "..." -m x.safetensors; look', "into it: llm inspect x.safetensors",
    ]  # fmt: skip


def test_prose_is_wrapped_in_a_terminal_and_one_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "every token is predicted from at least 512 tokens before it, or from all there are. " * 2
    console.note(text.strip())
    console.paragraph(text.strip())
    console.pairs([("held-out", text.strip())])
    piped = capsys.readouterr()
    assert piped.err == piped.out.splitlines()[0] + "\n" and len(piped.out.splitlines()) == 2
    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "50")
    console.note(text)
    console.paragraph(text)
    console.pairs([("held-out", text)])
    console.heading(text)
    console.fail(text)
    lines = OURS.sub("", screen.getvalue()).splitlines()
    assert max(map(len, lines)) <= 50 and len(lines) > 18
    assert set(" ".join(lines).split()) == {"held-out", "error:", *text.split()}
    assert any(re.match(r"  held-out  every", line) for line in lines)
    assert any(re.match(r"            \S", line) for line in lines)


@pytest.mark.parametrize("columns", [30, 80])
def test_no_prose_takes_a_line_end_from_a_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    """What is said of a file named with a line end is not more lines than it takes, in a pipe and in a terminal."""
    show = console.paragraph, console.note, console.heading, console.caption, lambda text: console.pairs([(text, text)])
    for each in show:
        each("a\nb: not made by llmcli")
    piped = capsys.readouterr()
    assert (piped.out + piped.err).count("\n") == 5  # a heading has an empty line before it; a caption is not shown
    screen = terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    for each in show:
        each("a\nb: not made by llmcli")
    assert "a\n" not in screen.getvalue() and screen.getvalue().count("a␊b") == 6


@pytest.mark.parametrize("columns", [*range(1, 60), 80])
def test_a_number_in_a_table_is_never_broken(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ("model", "bits/byte", "perplexity", "tokens")
    console.table(names, [("model.safetensors", "0.300", "1.98", "5600"), ("xz", "0.381", "", "")], numbers=(1, 2, 3))
    shown = OURS.sub("", screen.getvalue())
    for word in ("0.300", "1.98", "5600", "0.381", "bits/byte"):
        assert word in shown.split(), shown
    assert columns < 32 or max(map(len, shown.splitlines())) <= columns


def test_a_table_in_a_pipe_begins_with_the_names_of_its_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(("model", "bits/byte"), [("a", "1.000")], numbers=(1,))
    console.chances("next word", [("apple", 0.375)])
    assert capsys.readouterr().out == "model\tbits/byte\na\t1.000\nnext word\tprobability\napple\t0.375\n"


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


@pytest.mark.parametrize(
    ("columns", "rows"), [(80, 24), (200, 50), (80, 15), (80, 8), (40, 4), (500, 100), *[(n, 2) for n in range(1, 21)]]
)
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
        assert "held-out (interim) 2.010  best 2.010 (step 100)" in "\n".join(last)
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
    from llmcli.cli.commands.train import _signals

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


# ---- what explains a figure to a learner


def test_colours_have_a_key_for_those_who_see_them(tiny_model: Path) -> None:
    shown = in_a_terminal("generate", "The cat", "-n", "5", "--color", "--samples", "2")
    assert shown.count("probability of each token: ") == 1
    key = shown.split("probability of each token: ")[1].split("\r\n")[0]
    for name, colour in zip(("<2%", "2-10%", "10-30%", "30-60%", "60-90%", "≥90%"), console._TINTS, strict=True):
        assert f"\x1b[48;5;{colour};38;5;255m {name} " in key
    assert len("probability of each token: " + OURS.sub("", key)) <= 80
    for words, environment in ((["-q"], {}), ([], {"NO_COLOR": "1"}), (["--json"], {})):
        told = in_a_terminal("generate", "The cat", "-n", "5", "--color", *words, **environment)
        assert "probability of each token" not in told


def test_a_pipe_gets_neither_key_nor_captions(llm: Callable[..., Result], tiny_model: Path) -> None:
    for colour in ("", "1"):
        run = subprocess.run(
            [sys.executable, "-m", "llmcli", "generate", "The cat", "-n", "5", "--color", "--seed", "1"],
            env=os.environ | {"FORCE_COLOR": colour}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert run.returncode == 0 and run.stderr == "" and "probability of each" not in run.stdout
    Path("c.txt").write_text("The cat sat on the mat.")
    for words in LEARNERS:
        plain = llm(*words).stdout
        assert plain and not any(caption in plain.replace("\n", " ") for caption in LEARNERS[words])


LEARNERS = {
    ("generate", "The cat", "--next", "3"): ("As uncertain as a choice among", "sum over the ways to spell it;"),
    ("generate", "The cat", "--steps", "2"): ("the probability that the model gives a token",),
    ("explain", "The cat"): ("A row is a token", "half as likely", "if it ended after this layer", "add up to 1",
                             "over the ways to spell it."),
    ("eval", "c.txt"): ("lower is better, 8 is no knowledge", "first guess"),
    ("eval", "c.txt", "--per-token"): ("1/2 costs 1 bit",),
    ("inspect", "--weights"): ("a histogram of a part's weights",),
}  # fmt: skip


@pytest.mark.parametrize("words", LEARNERS)
def test_a_sentence_under_each_figure_says_what_it_means(tiny_model: Path, words: tuple[str, ...]) -> None:
    from rich.cells import cell_len

    Path("c.txt").write_text("The cat sat on the mat.")
    drawn = in_a_terminal(*words)
    shown = OURS.sub("", drawn)
    dim = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", drawn)
    assert dim and all(cell_len(line) <= 80 for line in dim)
    for caption in LEARNERS[words]:
        assert caption in re.sub(r" *\r\n", " ", shown), caption
    quiet = OURS.sub("", in_a_terminal(*words, "-q"))
    assert not any(caption in re.sub(r" *\r\n", " ", quiet) for caption in LEARNERS[words])
