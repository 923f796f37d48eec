"""How things look; the only room that knows rich. Results go to stdout, everything else to stderr.

rich is imported when something is drawn with it, so that a plain answer starts at once.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Drop notes from now on; errors and results stay."""
    global _quiet
    _quiet = quiet


# ---- plain text


def result(text: str = "", end: str = "\n", *, raw: bool = False) -> None:
    """A result on stdout, at once. In a terminal, control characters show as visible marks.

    `raw` is for our own colours; what came from elsewhere in such a text was made visible before.
    """
    sys.stdout.write((visible(text) if sys.stdout.isatty() and not raw else text) + end)
    sys.stdout.flush()


def result_bytes(data: bytes) -> None:
    """Bytes on stdout as they are; in a terminal as visible text on a line of its own."""
    if sys.stdout.isatty():
        result(data.decode("utf-8", "replace"))
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Something worth knowing, on stderr, unless quiet."""
    if not _quiet:
        print(visible(text), file=sys.stderr, flush=True)


def progress(text: str) -> None:
    """A line in a terminal that the next one replaces; "" takes it away."""
    if sys.stderr.isatty() and not _quiet:
        print(f"\r\x1b[K{visible(text)}", file=sys.stderr, end="", flush=True)


def prompt(text: str) -> None:
    """What a text goes on from, dim, before it on the terminal."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    if not _quiet:
        print(f"{dim}{visible(text)}{plain}", file=sys.stderr, end="", flush=True)


def fail(text: str) -> None:
    """The one line of an error, on stderr."""
    line = visible(" ".join(text.split()))
    red, plain = ("\x1b[31m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    print(f"{red}error:{plain} {line}", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Text that cannot command a terminal: control characters and bidirectional overrides become marks.

    >>> visible("a\\x1b[31mb\\u202e\\tc\\n")
    'a␛[31mb⟨U+202E⟩\\tc\\n'
    """
    return _UNSAFE.sub(_mark, text)


_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def shown(text: str) -> str:
    """A token or word on one line: visible, its white space as marks.

    >>> shown(" apple\\n")
    '·apple⏎'
    """
    return visible(text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))


def colours(stream: Any) -> bool:
    """Whether a stream is a terminal that should get colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def tint(text: str, probability: float) -> str:
    """Text on a background from red (unlikely) over yellow to green (likely); plain where colours are off."""
    level = sum(probability >= limit for limit in (0.02, 0.1, 0.3, 0.6, 0.9))
    return _on((88, 130, 136, 100, 64, 28)[level], text)


def stripe(text: str, index: int) -> str:
    """Text on one of a few backgrounds in turn, so that neighbours can be told apart."""
    return _on((24, 22, 54, 58, 88)[index % 5], text)


def _on(background: int, text: str) -> str:
    """Made visible and put on one of the 256 colours; the background ends at the end of a line."""
    text = visible(text)
    if not text or not colours(sys.stdout):
        return text
    start, plain = f"\x1b[48;5;{background};38;5;255m", "\x1b[0m"
    return start + text.replace("\n", f"{plain}\n{start}") + plain


# ---- drawn with rich


def width() -> int:
    """Columns of the terminal, 80 where there is none."""
    return _console(sys.stdout).width


def _console(stream: Any) -> "Console":
    from rich.console import Console

    return Console(file=stream, markup=False, highlight=False, emoji=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), to_stderr: bool = False
) -> None:
    """A table: drawn in a terminal, tab-separated where a program reads. `numbers` are columns to align right."""
    stream = sys.stderr if to_stderr else sys.stdout
    if to_stderr and _quiet:
        return
    if not stream.isatty():
        for row in rows:
            print("\t".join(visible(cell) for cell in row).rstrip("\t"), file=stream)
        stream.flush()
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        drawn.add_column(name, justify="right" if i in numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(visible(cell)) for cell in row))
    _console(stream).print(drawn)


def heading(text: str) -> None:
    """A line above a part of a result."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colours(sys.stdout) else ("", "")
    result(f"\n{bold}{visible(text)}{plain}", raw=True)


def tokens(names: Sequence[str], ids: Sequence[int]) -> None:
    """Tokens side by side, each over its id, as many to a line as fit; a line for each where a program reads."""
    if not sys.stdout.isatty():
        for name, token in zip(names, ids, strict=True):
            result(f"{token}\t{name}")
        return
    from rich.cells import cell_len

    room = width()
    top, bottom, used = "", "", 0
    for index, (name, token) in enumerate(zip(names, ids, strict=True)):
        cell = max(cell_len(name), len(str(token)))
        if used and used + cell + 1 > room:
            result(f"{top}\n{bottom}\n", raw=True)
            top, bottom, used = "", "", 0
        top += stripe(name, index) + " " * (cell - cell_len(name) + 1)
        bottom += str(token).ljust(cell + 1)
        used += cell + 1
    if used:
        result(f"{top}\n{bottom}", raw=True)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and what they stand for, under each other."""
    rows = list(rows)
    margin = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        result(f"  {visible(name):<{margin}}  {visible(value)}")


def tree(rows: Sequence[tuple[int, str, str, str]]) -> None:
    """Rows of (depth, name, what, figures) as a tree whose columns stand under each other."""
    lines = []
    for i, (depth, name, what, figures) in enumerate(rows):
        rails = ""
        for level in range(depth + 1):
            later = next((d for d, *_ in rows[i + 1 :] if d <= level), -1) == level
            rails += ("├─ " if later else "└─ ") if level == depth else ("│  " if later else "   ")
        lines.append((rails + visible(name)[:80], visible(what), visible(figures)))
    left = max((len(line[0]) for line in lines), default=0)
    right = max((len(line[1]) for line in lines), default=0)
    for name, what, figures in lines:
        result(f"{name:<{left}}  {what:>{right}}  {figures:>18}".rstrip())


class TrainingView:
    """Shows a run: a bar, figures and a growing curve in a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._live = None
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._evaluations: list[tuple[int, float]] = []
        self._best = math.inf
        self._smooth = math.nan
        self._sample = ""
        self._last: dict[str, Any] = {}
        self._shown_at = -math.inf
        if sys.stderr.isatty() and not _quiet:
            from rich.live import Live

            self._live = Live(console=_console(sys.stderr), refresh_per_second=4, transient=False)

    def __enter__(self) -> "TrainingView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._draw(), refresh=True)
            self._live.stop()

    def step(
        self,
        *,
        step: int,
        progress: float,
        loss: float,
        epoch: float,
        seconds: float,
        tokens_per_second: float,
        **_: Any,
    ) -> None:
        """A step was taken; `progress` from 0 to 1, `loss` in nats per token."""
        self._smooth = loss if math.isnan(self._smooth) else 0.95 * self._smooth + 0.05 * loss
        self._last = {
            "step": step, "progress": progress, "epoch": epoch, "seconds": seconds, "speed": tokens_per_second,
            "left": seconds * (1 - progress) / progress if progress and step >= 5 else math.nan,
        }  # fmt: skip
        self._steps.append(step)
        self._losses.append(self._smooth)
        if self._live:
            if seconds - self._shown_at >= 0.25:
                self._shown_at = seconds
                self._live.update(self._draw())
        elif seconds - self._shown_at >= 10 or progress >= 1:
            self._shown_at = seconds
            note(self._line())

    def evaluation(self, step: int, bits_per_byte: float) -> None:
        """The held-out text was looked at."""
        self._evaluations.append((step, bits_per_byte))
        self._best = min(self._best, bits_per_byte)

    def sample(self, prompt: str, text: str) -> None:
        """What the model now says after a prompt."""
        self._sample = shown(prompt).replace("·", " ") + "│" + shown(text).replace("·", " ")

    def _line(self) -> str:
        last = self._last
        held = f"  held-out {self._evaluations[-1][1]:.3f} bits/byte" if self._evaluations else ""
        return (
            f"{last['progress']:4.0%}  step {last['step']:,}  {_clock(last['left'])} left  "
            f"{last['speed']:,.0f} tokens/s  loss {self._smooth:.3f}{held}"
        )

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        from llmcli import charts

        if not self._last:
            return Text("")
        columns = _console(sys.stderr).width
        last = self._last
        best = (
            f"  held-out {self._evaluations[-1][1]:.3f} bits/byte (best {self._best:.3f})" if self._evaluations else ""
        )
        bar_width = max(10, min(40, columns - 40))
        filled = round(last["progress"] * bar_width)
        first = Text.assemble(
            ("━" * filled, "green"), ("━" * (bar_width - filled), "bright_black"),
            f" {last['progress']:4.0%}  {_clock(last['left'])} left  {last['speed']:,.0f} tokens/s",
        )  # fmt: skip
        second = Text(f"step {last['step']:,}  epoch {last['epoch']:.1f}  loss {self._smooth:.3f}{best}")
        drawn = [first, second]
        every = max(1, len(self._steps) // 400)
        chart = charts.curve([(self._steps[::every], self._losses[::every])], min(columns - 2, 76), 7)
        drawn += [Text(line, style="cyan", no_wrap=True) for line in chart]
        if self._sample:
            drawn.append(Text(self._sample, style="italic", no_wrap=True, overflow="ellipsis"))
        return Group(*(self._one_line(text) for text in drawn))

    @staticmethod
    def _one_line(text: Any) -> Any:
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def _clock(seconds: float) -> str:
    """
    >>> [_clock(s) for s in (5.4, 75, 3700)]
    ['0:05', '1:15', '1:01:40']
    """
    if not math.isfinite(seconds):
        return "-:--"
    whole = round(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:{'02' if hours else ''}}:{whole % 60:02}"
