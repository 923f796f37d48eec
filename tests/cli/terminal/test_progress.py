"""The progress of a training run, in a terminal and elsewhere."""

import math
import os
import signal
from typing import Any

import numpy as np
import pytest

from llmcli import signals
from llmcli.cli.terminal import console, losses, progress
from llmcli.cli.terminal.text_layout import text_width
from llmcli.training.loop.events import Evaluation, Sample, State, Step, TeacherTrained
from tests.cli.terminals import STYLES, colored_stdout, on_screen


def made_step(**figures: Any) -> Step:
    return Step(
        **{"rate": 1.0, "loss": 1.0, "tokens": 9, "epoch": 1.0, "seconds": 0.0, "tokens_per_second": 1.0} | figures
    )


def run(view: progress.TrainingView, steps: int, seconds: float) -> None:
    """`steps` steps in `seconds` seconds, the loss falling from 8 to 1 nats per token; ten evaluations and samples."""
    for step in range(1, steps + 1):
        view.add(made_step(
            step=step, progress=step / steps, loss=1 + 7 / step, epoch=step / 10, seconds=seconds * step / steps,
            tokens=round(1000 * seconds * step / steps), tokens_per_second=1000.0,
        ))  # fmt: skip
        if step * 10 % steps == 0:
            view.add(Evaluation(step, 3.0 - step / steps, best=False))
            view.add(Sample(step, "りんご", "を食べる\n" * 250))


@pytest.mark.slow
def test_the_live_view_fits_the_terminal_and_restores_it(monkeypatch) -> None:
    sizes = [(80, 24), (200, 50), (80, 15), (80, 8), (40, 4), (500, 100), *[(n, 2) for n in (1, 2, 9, 20)]]
    for columns, rows in sizes:
        screen = colored_stdout(monkeypatch)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        with progress.TrainingView(4.0) as view:
            run(view, 20, 60)
        drawn = screen.getvalue()
        assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")  # the cursor is visible again
        last = STYLES.sub("", drawn.rpartition("\x1b[2K")[2]).rstrip("\n").split("\n")
        assert len(last) < max(2, rows)
        assert max(text_width(line) for line in last) <= columns
        if rows >= 15:
            chart = [line for line in last if "│" in line and "りんご" not in line]
            assert len(chart) >= 5 and max(map(len, chart)) <= columns
            assert sum(line.count("o") for line in chart) >= 5
            assert "validation 2.000  best 2.000 (step 20)" in "\n".join(last)
            assert any(line.startswith("りんご│") for line in last) and last[-1].endswith("…")


@pytest.mark.parametrize("rows", [15, 24])
def test_a_note_from_a_signal_handler_leaves_one_view(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """The view fills the terminal, with a plan above it. (Japanese has two columns for a character: here is none.)"""
    screen = colored_stdout(monkeypatch)
    monkeypatch.setattr(console, "write_from_signal_handler", screen.write)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", str(rows))
    screen.write("plan\n" * rows)
    with progress.TrainingView(4.0) as view:
        run(view, 20, 60)
        view.add(Sample(20, "I", "like tea. " * 50))
        view.note_from_signal_handler("ending the run")
        shown = on_screen(screen.getvalue(), 80, rows)
        assert shown[-1] == "ending the run" and _bars(shown) == 1
        view.add(made_step(step=21, progress=1, loss=1, tokens=70_000, epoch=2, seconds=70, tokens_per_second=1000))
        shown = on_screen(screen.getvalue(), 80, rows)
        assert shown[-1] == "ending the run" and _bars(shown) == 1 and shown.count("ending the run") == 1
    shown = on_screen(screen.getvalue(), 80, rows)
    assert _bars(shown) == 1 and "ending the run" not in shown and shown.count("plan") == rows


def _bars(lines: list[str]) -> int:
    return sum("tokens/s" in line for line in lines)


def test_the_cursor_is_restored_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it ends the process."""
    screen = colored_stdout(monkeypatch)
    with pytest.raises(KeyboardInterrupt), progress.TrainingView(4.0) as view:
        run(view, 3, 1)
        raise KeyboardInterrupt
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")
    at_end: list[str] = []
    monkeypatch.setattr(signals, "_may_raise", lambda frame: False)
    monkeypatch.setattr(signals, "on_stop_requests", lambda handler: None)
    monkeypatch.setattr(os, "_exit", lambda code: at_end.append(screen.getvalue()))
    with progress.TrainingView(4.0) as view:
        run(view, 3, 1)
        signals.end_process(signal.SIGINT, None)
    assert at_end[0].rindex("\x1b[?25h") > at_end[0].rindex("\x1b[?25l")


def test_a_pipe_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    for seconds, lines in [(1, 2), (60, 7), (7200, 51)]:
        with progress.TrainingView(4.0) as view:
            run(view, 1000, seconds)
        lines_shown = capsys.readouterr().err.splitlines()
        assert abs(len(lines_shown) - lines) <= 1
        last = lines_shown[-1]
        start = "100%  step 1,000  0:00 left  1,000 tokens/s  bits/byte: training "
        assert last.startswith(start) and last.endswith("validation 2.000") and "loss" not in last


def test_the_time_left_does_not_count_planning(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.TrainingView(4.0) as view:  # 20 of 70 seconds were training, a fifth is done
        view.add(made_step(step=9, progress=0.2, loss=1, tokens=20_000, epoch=1, seconds=70, tokens_per_second=1000))
    assert "1:20 left" in capsys.readouterr().err


def test_figures_of_answers_have_a_name_and_a_unit_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.TrainingView(4.0, answers=(0.5, 2.0)) as view:
        view.add(Evaluation(1, 1.5, best=True))
        for step, done in ((1, 0.4), (2, 0.6)):
            view.add(made_step(
                step=step, progress=done, loss=4 * math.log(2), tokens=9, epoch=1, seconds=20 * step,
                tokens_per_second=1,
            ))  # fmt: skip
        assert view.losses.curve()[1] == pytest.approx([1.0, 2.0])
    assert "bits/byte: training 1.667  validation answers 1.500" in capsys.readouterr().err  # 1/3 of 1.0, 2/3 of 2.0


def test_a_student_has_a_curve_and_figures_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"loss": 4 * math.log(2), "tokens": 9, "epoch": 1, "tokens_per_second": 1}
    with progress.TrainingView(4.0) as view:
        view.add(made_step(step=1, progress=0.5, seconds=20, **figures))
        view.add(Evaluation(1, 1.5, best=True))
        view.add(TeacherTrained(1, 1.5))
        view.add(made_step(step=2, progress=0.6, seconds=40, **figures | {"loss": 12 * math.log(2)}))
        assert view.losses.curve() == ([2], pytest.approx([3.0]), [], [], "validation")
    last = capsys.readouterr().err.splitlines()[-1]
    assert "step 2" in last and "validation" not in last and last.endswith("bits/byte: training 3.000")


def test_a_resumed_run_shows_the_figures_of_one_that_was_not_stopped() -> None:
    """The second of its two models has text in the steps 3 and 4, then answers."""
    whole, resumed = (losses.TrainingLosses(4.0, (0.45, 2.0)) for _ in range(2))
    steps = [made_step(step=step, progress=step / 10, loss=9.0 / step) for step in range(3, 9)]
    for step in steps:
        whole.add(step)
    whole.evaluations = [(4, 1.5)]
    values = {"student_from": 2, "conversations_from": 4, "evaluations": [[2, 1.0], [4, 1.5]]}
    resumed.stopped = State({"losses": np.array([9.0 / n for n in range(1, 7)])}, values)
    for step in steps[4:]:
        resumed.add(step)
    assert (resumed.mean, resumed.curve(), resumed.evaluations) == (whole.mean, whole.curve(), whole.evaluations)


def test_a_hidden_view_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = colored_stdout(monkeypatch)
    with progress.TrainingView(4.0, hidden=True) as view:
        run(view, 20, 60)
        print("one event")
    assert screen.getvalue() == "one event\n"


def test_a_growing_curve_is_thinned_to_means(capsys: pytest.CaptureFixture[str]) -> None:
    view = progress.TrainingView(1 / math.log(2))  # a nat per token is a bit per byte
    for step in range(11, 10_001):
        view.add(made_step(step=step, progress=0, loss=float(step), seconds=0, tokens=1, tokens_per_second=1))
    steps, means, *_ = view.losses.curve()
    assert losses.MAX_POINTS / 2 <= len(steps) <= losses.MAX_POINTS and steps[-1] == 10_000
    assert means[0] == pytest.approx((11 + steps[0]) / 2) and means[-1] == pytest.approx((steps[-2] + 10_001) / 2)
