"""The progress of a training run on stderr: a live view in a terminal, periodic lines elsewhere."""

import math
import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli.terminal import charts, console
from llmcli.cli.terminal.console import without_echo
from llmcli.cli.terminal.losses import TrainingLosses
from llmcli.cli.terminal.safe_text import one_line, visible_line
from llmcli.signals import cleaning_up
from llmcli.training.loop.events import Evaluation, Restarted, Sample, Step, TeacherTrained

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from llmcli.training.loop.events import RunEvent

REFRESH_SECONDS = 0.25  # between two updates of the live view
# minimum between two lines of output outside a terminal: seconds, and share of the run
LINE_SECONDS = 10
LINE_PROGRESS = 0.02
MIN_STEPS_FOR_ESTIMATE = 5  # earlier, the time left is not shown
MIN_CHART_HEIGHT = 3
MIN_CHART_WIDTH = 30


class TrainingView:
    """Shows a run: a bar, figures and a growing chart in a terminal, periodic lines elsewhere.
    For `bytes_per_token` and `answers` see TrainingLosses; with `hidden`, nothing is shown."""

    def __init__(
        self, bytes_per_token: float, answers: tuple[float, float] | None = None, *, hidden: bool = False
    ) -> None:
        self.losses = TrainingLosses(bytes_per_token, answers)
        self._validation_name = "validation answers" if answers else "validation"
        self._sample = "", ""  # prompt, text
        self._step: Step | None = None  # the latest one
        self._last_step: Step | None = None  # the run's last one, until its line is shown
        self._shown_seconds = -math.inf
        self._shown_progress = -math.inf
        self._hidden = hidden
        self._live: Live | None = None
        if os.environ.get("TERM") != "dumb" and console.shows_progress() and not hidden:
            import rich.live

            # no refresh thread, since it would take time from training; stdout is not redirected
            console_ = console.rich_console(sys.stderr)
            self._live = rich.live.Live(
                console=console_, auto_refresh=False, redirect_stdout=False, vertical_overflow="crop"
            )
        self._note = ""  # the last line
        self._note_is_below = False  # whether it is displayed below the view
        self._terminal = ExitStack()

    def __enter__(self) -> "TrainingView":
        if self._live:
            self._terminal.enter_context(without_echo())  # typed characters would shift the view
            self._terminal.enter_context(cleaning_up(self._live.stop))  # restores the cursor
        return self

    def __exit__(self, *error: Any) -> None:
        with self._terminal:
            self._show_last_step()
            self._note = ""
            if self._live and self._live.is_started:
                self._redraw(self._live)

    def add(self, event: "RunEvent") -> None:
        """Show the next event of the run."""
        self.losses.add(event)
        match event:
            case Step():
                self._step = event
                if not self._hidden:
                    self._show(event)
            case Evaluation():
                self._show_last_step()
            case Sample():
                self._sample = one_line(event.prompt), one_line(event.text)
            case TeacherTrained() | Restarted():
                self._shown_progress = -math.inf

    def status(self, text: str) -> None:
        """Show what the run is doing between steps: below the view, or in a status line."""
        if self._live and self._live.is_started:
            self._note = text
            self._live.update(self._draw(self._live), refresh=True)
        else:
            console.status(text)

    def note_from_signal_handler(self, text: str) -> None:
        """Write a note immediately below the view, which includes it in its next update."""
        if not (self._live and self._live.is_started):
            console.note_from_signal_handler(text)
            return
        self._note = text
        self._note_is_below = True
        line = visible_line(text)[: self._live.console.width - 1]
        # the cursor stays in the last line of the view
        console.write_from_signal_handler(f"\r\n{line}\r\x1b[A")

    def _redraw(self, live: "Live") -> None:
        if self._note_is_below:
            self._note_is_below = False
            live.console.file.write("\x1b[J")  # to the end of the screen
        live.start()  # only at the first step, because notes and status lines precede it
        live.update(self._draw(live), refresh=True)

    def _show(self, event: Step) -> None:
        since = event.seconds - self._shown_seconds
        if self._live:
            if since >= REFRESH_SECONDS:
                self._shown_seconds = event.seconds
                self._redraw(self._live)
        elif event.progress >= 1:
            self._last_step = event
        elif since >= LINE_SECONDS and event.progress - self._shown_progress >= LINE_PROGRESS:
            self._show_line(event)

    def _show_last_step(self) -> None:
        """Show the line of the last step, which is due after its evaluation."""
        if event := self._last_step:
            self._last_step = None
            self._show_line(event)

    def _show_line(self, event: Step) -> None:
        self._shown_seconds = event.seconds
        self._shown_progress = event.progress
        losses = f"training {units.bits_per_byte(self.losses.mean)}"
        if self.losses.evaluations:
            losses += f"  {self._validation_name} {units.bits_per_byte(self.losses.evaluations[-1][1])}"
        console.note(
            f"{event.progress:4.0%}  step {event.step:,}  {time_left(event)} left  "
            f"{event.tokens_per_second:,.0f} tokens/s  bits/byte: {losses}"
        )

    # ---- the live view

    def _draw(self, live: "Live") -> "Group | Text":
        from rich.console import Group
        from rich.text import Text

        if self._step is None:
            return Text("")
        event = self._step
        columns, rows = live.console.size
        figures = f"{event.progress:4.0%}  {time_left(event)} left  {event.tokens_per_second:,.0f} tokens/s"
        width = max(10, min(100, columns - len(figures) - 4))
        filled = round(event.progress * width)
        losses = f"training {units.bits_per_byte(self.losses.mean)}"
        if self.losses.evaluations:
            best, step = min((bits, step) for step, bits in self.losses.evaluations)
            newest = units.bits_per_byte(self.losses.evaluations[-1][1])
            losses += f"  {self._validation_name} {newest}  best {units.bits_per_byte(best)} (step {step:,})"
        lines = [
            Text.assemble(("━" * filled, "green"), ("─" * (width - filled), "bright_black"), f" {figures}"),
            Text(f"step {event.step:,}  epoch {event.epoch:.1f}"),
            Text(f"bits per byte: {losses}"),
        ]
        text = Text.assemble((self._sample[0], "bold"), ("│", "bright_black"), (self._sample[1], "italic"))
        sample = list(text.wrap(live.console, columns - 1, overflow="fold")) if any(self._sample) else []
        if len(sample) > (max_lines := 4 if rows >= 20 else 2):
            sample = sample[:max_lines]
            sample[-1].truncate(columns - 2)
            sample[-1].append("…")
        # one row is for the cursor and one for the chart's axis; the plan above stays visible if it fits
        height = min(16, max(6, columns // 10), rows - len(lines) - len(sample) - 2)
        if height >= MIN_CHART_HEIGHT and columns >= MIN_CHART_WIDTH:
            lines += self._chart(min(columns - 1, 200), height)
        for line in lines:
            line.no_wrap = True
            line.overflow = "ellipsis"
        shown = (lines + sample)[: max(1, rows - 1)]
        return Group(*shown, *([Text(self._note, no_wrap=True, overflow="ellipsis")] if self._note else []))

    def _chart(self, columns: int, height: int) -> "list[Text]":
        from rich.text import Text

        curve = self.losses.curve()
        legend = "bits per byte (log scale)"
        if self.losses.evaluations:
            legend += f": ⠒⠒ training  {charts.MARK} {self._validation_name}"
        *lines, axis = charts.curve(curve, columns, height, legend)
        drawn = [
            Text.assemble(label, "│", (rest, "cyan"))
            for label, _, rest in (line.partition("│") for line in lines)
        ]
        for text in drawn:
            text.highlight_regex(charts.MARK, "bold yellow")
        return [*drawn, Text(axis)]


def time_left(event: Step) -> str:
    """Estimate the time left from the speed of training, which excludes planning; "-:--" in the first
    steps."""
    if event.progress <= 0 or event.step < MIN_STEPS_FOR_ESTIMATE:
        return "-:--"
    seconds = round(event.tokens / event.tokens_per_second * (1 - event.progress) / event.progress)
    hours = f"{seconds // 3600}:" if seconds >= 3600 else ""
    return f"{hours}{seconds // 60 % 60:{'02' if hours else ''}}:{seconds % 60:02}"
