"""How things look; the only room that knows rich. Results go to stdout, everything else to stderr.

Whatever the program says goes out here, and what comes from outside (names of files and tensors, metadata, tokens) can
command no terminal and break no line: `inline` marks it, in a terminal and in a pipe. Two things keep their bytes where
a program reads them: the text that a model wrote (`verbatim`), and JSON, whose escapes stand for the same characters.

rich is imported when something is drawn with it, so that a plain answer starts at once.
"""

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmcli import units
from llmcli.cli import charts

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


def paragraph(text: str, indent: int = 0) -> None:
    """Prose on stdout: wrapped in a terminal, one line where a program reads."""
    for line in _fitted(inline(text), sys.stdout, indent, indent):
        result(line, raw=True)


def caption(text: str) -> None:
    """What the figure above means, dim, in a terminal; nothing where a program reads, or if quiet."""
    if _quiet or not sys.stdout.isatty():
        return
    dim, plain = ("\x1b[2m", "\x1b[0m") if colours(sys.stdout) else ("", "")
    for line in _fitted(inline(text), sys.stdout):
        result(f"{dim}{line}{plain}", raw=True)


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
    """Something that must be known, on stderr, though quiet; wrapped in a terminal."""
    for line in _fitted(inline(text), sys.stderr):
        print(line, file=sys.stderr, flush=True)


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
    """The one line of an error, on stderr; wrapped in a terminal."""
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"
    red, plain = ("\x1b[31m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    for shown in _fitted(f"error: {inline(text)}", sys.stderr):
        print(f"{red}error:{plain}{shown[6:]}" if shown.startswith("error:") else shown, file=sys.stderr, flush=True)


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


def cut(text: str, columns: int) -> str:
    """Text in a number of columns at most; its end is cut where it is longer.

    >>> [cut("apple", 5), cut("リンゴを", 5)]
    ['apple', 'リン…']
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= columns:
        return text
    return set_cell_size(text, columns - 1).rstrip() + "…" if columns > 0 else ""


def one_line(text: str, columns: int) -> str:
    """Text on one line, as `shown` but with its spaces, its beginning cut where it is longer than `columns`; no text
    where there is no column.

    >>> [one_line("I like\\n to eat", columns) for columns in (7, 1, 0)]
    ['…to eat', '…', '']
    """
    from rich.cells import cell_len

    text = shown(text).replace("·", " ")
    if cell_len(text) <= columns:
        return text
    start, left = len(text), columns - 1  # columns left before text[start:]
    while start > 0 and (size := cell_len(text[start - 1])) <= left:
        start, left = start - 1, left - size
    return f"…{text[start:].lstrip()}" if columns > 0 else ""


def colours(stream: Any) -> bool:
    """Whether a stream is a terminal that should get colours."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def tint(text: str, probability: float) -> str:
    """Text on a background from red (unlikely) over yellow to green (likely); plain where colours are off."""
    return _on(_TINTS[sum(probability >= limit for limit in _LIKELY)], text)


_LIKELY = (0.02, 0.1, 0.3, 0.6, 0.9)
_TINTS = (88, 130, 136, 100, 64, 28)  # of the 256 colours


def tint_key() -> None:
    """What the backgrounds of `tint` mean, on stderr, where somebody saw them."""
    if sys.stdout.isatty() and colours(sys.stdout) and colours(sys.stderr) and not _quiet:
        names = ("<2%", *(f"{100 * low:.0f}-{high:.0%}" for low, high in itertools.pairwise(_LIKELY)), "≥90%")
        key = "".join(_on(colour, f" {name} ") for name, colour in zip(names, _TINTS, strict=True))
        print(f"probability of each token: {key}", file=sys.stderr, flush=True)


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


# ---- prose in the columns of a terminal


def width(stream: Any = None) -> int:
    """Columns of the terminal that a stream (by default stdout) is, 80 where there is none; $COLUMNS overrides it."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    for place in (sys.stdout if stream is None else stream, sys.stdin, sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # no terminal, or no file at all
            if columns := os.get_terminal_size(place.fileno()).columns:
                return columns
    return 80


def wrapped(text: str, columns: int, indent: int = 0, hanging: int = 0) -> list[str]:
    """Text as lines of at most `columns` columns, the first indented by `indent`, the others by `hanging`.

    Lines are broken between words, and between characters where a script has no spaces. What must not be broken stands
    on a line of its own where it is longer than a line, so that it can be copied: a word, a path, a command to type.

    >>> wrapped("It was still improving; more time would help: llm train a.txt --time 10m", 30)
    ['It was still improving; more', 'time would help:', 'llm train a.txt --time 10m']
    >>> wrapped("私は毎朝リンゴを食べます。", 12)
    ['私は毎朝リン', 'ゴを食べま', 'す。']
    """
    from rich.cells import cell_len

    lines, line, used, begun = [], " " * indent, indent, False
    for space, unit in _units(text):
        size = cell_len(unit)
        if begun and used + len(space) + size > columns:
            lines.append(line)
            line, used, begun = " " * hanging, hanging, False
        if begun or not lines:
            line, used = line + space, used + len(space)
        line, used, begun = line + unit, used + size, True
    return [*lines, line] if begun else [*lines, ""]


# command lines in our sentences: after a colon, up to the end of the clause
_COMMAND = re.compile(
    r"(?<=: )(?:bzip2|curl|hf|iconv|jq|llm|mkdir|ollama|pandoc|pdftotext|pip|tar|tesseract|unzip|xz|zstd) "
    r".+?(?:[;,)](?=\s)|$)"
)
_CLOSING = frozenset("、。，．・：；？！」』）］｝〉》】〕…ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々")  # begin no line
_OPENING = frozenset("「『（［｛〈《【〔")  # end no line


def _units(text: str) -> Iterator[tuple[str, str]]:
    """What stays in one piece, in order, each after the white space before it."""
    position = 0
    for command in [*_COMMAND.finditer(text), None]:
        for word in re.finditer(r"(\s*)(\S+)", text[position : command.start() if command else len(text)]):
            space = word[1]
            for unit in _breakable(word[2]):
                yield space, unit
                space = ""
        if command:
            yield " ", command[0]
            position = command.end()


def _breakable(word: str) -> list[str]:
    """A word in the parts between which a line may end: at wide characters, though not before punctuation that closes
    and not after punctuation that opens."""
    if word.isascii():
        return [word]
    from unicodedata import combining, east_asian_width

    units, base = [word[0]], word[0]  # the character before, without what is combined with it
    for before, character in itertools.pairwise(word):
        base = base if combining(before) else before
        wide = any(east_asian_width(c) in "WF" for c in (base, character))
        joined = combining(character) or "\u200d" in (before, character) or "\ufe00" <= character <= "\ufe0f"
        if wide and not joined and character not in _CLOSING and base not in _OPENING:
            units.append(character)
        else:
            units[-1] += character
    return units


def _fitted(text: str, stream: Any, indent: int = 0, hanging: int = 0) -> list[str]:
    """The lines of a text without line ends as a stream shows them: wrapped where it is a terminal."""
    columns = width(stream) if stream.isatty() else math.inf
    if 2 * len(text) + indent <= columns:  # it fits, however wide its characters are
        return [" " * indent + text]
    return wrapped(text, int(columns), indent, hanging)


# ---- drawn with rich


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
    """A table: drawn in a terminal, tab-separated under a line of its column names where a program reads. `numbers` are
    columns to align right, which are never broken; what stands first in row i of a `striped` one has the colour of
    stripe(..., i). In a terminal too narrow for it, each row is a list of its cells."""
    stream = sys.stderr if to_stderr else sys.stdout
    if to_stderr and _quiet:
        return
    if not stream.isatty():
        for row in (columns, *rows):
            _row(row, stream)
        stream.flush()
        return
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[inline(cell) for cell in row] for row in rows]
    widest = [max(cell_len(row[i]) for row in [[*map(inline, columns)], *cells]) for i in range(len(columns))]
    least = sum(size if i in numbers else min(size, _NARROWEST) for i, size in enumerate(widest)) + 3 * len(columns)
    if numbers and least > width(stream):
        for row in cells:
            named = [(name, cell) for name, cell in zip(columns, row, strict=True) if cell]
            for line in [*pair_lines(named, stream), ""]:
                print(line, file=stream, flush=True)
        return
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        drawn.add_column(
            inline(name), justify="right" if i in numbers else "left", overflow="fold", no_wrap=i in numbers
        )
    for i, row in enumerate(cells):
        style = f"color(255) on color({STRIPES[i % len(STRIPES)]})" if striped else ""
        drawn.add_row(Text(row[0], style), *map(Text, row[1:]))
    _console(stream).print(drawn)


_NARROWEST = 12  # columns into which a column of text is folded, rather than that no table is drawn


def _row(cells: Iterable[str], stream: Any) -> None:
    """Cells on a line, tab-separated, where a program reads."""
    print("\t".join(map(inline, cells)).rstrip("\t"), file=stream, flush=True)


def chances(what: str, rows: Sequence[tuple[str, float]]) -> None:
    """Names with their probabilities, as bars in a terminal."""
    from rich.cells import cell_len

    shown = [(cut(name, max(12, width() // 3)), chance) for name, chance in rows] if sys.stdout.isatty() else rows
    room = min(60, max(8, width() - 22 - max(map(cell_len, [what, *(name for name, _ in shown)]))))
    table(
        (what, "probability", ""),
        [(name, units.probability(chance), bar(chance, room)) for name, chance in shown],
        numbers=(1,),
    )


def bar(share: float, columns: int) -> str:
    """A bar in a terminal, nothing where a program reads."""

    return charts.bar(share, columns) if sys.stdout.isatty() else ""


def heading(text: str) -> None:
    """A line above a part of a result."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if colours(sys.stdout) else ("", "")
    result()
    for line in _fitted(inline(text), sys.stdout):
        result(f"{bold}{line}{plain}", raw=True)


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
    """Names and what they stand for, under each other; long values go on under their beginning in a terminal."""
    lines = pair_lines(rows, sys.stdout)
    for line in lines:
        result(line)


_VALUE = 24  # columns that a value needs to stand beside the longest name


def pair_lines(rows: Iterable[tuple[str, str]], stream: Any) -> list[str]:
    """The lines of `pairs` as a stream shows them."""
    from rich.cells import cell_len

    rows = [(inline(name), inline(value)) for name, value in rows]
    margin = max((cell_len(name) for name, _ in rows), default=0) + 4
    hanging = margin if margin + _VALUE <= width(stream) else 4
    return [
        line
        for name, value in rows
        for line in _fitted(f"  {name}{' ' * (margin - 2 - cell_len(name))}{value}", stream, 0, hanging)
    ]


def tree(rows: Sequence[tuple[int, str, str, str]]) -> None:
    """Rows of (depth, name, what, figures) as a tree whose columns stand under each other; in a narrow terminal without
    `what`, and with names cut."""
    from rich.cells import cell_len

    lines = []
    for i, (depth, name, what, figures) in enumerate(rows):
        rails = ""
        for level in range(depth + 1):
            later = next((d for d, *_ in rows[i + 1 :] if d <= level), -1) == level
            rails += ("├─ " if later else "└─ ") if level == depth else ("│  " if later else "   ")
        lines.append((rails + inline(name)[:80], inline(what), f"{inline(figures):>18}"))
    left, middle, right = (max((cell_len(line[i]) for line in lines), default=0) for i in range(3))
    columns = width() if sys.stdout.isatty() else math.inf
    if left + middle + right + 4 > columns:
        lines = [(name, "", figures.strip()) for name, _, figures in lines]
        middle, right = 0, max(len(figures) for _, _, figures in lines)
        left = min(left, max(8, int(columns) - right - 3))
        lines = [(cut(name, left), "", f"{figures:>{right}}") for name, _, figures in lines]
    for name, what, figures in lines:
        gap = "  " if middle else ""
        result(f"{name}{' ' * (left - cell_len(name))}{gap}{what:>{middle}}  {figures}".rstrip())


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
        """The held-out text was evaluated: an interim figure, mostly of a part of it."""
        self._evaluations.append((step, bits_per_byte))

    def sample(self, prompt: str, text: str) -> None:
        """What the model now says after a prompt."""
        self._sample = shown(prompt).replace("·", " "), shown(text).replace("·", " ")

    def _line(self) -> str:

        last = self._last
        held = ""
        if self._evaluations:
            held = f"  held-out (interim) {units.bits_per_byte(self._evaluations[-1][1])} bits/byte"
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
            Text(f"bits per byte: training {units.bits_per_byte(self._loss * self._bits)}{self._held_out()}"),
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
        step, best = min(self._evaluations, key=lambda found: found[1])
        now = units.bits_per_byte(self._evaluations[-1][1])
        return f"  held-out (interim) {now}  best {units.bits_per_byte(best)} (step {step:,})"

    def _chart(self, columns: int, height: int) -> list[Any]:
        from rich.text import Text

        marks = [s for s, _ in self._evaluations], [bits for _, bits in self._evaluations]
        legend = "bits per byte"
        if self._evaluations:
            legend += f": ⠒⠒ training  {charts.MARK} held-out (interim)"
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
