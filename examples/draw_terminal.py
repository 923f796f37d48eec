"""Draw the pictures of both READMEs: run commands in a terminal, and write what it shows as SVG, light and dark.

    python examples/draw_terminal.py

It takes a minute, and needs Linux or macOS. All but the run itself is a function of the bytes that the terminal
received, so the same recording always gives the same picture.
"""

import os
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

EXAMPLES = Path(__file__).resolve().parent
PICTURES = {  # file -> (command, how the last row of its output that is shown begins; None: all rows are shown)
    "first-picture": (
        ("llm train examples/food.txt", "saved "),
        ('llm generate "I like to eat" --next 5', " (unexplored)"),
    ),
    "first-picture-ja": (
        ("llm train examples/asagohan.txt", "saved "),
        ('llm generate "私は毎朝" --next 5', " (unexplored)"),
    ),
}
COLUMNS, ROWS = 80, 40
CELL, LINE, FONT, MARGIN = (
    8.4,
    20,
    14,
    18,
)  # pixels: width of a column, height of a row, font size, outer margin
FAMILY = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


class Theme(NamedTuple):
    """The colours of a terminal."""

    background: str
    foreground: str
    faint: str
    border: str
    palette: tuple[str, ...]  # the 16 ANSI colours, from black to bright white


LIGHT = Theme(  # both are the colours of GitHub's themes
    "#ffffff", "#1f2328", "#59636e", "#d1d9e0",
    ("#24292f", "#cf222e", "#116329", "#4d2d00", "#0969da", "#8250df", "#1b7c83", "#6e7781",
     "#57606a", "#a40e26", "#1a7f37", "#633c01", "#218bff", "#a475f9", "#3192aa", "#8c959f"),
)  # fmt: skip
DARK = Theme(
    "#0d1117", "#e6edf3", "#9198a1", "#3d444d",
    ("#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
     "#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff"),
)  # fmt: skip


class Style(NamedTuple):
    """How a character is shown. A colour is an index into the 256 colours or "#rrggbb"; None is the terminal's own."""

    foreground: int | str | None = None
    background: int | str | None = None
    bold: bool = False
    dim: bool = False
    italic: bool = False


class Cell(NamedTuple):
    """A cell of the screen. A wide character is followed by a cell without text."""

    text: str
    style: Style


BLANK = Cell(" ", Style())
Row = list[Cell]


# ---- bytes that a terminal received -> rows of its screen


def screen(received: str, columns: int = COLUMNS) -> list[Row]:
    """The rows of a screen that is as high as necessary, without blank rows at both ends.

    >>> ["".join(cell.text for cell in row) for row in screen("one\\r\\ntwo\\x1b[1A\\r\\x1b[2KONE\\r\\n")]
    ['ONE', 'two']
    """
    terminal = _Screen(columns)
    for parameters, command, character in _SEQUENCE.findall(received):
        if character:
            terminal.write(character)
        else:
            terminal.execute(command, parameters)
    rows = [_without_trailing_blanks(row) for row in terminal.rows]
    while rows and not rows[-1]:
        rows.pop()
    while rows and not rows[0]:
        rows.pop(0)
    return rows


_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|([^\x1b])")


class _Screen:
    """The rows, the cursor and the present style of a terminal (the part of ECMA-48 that rich uses)."""

    def __init__(self, columns: int) -> None:
        self.rows: list[Row] = [[]]
        self._columns = columns
        self._x = self._y = 0
        self._style = Style()

    def write(self, character: str) -> None:
        width = _width(character)
        if character == "\r":
            self._x = 0
        elif character == "\n":
            self._y += 1
        elif width:
            if self._x + width > self._columns:
                self._y, self._x = self._y + 1, 0
            self._extend(self._x + width)
            cells = [Cell(character, self._style), *[Cell("", self._style)] * (width - 1)]
            self.rows[self._y][self._x : self._x + width] = cells
            self._x += width
        elif 0 < self._x <= len(self.rows[self._y]):  # a combining character
            row, before = self.rows[self._y], self._x - 1
            row[before] = row[before]._replace(text=row[before].text + character)
        self._extend(0)

    def execute(self, command: str, parameters: str) -> None:
        """An escape sequence by its final letter: styles, cursor movements, erasing; others are ignored."""
        count = int(parameters) if parameters.isdigit() else 1
        if command == "m":
            self._style = _restyled(self._style, [int(number or 0) for number in parameters.split(";")])
        elif command == "A":
            self._y = max(0, self._y - count)
        elif command == "B":
            self._y += count
        elif command == "C":
            self._x = min(self._columns - 1, self._x + count)
        elif command == "D":
            self._x = max(0, self._x - count)
        elif command == "G":
            self._x = min(self._columns, count) - 1
        elif command == "K" or (command == "J" and parameters in ("", "0")):
            self._erase_in_row(parameters)
            if command == "J":
                del self.rows[self._y + 1 :]
        self._extend(0)

    def _erase_in_row(self, parameters: str) -> None:
        """Erase from the cursor on ("" or 0), up to the cursor (1), or the whole row (2)."""
        row = self.rows[self._y]
        if parameters == "1":
            row[: self._x + 1] = [BLANK] * (self._x + 1)
        else:
            del row[0 if parameters == "2" else self._x :]

    def _extend(self, columns: int) -> None:
        """Add rows up to the cursor's, and cells to it up to `columns`."""
        self.rows.extend([] for _ in range(self._y + 1 - len(self.rows)))
        self.rows[self._y].extend([BLANK] * (columns - len(self.rows[self._y])))


def _without_trailing_blanks(row: Row) -> Row:
    visible = [
        i for i, cell in enumerate(row) if cell.text.strip(" \u2800") or cell.style.background is not None
    ]
    return row[: visible[-1] + 1] if visible else []


def _width(character: str) -> int:
    """Columns that a character takes.

    >>> [_width(c) for c in ("a", "語", "\u0301")]
    [1, 2, 0]
    """
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _restyled(style: Style, codes: Sequence[int]) -> Style:
    """A style after an SGR sequence (ECMA-48, 8.3.117)."""
    rest = iter(codes)
    for code in rest:
        if code == 0:
            style = Style()
        elif code in (1, 2, 3):
            style = style._replace(**{("bold", "dim", "italic")[code - 1]: True})
        elif code == 22:
            style = style._replace(bold=False, dim=False)
        elif code == 23:
            style = style._replace(italic=False)
        elif code in (38, 48):
            kind = next(rest, 0)
            colour = next(rest, 0) if kind == 5 else "#" + "".join(f"{next(rest, 0):02x}" for _ in range(3))
            style = style._replace(foreground=colour) if code == 38 else style._replace(background=colour)
        elif code == 39 or 30 <= code < 38 or 90 <= code < 98:
            style = style._replace(foreground=None if code == 39 else code - 30 if code < 38 else code - 82)
        elif code == 49 or 40 <= code < 48 or 100 <= code < 108:
            style = style._replace(background=None if code == 49 else code - 40 if code < 48 else code - 92)
    return style


# ---- rows of a screen -> SVG


def svg(rows: Sequence[Row], theme: Theme, title: str) -> str:
    """A picture of a screen, as wide as its longest row.

    Letters are text elements. Bars, lines and braille dots are shapes, since fonts show them with gaps or not at all.
    No font is loaded: each run of letters is stretched to its columns, whatever the font.
    """
    width = max((len(row) for row in rows), default=0) * CELL + 2 * MARGIN
    height = len(rows) * LINE + 2 * MARGIN
    text = "\n".join("".join(cell.text for cell in row) for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-labelledby="title text">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="text">{escape(text)}</desc>\n'
        f'<rect x="0.5" y="0.5" width="{_n(width - 1)}" height="{_n(height - 1)}" rx="8" fill="{theme.background}" '
        f'stroke="{theme.border}"/>\n'
        f'<g font-family="{FAMILY}" font-size="{FONT}" fill="{theme.foreground}">\n'
        + "".join(
            f"{part}\n" for y, row in enumerate(rows) for part in _row_elements(row, MARGIN + y * LINE, theme)
        )
        + "</g>\n</svg>\n"
    )


def _row_elements(row: Row, top: float, theme: Theme) -> Iterable[str]:
    """The SVG elements of a row whose upper edge is at `top`."""
    for start, end in _runs(row, lambda cell: cell.style.background):
        if row[start].style.background is not None:
            colour = _colour(row[start].style.background, theme)
            yield _rectangle(MARGIN + start * CELL, top, (end - start) * CELL, LINE, colour)
    for start, end in _runs(row, lambda cell: (cell.style._replace(background=None), _shape(cell.text))):
        cells, left = row[start:end], MARGIN + start * CELL
        colour, shape = _foreground(cells[0].style, theme), _shape(cells[0].text)
        if shape == "bar":
            filled = sum((0x2590 - ord(cell.text)) / 8 for cell in cells)
            yield _rectangle(left, top + 3, filled * CELL, LINE - 6, colour)
        elif shape == "horizontal":
            thickness = 3 if cells[0].text == "━" else 1
            yield _rectangle(left, top + (LINE - thickness) / 2, len(cells) * CELL, thickness, colour)
        elif shape == "vertical":
            for i in range(len(cells)):
                yield _rectangle(left + (i + 0.5) * CELL - 0.5, top, 1, LINE, colour)
        elif shape == "dots":
            points = "".join(
                _dots(ord(cell.text) - 0x2800, left + i * CELL, top) for i, cell in enumerate(cells)
            )
            if points:
                yield f'<path d="{points}" stroke="{colour}" stroke-width="2.2" stroke-linecap="round"/>'
        else:
            yield from _letters(cells, left, top, colour, theme)


def _letters(cells: Row, left: float, top: float, colour: str, theme: Theme) -> Iterable[str]:
    """Text elements, one for each stretch without wide gaps, so that no font can shift a column."""
    text = "".join(cell.text or "\0" for cell in cells)  # \0: the second half of a wide character
    style = cells[0].style
    attributes = "".join(
        f' {name}="{value}"'
        for name, value, is_set in (
            ("fill", colour, colour != theme.foreground), ("font-weight", "bold", style.bold),
            ("font-style", "italic", style.italic),
        ) if is_set
    )  # fmt: skip
    for stretch in re.finditer(r"\S+(?: \S+)*", text):
        x, length = left + _columns(text[: stretch.start()]) * CELL, _columns(stretch[0]) * CELL
        yield (
            f'<text x="{_n(x)}" y="{_n(top + 0.72 * LINE)}" textLength="{_n(length)}" '
            f'lengthAdjust="spacingAndGlyphs"{attributes}>{escape(stretch[0].replace(chr(0), ""))}</text>'
        )


def _columns(text: str) -> int:
    """Columns of a text in which each wide character is followed by \\0."""
    return sum(character == "\0" or _width(character) > 0 for character in text)


def _runs(row: Row, key: Callable[[Cell], object]) -> Iterable[tuple[int, int]]:
    """(start, end) of each run of cells with equal keys."""
    start = 0
    for i in range(1, len(row) + 1):
        if i == len(row) or key(row[i]) != key(row[start]):
            yield start, i
            start = i


def _shape(text: str) -> str:
    """How a character is drawn: as a bar, a horizontal or vertical line, braille dots, or as a letter."""
    if "\u2588" <= text <= "\u258f":
        return "bar"
    if "\u2800" <= text <= "\u28ff":
        return "dots"
    return {"━": "horizontal", "─": "horizontal", "│": "vertical"}.get(text, "letters")


def _dots(pattern: int, left: float, top: float) -> str:
    """SVG path of the dots of a braille character, by the bits of its code point (Unicode 0x2800)."""
    positions = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # (column, row) of each bit
    return "".join(
        f"M{_n(left + (0.25 + 0.5 * x) * CELL)} {_n(top + (y + 0.5) * LINE / 4)}h0"
        for bit, (x, y) in enumerate(positions)
        if pattern >> bit & 1
    )


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{colour}"/>'


def _foreground(style: Style, theme: Theme) -> str:
    if style.foreground is None:
        return theme.faint if style.dim else theme.foreground
    return _colour(style.foreground, theme)


def _colour(colour: int | str | None, theme: Theme) -> str:
    """A colour as "#rrggbb": the theme's 16, or the cube and greys of xterm's 256 colours.

    >>> [_colour(n, LIGHT) for n in (1, 16, 64, 255)]
    ['#cf222e', '#000000', '#5f8700', '#eeeeee']
    """
    if colour is None or isinstance(colour, str):
        return colour or theme.foreground
    if colour < 16:
        return theme.palette[colour]
    if colour >= 232:
        return "#" + f"{8 + 10 * (colour - 232):02x}" * 3
    levels = [(colour - 16) // 36, (colour - 16) // 6 % 6, (colour - 16) % 6]
    return "#" + "".join(f"{55 + 40 * level if level else 0:02x}" for level in levels)


def _n(value: float) -> str:
    """A number without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ---- the run


def record(command: str, directory: Path) -> str:
    """What a terminal receives from a shell command. Raises CalledProcessError if the command fails."""
    import fcntl
    import pty
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    excluded = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "LLMCLI_MODEL")
    environment = {name: value for name, value in os.environ.items() if name not in excluded}
    process = subprocess.Popen(
        command, shell=True, cwd=directory, stdin=terminal, stdout=terminal, stderr=terminal,
        env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(terminal)
    received = b""
    while True:
        try:
            block = os.read(controller, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        received += block
    os.close(controller)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, received)
    return received.decode("utf-8")


def session(recordings: Iterable[tuple[str, str, str | None]]) -> list[Row]:
    """The rows of (command, what the terminal received, last row to show), each command after a shell prompt."""
    rows: list[Row] = []
    for command, received, last in recordings:
        rows += [[]] if rows else []
        rows += screen(f"\x1b[2m$\x1b[0m \x1b[1m{command}\x1b[0m") + cropped(screen(received), last)
    return rows


def cropped(rows: list[Row], last: str | None) -> list[Row]:
    """The rows up to the last one that begins with `last`; all if None.

    >>> ["".join(cell.text for cell in row) for row in cropped(screen("one\\r\\ntwo\\r\\nthree"), "tw")]
    ['one', 'two']
    """
    ends = [
        i + 1 for i, row in enumerate(rows) if last and "".join(cell.text for cell in row).startswith(last)
    ]
    return rows[: ends[-1]] if ends else rows


def main() -> None:
    """Run the commands of each picture in an empty directory and write it."""
    for picture, commands in PICTURES.items():
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "examples").symlink_to(EXAMPLES)
            rows = session([(command, record(command, directory), last) for command, last in commands])
        title = "In a terminal: " + ", then ".join(command for command, _ in commands)
        for suffix, theme in (("", LIGHT), ("-dark", DARK)):
            file = EXAMPLES / f"{picture}{suffix}.svg"
            file.write_text(svg(rows, theme, title), "utf-8")
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
