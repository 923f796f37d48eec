"""How things look; the only room that knows rich. Results go to stdout, everything else to stderr.

Whatever the program says goes out here, and what comes from outside (names of files and tensors, metadata, tokens) can
command no terminal and break no line: `inline` marks it, in a terminal and in a pipe. Two things keep their bytes where
a program reads them: the text that a model wrote (`verbatim`), and JSON, whose escapes stand for the same characters.

rich is imported when something is drawn with it, so that a plain answer starts at once.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_ERROR = 2_000  # characters: a file may have put far more into it
_quiet = False


def be_quiet(quiet: bool) -> None:
    """Drop notes from now on; errors and results stay."""
    global _quiet
    _quiet = quiet


# ---- plain text


def result(line: str = "", *, raw: bool = False) -> None:
    """A line of a result on stdout, at once; control characters, also line ends, show as visible marks.

    `raw` is for our own colours and layout; what came from elsewhere in such a line was made visible before.
    """
    _write((line if raw else inline(line)) + "\n")


def verbatim(text: str, end: str = "", *, raw: bool = False) -> None:
    """Text that a model or a user wrote, on stdout, at once: as it is where a program reads; in a terminal its control
    characters show as visible marks. `raw` as above."""
    _write((visible(text) if sys.stdout.isatty() and not raw else text) + end)


def json_result(value: Any) -> None:
    """A result on stdout as a line of JSON: what is no number is null, and what could command a terminal is escaped."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        line = json.dumps(_without_nan(value), ensure_ascii=False)
    _write(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(data: str) -> None:
    sys.stdout.write(data)
    sys.stdout.flush()


def paragraph(text: str) -> None:
    """Words on as many lines as they need."""
    import textwrap

    for line in textwrap.wrap(text, width()):
        result(line)


def result_bytes(data: bytes) -> None:
    """Bytes on stdout as they are; in a terminal as visible text on a line of its own."""
    if sys.stdout.isatty():
        verbatim(data.decode("utf-8", "replace"), end="\n")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def note(text: str) -> None:
    """Something worth knowing, on stderr, unless quiet."""
    if not _quiet:
        warn(text)


def warn(text: str) -> None:
    """Something that must be known, on stderr, though quiet."""
    print(inline(text), file=sys.stderr, flush=True)


def note_at_once(text: str) -> None:
    """A note from inside a signal handler: past the buffered stream, which may be in the middle of a line."""
    if not _quiet:
        with suppress(OSError, ValueError):  # nobody takes it, or the stream is no file
            os.write(sys.stderr.fileno(), f"{inline(text)}\n".encode("utf-8", "backslashreplace"))


def progress(text: str) -> None:
    """A line in a terminal that the next one replaces; "" takes it away."""
    if sys.stderr.isatty() and not _quiet:
        print(f"\r\x1b[K{inline(text)}", file=sys.stderr, end="", flush=True)


def prompt(text: str) -> None:
    """What a text goes on from, dim, before it on the terminal."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    if not _quiet:
        print(f"{dim}{visible(text)}{plain}", file=sys.stderr, end="", flush=True)


def fail(text: str) -> None:
    """The one line of an error, on stderr."""
    line = " ".join(text.split())
    line = inline(line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}…")
    red, plain = ("\x1b[31m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    print(f"{red}error:{plain} {line}", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Text that cannot command a terminal: control characters and bidirectional overrides become marks.

    >>> visible("a\\x1b[31mb\\u202e\\tc\\n")
    'a␛[31mb⟨U+202E⟩\\tc\\n'
    """
    return _UNSAFE.sub(_mark, text)


def inline(text: str) -> str:
    """As `visible`, and on one line: line ends and tabs become marks too.

    >>> inline("a\\x1b[31mb\\u202e\\tc\\n")
    'a␛[31mb⟨U+202E⟩␉c␊'
    """
    return _UNSAFE_IN_LINE.sub(_mark, text)


_COMMANDS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_COMMANDS}]")
_UNSAFE_IN_LINE = re.compile(f"[{_COMMANDS}\t\n\u2028\u2029]")
_UNSAFE_IN_JSON = re.compile(f"[{_COMMANDS}\u2028\u2029]")  # outside of its texts JSON has none of them


def _mark(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xD800 <= code <= 0xDFFF:  # a byte of a file's name that is no UTF-8, as Python keeps it
        return f"\\u{code:04x}"
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def shown(text: str) -> str:
    """A token or word on one line: visible, its white space as marks.

    >>> shown(" apple\\n")
    '·apple⏎'
    """
    return visible(text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍"))


def bits(entropy: float) -> str:
    """An entropy in words.

    >>> bits(2.0)
    '2.00 bits unsure, as among 4.0 that are equally likely'
    """
    return f"{entropy:.2f} bits unsure, as among {2**entropy:,.1f} that are equally likely"


def cut(text: str, columns: int) -> str:
    """Text in a number of columns at most; its end is cut where it is longer.

    >>> [cut("apple", 5), cut("リンゴを", 5)]
    ['apple', 'リン…']
    """
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= columns else set_cell_size(text, columns - 1).rstrip() + "…"


def one_line(text: str, columns: int) -> str:
    """Text on one line, as `shown` but with its spaces, its beginning cut where it is longer than `columns`.

    >>> one_line("I like\\n to eat", 7)
    '…to eat'
    """
    from rich.cells import cell_len

    text = shown(text).replace("·", " ")
    if cell_len(text) <= columns:
        return text
    while cell_len(text) > columns - 1:
        text = text[1:]
    return f"…{text.lstrip()}"


def colours(stream: Any) -> bool:
    """Whether a stream is a terminal that should get colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def tint(text: str, probability: float) -> str:
    """Text on a background from red (unlikely) over yellow to green (likely); plain where colours are off."""
    level = sum(probability >= limit for limit in (0.02, 0.1, 0.3, 0.6, 0.9))
    return _on((88, 130, 136, 100, 64, 28)[level], text)


def surprises(tokens: Sequence[tuple[str, float]]) -> None:
    """A text, each token on a background from none (expected) over yellow to red (many bits), its key below; where
    there are no colours a line for each token: its bits and the token."""
    if not colours(sys.stdout):
        for text, cost in tokens:
            _row((f"{cost:.2f}", shown(text)), sys.stdout)
        return
    drawn = "".join(_surprise(text, cost) for text, cost in tokens)
    verbatim(drawn, end="" if drawn.endswith("\n") else "\n", raw=True)
    key = zip(("below 1", "1 to 3", "3 to 6", "6 to 10", "10 and more"), (0, *_SURPRISES), strict=True)
    result("\nbits: " + "".join(_surprise(f" {text} ", cost) for text, cost in key), raw=True)


_SURPRISES = (1, 3, 6, 10)  # bits


def _surprise(text: str, cost: float) -> str:
    level = sum(cost >= limit for limit in _SURPRISES)
    return _on((0, 58, 136, 130, 88)[level], text) if level else visible(text)


def marked(text: str, spans: Iterable[tuple[int, int]]) -> None:
    """A text with parts of it (first character, the one after the last) on a background; in brackets where there are
    no colours. No line end."""
    on = colours(sys.stdout)
    end = 0
    for first, last in spans:
        verbatim(text[end:first])
        verbatim(_on(24, text[first:last]) if on else f"⟦{text[first:last]}⟧", raw=on)
        end = last
    verbatim(text[end:])


STRIPES = (24, 22, 54, 58, 88, 30, 94, 60)  # of the 256 colours


def stripe(text: str, index: int) -> str:
    """Text on one of a few backgrounds in turn, so that neighbours can be told apart."""
    return _on(STRIPES[index % len(STRIPES)], text)


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
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    to_stderr: bool = False,
    striped: bool = False,
) -> None:
    """A table: drawn in a terminal, tab-separated where a program reads. `numbers` are columns to align right; what
    stands first in row i of a `striped` one has the colour of stripe(..., i)."""
    stream = sys.stderr if to_stderr else sys.stdout
    if to_stderr and _quiet:
        return
    if not stream.isatty():
        for row in rows:
            _row(row, stream)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        drawn.add_column(inline(name), justify="right" if i in numbers else "left", overflow="fold")
    for i, row in enumerate(rows):
        style = f"color(255) on color({STRIPES[i % len(STRIPES)]})" if striped else ""
        first, *others = map(inline, row)
        drawn.add_row(Text(first, style), *map(Text, others))
    _console(stream).print(drawn)


def _row(cells: Iterable[str], stream: Any) -> None:
    """Cells on a line, tab-separated, where a program reads."""
    print("\t".join(map(inline, cells)).rstrip("\t"), file=stream, flush=True)


def chances(what: str, rows: Sequence[tuple[str, float]]) -> None:
    """Names with their probabilities, as bars in a terminal."""
    from rich.cells import cell_len

    shown = [(cut(name, max(12, width() // 3)), chance) for name, chance in rows] if sys.stdout.isatty() else rows
    room = min(60, max(8, width() - 22 - max(map(cell_len, [what, *(name for name, _ in shown)]))))
    table(
        (what, "probability", ""), [(name, f"{chance:.3f}", bar(chance, room)) for name, chance in shown], numbers=(1,)
    )


def bar(share: float, columns: int) -> str:
    """A bar in a terminal, nothing where a program reads."""
    from llmcli import charts

    return charts.bar(share, columns) if sys.stdout.isatty() else ""


def heading(text: str) -> None:
    """A line above a part of a result."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colours(sys.stdout) else ("", "")
    result(f"\n{bold}{inline(text)}{plain}", raw=True)


def tokens(names: Sequence[str], ids: Sequence[int]) -> None:
    """Tokens side by side, each over its id, as many to a line as fit; a line for each where a program reads."""
    if not sys.stdout.isatty():
        for name, token in zip(names, ids, strict=True):
            _row((str(token), name), sys.stdout)
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


def labelled(rows: Iterable[tuple[str, str]], most: int) -> None:
    """Lines that each follow a label; labels take the same room, `most` columns at most, and are cut where longer."""
    from rich.cells import cell_len, set_cell_size

    rows = [(inline(label), line) for label, line in rows]
    margin = min(most, max((cell_len(label) for label, _ in rows), default=0))
    for label, line in rows:
        result(f"{set_cell_size(cut(label, margin), margin)} {line}".rstrip())


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Names and what they stand for, under each other."""
    rows = list(rows)
    margin = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        result(f"  {inline(name):<{margin}}  {value}")


def tree(rows: Sequence[tuple[int, str, str, str]]) -> None:
    """Rows of (depth, name, what, figures) as a tree whose columns stand under each other."""
    lines = []
    for i, (depth, name, what, figures) in enumerate(rows):
        rails = ""
        for level in range(depth + 1):
            later = next((d for d, *_ in rows[i + 1 :] if d <= level), -1) == level
            rails += ("├─ " if later else "└─ ") if level == depth else ("│  " if later else "   ")
        lines.append((rails + inline(name)[:80], inline(what), inline(figures)))
    left = max((len(line[0]) for line in lines), default=0)
    right = max((len(line[1]) for line in lines), default=0)
    for name, what, figures in lines:
        result(f"{name:<{left}}  {what:>{right}}  {figures:>18}".rstrip())


class TrainingView:
    """Shows a run: a bar, figures and a growing curve in a terminal, a plain line now and then elsewhere.

    `bytes_per_token` of the text turns the loss into bits per byte, the unit of the held-out figures. `still` draws
    nothing, where a program reads the events.
    """

    def __init__(self, bytes_per_token: float, *, still: bool = False) -> None:
        self._bits = 1 / (math.log(2) * bytes_per_token)  # per byte, of a nat per token
        self._live = None
        self._curve = _Thinned()
        self._evaluations: list[tuple[int, float]] = []
        self._loss = math.nan
        self._sample: tuple[str, str] | None = None
        self._last: dict[str, Any] = {}
        self._shown_at = self._shown_progress = -math.inf
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not _quiet and not still:
            from rich.live import Live

            # drawn only when there is something new: no thread takes time from the run; stdout stays where it goes
            self._live = Live(
                console=_console(sys.stderr), auto_refresh=False, redirect_stdout=False, vertical_overflow="crop"
            )

    def __enter__(self) -> "TrainingView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            try:
                self._live.update(self._draw(), refresh=True)
            finally:
                self._live.stop()  # gives the cursor back, whatever happened

    def step(
        self,
        *,
        step: int,
        progress: float,
        loss: float,
        tokens: int,
        epoch: float,
        seconds: float,
        tokens_per_second: float,
        **_: Any,
    ) -> None:
        """A step was taken; `progress` from 0 to 1, `loss` in nats per token."""
        trained = tokens / tokens_per_second  # seconds; before that came the plan
        newest = max(0.05, 2 / (step + 1))  # at first a mean of few, so that the steep beginning does not linger
        self._loss = loss if math.isnan(self._loss) else (1 - newest) * self._loss + newest * loss
        self._last = {
            "step": step, "progress": progress, "epoch": epoch, "speed": tokens_per_second,
            "left": trained * (1 - progress) / progress if progress and step >= 5 else math.nan,
        }  # fmt: skip
        self._curve.add(step, loss * self._bits)
        if self._live:
            if seconds - self._shown_at >= 0.25:
                self._shown_at = seconds
                self._live.update(self._draw(), refresh=True)
        elif progress >= 1 or (seconds - self._shown_at >= 10 and progress - self._shown_progress >= 0.02):
            self._shown_at, self._shown_progress = seconds, progress
            note(self._line())

    def evaluation(self, step: int, bits_per_byte: float) -> None:
        """The held-out text was looked at."""
        self._evaluations.append((step, bits_per_byte))

    def sample(self, prompt: str, text: str) -> None:
        """What the model now says after a prompt."""
        self._sample = shown(prompt).replace("·", " "), shown(text).replace("·", " ")

    def _line(self) -> str:
        last = self._last
        held = f"  held-out {self._evaluations[-1][1]:.3f} bits/byte" if self._evaluations else ""
        return (
            f"{last['progress']:4.0%}  step {last['step']:,}  {_clock(last['left'])} left  "
            f"{last['speed']:,.0f} tokens/s  loss {self._loss:.3f}{held}"
        )

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        if not self._last or not self._live:
            return Text("")
        columns, rows = self._live.console.size
        last = self._last
        figures = f"{last['progress']:4.0%}  {_clock(last['left'])} left  {last['speed']:,.0f} tokens/s"
        bar_width = max(10, min(100, columns - len(figures) - 4))
        filled = round(last["progress"] * bar_width)
        drawn = [
            Text.assemble(("━" * filled, "green"), ("─" * (bar_width - filled), "bright_black"), f" {figures}"),
            Text(f"step {last['step']:,}  epoch {last['epoch']:.1f}  loss {self._loss:.3f} nats/token"),
            Text(f"bits per byte: training {self._loss * self._bits:.3f}{self._held_out()}"),
        ]
        sample = self._wrapped_sample(columns, 4 if rows >= 20 else 2)
        # one row stays free for the cursor, one is the chart's axis, and the plan above need not leave the screen
        height = min(16, max(6, columns // 10), rows - len(drawn) - len(sample) - 2)
        if height >= 3 and columns >= 30:
            drawn += self._chart(min(columns - 1, 200), height)
        for line in drawn:
            line.no_wrap, line.overflow = True, "ellipsis"
        return Group(*(drawn + sample)[: max(1, rows - 1)])

    def _held_out(self) -> str:
        if not self._evaluations:
            return ""
        step, bits = min(self._evaluations, key=lambda found: found[1])
        return f"  held-out {self._evaluations[-1][1]:.3f}  best {bits:.3f} (step {step:,})"

    def _chart(self, columns: int, height: int) -> list[Any]:
        from rich.text import Text

        from llmcli import charts

        marks = [s for s, _ in self._evaluations], [bits for _, bits in self._evaluations]
        legend = f"bits per byte: ⠒⠒ training  {charts.MARK} held-out" if self._evaluations else "bits per byte"
        lines = charts.curve([self._curve.points()], columns, height, marks=marks, settle=charts.SETTLE, legend=legend)
        drawn = []
        for line in lines[:-1]:
            label, rest = line.split("│", 1)
            text = Text.assemble(label, "│", (rest, "cyan"))
            text.highlight_regex(charts.MARK, "bold yellow")
            drawn.append(text)
        return [*drawn, *(Text(line) for line in lines[-1:])]

    def _wrapped_sample(self, columns: int, most: int) -> list[Any]:
        """The sample in at most `most` lines of the terminal."""
        from rich.text import Text

        if not self._sample or not self._live:
            return []
        prompt, text = self._sample
        whole = Text.assemble((prompt, "bold"), ("│", "bright_black"), (text, "italic"))
        lines = list(whole.wrap(self._live.console, columns - 1, overflow="fold"))
        if len(lines) > most:
            lines = lines[:most]
            lines[-1].truncate(columns - 2)
            lines[-1].append("…")
        return lines


class _Thinned:
    """The points of a curve that grows: means of equal runs of steps, between MOST / 2 and MOST of them."""

    MOST = 240

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._width = 1  # steps in a point

    def add(self, step: int, value: float) -> None:
        if not self._counts or self._counts[-1] == self._width:
            if len(self._ends) == self.MOST:  # pairs become one
                self._ends = self._ends[1::2]
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._counts = [a + b for a, b in zip(self._counts[::2], self._counts[1::2], strict=True)]
                self._width *= 2
            self._ends.append(step)
            self._sums.append(0.0)
            self._counts.append(0)
        self._ends[-1] = step
        self._sums[-1] += value
        self._counts[-1] += 1

    def points(self) -> tuple[list[int], list[float]]:
        """(last step of each, mean of each)."""
        return self._ends, [total / count for total, count in zip(self._sums, self._counts, strict=True)]


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
