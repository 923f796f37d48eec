"""Draw the README's picture: run its commands in a terminal, and write what the terminal shows as SVG, light and dark.

    python examples/draw_terminal.py

takes half a minute and needs Linux or macOS. Everything but the run itself is a function from what a terminal receives
to what a browser shows, so the same recording always gives the same picture.
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
COMMANDS = (  # and how the last row begins that is shown of each; None: all are
    ("llm train examples/food.txt", "saved "),
    ('llm generate "I like to eat" --next 5', None),
)
COLUMNS, ROWS = 80, 40
CELL, LINE, FONT, MARGIN = 8.4, 20, 14, 18  # pixels: a column, a row, the letters, around everything
FAMILY = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


class Theme(NamedTuple):
    """The colours of a terminal."""

    paper: str
    ink: str
    faint: str
    edge: str
    colours: tuple[str, ...]  # the 16 of ANSI, from black to bright white


LIGHT = Theme(
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
    """How a character is shown. A colour is a number of the 256 or "#rrggbb"; None is the terminal's own."""

    ink: int | str | None = None
    paper: int | str | None = None
    bold: bool = False
    dim: bool = False
    italic: bool = False


class Cell(NamedTuple):
    """One place of the screen; after a wide character comes a cell of no character."""

    text: str
    style: Style


BLANK = Cell(" ", Style())
Row = list[Cell]


# ---- what a terminal receives -> what stands on its screen


def screen(received: str, columns: int = COLUMNS) -> list[Row]:
    """The rows of a screen that is as high as it needs to be, without blank rows at the ends.

    >>> ["".join(cell.text for cell in row) for row in screen("one\\r\\ntwo\\x1b[1A\\r\\x1b[2KONE\\r\\n")]
    ['ONE', 'two']
    """
    rows: list[Row] = [[]]
    y = x = 0
    style = Style()
    for codes, final, character in _SEQUENCE.findall(received):
        count = int(codes) if codes.isdigit() else 1
        if character == "\r":
            x = 0
        elif character == "\n":
            y += 1
        elif character and not _columns(character):  # joins the character before it
            if 0 < x <= len(rows[y]):
                rows[y][x - 1] = rows[y][x - 1]._replace(text=rows[y][x - 1].text + character)
        elif character:
            width = _columns(character)
            if x + width > columns:
                y, x = y + 1, 0
            _extend(rows, y, x + width)
            rows[y][x : x + width] = [Cell(character, style), *[Cell("", style)] * (width - 1)]
            x += width
        elif final == "m":
            style = _styled(style, [int(number or 0) for number in codes.split(";")])
        elif final == "A":
            y = max(0, y - count)
        elif final == "B":
            y += count
        elif final == "C":
            x = min(columns - 1, x + count)
        elif final == "D":
            x = max(0, x - count)
        elif final == "G":
            x = min(columns, count) - 1
        elif final == "K":
            _erase(rows[y], x, codes)
        elif final == "J" and codes in ("", "0"):
            _erase(rows[y], x, codes)
            del rows[y + 1 :]
        _extend(rows, y, 0)
    rows = [_trimmed(row) for row in rows]
    while rows and not rows[-1]:
        rows.pop()
    while rows and not rows[0]:
        rows.pop(0)
    return rows


_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|([^\x1b])")


def _erase(row: Row, x: int, codes: str) -> None:
    """From x on, up to x, or all of a row: 0 (or nothing), 1, 2."""
    if codes == "1":
        row[: x + 1] = [BLANK] * (x + 1)
    else:
        del row[0 if codes == "2" else x :]


def _extend(rows: list[Row], y: int, x: int) -> None:
    """Make room for row y, and in it for x cells."""
    rows.extend([] for _ in range(y + 1 - len(rows)))
    rows[y].extend([BLANK] * (x - len(rows[y])))


def _trimmed(row: Row) -> Row:
    """Without the blanks at its end."""
    seen = [i for i, cell in enumerate(row) if cell.text.strip(" \u2800") or cell.style.paper is not None]
    return row[: seen[-1] + 1] if seen else []


def _columns(character: str) -> int:
    """
    >>> [_columns(c) for c in ("a", "語", "\u0301")]
    [1, 2, 0]
    """
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _styled(style: Style, codes: Sequence[int]) -> Style:
    """A style after an SGR sequence (ECMA-48 8.3.117)."""
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
            style = style._replace(ink=colour) if code == 38 else style._replace(paper=colour)
        elif code == 39 or 30 <= code < 38 or 90 <= code < 98:
            style = style._replace(ink=None if code == 39 else code - 30 if code < 38 else code - 82)
        elif code == 49 or 40 <= code < 48 or 100 <= code < 108:
            style = style._replace(paper=None if code == 49 else code - 40 if code < 48 else code - 92)
    return style


# ---- what stands on a screen -> a picture


def svg(rows: Sequence[Row], theme: Theme, title: str) -> str:
    """A picture of a screen, just wide enough for its longest row.

    Letters are text. Bars, rules and the dots of a chart are drawn, since fonts draw them with gaps or not at all. No
    font is loaded: each run of letters is fitted to its columns, whatever font there is.
    """
    width = max((len(row) for row in rows), default=0) * CELL + 2 * MARGIN
    height = len(rows) * LINE + 2 * MARGIN
    text = "\n".join("".join(cell.text for cell in row) for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-labelledby="title text">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="text">{escape(text)}</desc>\n'
        f'<rect x="0.5" y="0.5" width="{_n(width - 1)}" height="{_n(height - 1)}" rx="8" fill="{theme.paper}" '
        f'stroke="{theme.edge}"/>\n'
        f'<g font-family="{FAMILY}" font-size="{FONT}" fill="{theme.ink}">\n'
        + "".join(f"{part}\n" for y, row in enumerate(rows) for part in _drawn(row, MARGIN + y * LINE, theme))
        + "</g>\n</svg>\n"
    )


def _drawn(row: Row, top: float, theme: Theme) -> Iterable[str]:
    """The elements of a row whose upper edge is `top`."""
    for start, end in _runs(row, lambda cell: cell.style.paper):
        if row[start].style.paper is not None:
            colour = _colour(row[start].style.paper, theme)
            yield _rectangle(MARGIN + start * CELL, top, (end - start) * CELL, LINE, colour)
    for start, end in _runs(row, lambda cell: (cell.style._replace(paper=None), _kind(cell.text))):
        cells, left = row[start:end], MARGIN + start * CELL
        colour, kind = _ink(cells[0].style, theme), _kind(cells[0].text)
        if kind == "bar":
            filled = sum((0x2590 - ord(cell.text)) / 8 for cell in cells)
            yield _rectangle(left, top + 3, filled * CELL, LINE - 6, colour)
        elif kind == "rule":
            thick = 3 if cells[0].text == "━" else 1
            yield _rectangle(left, top + (LINE - thick) / 2, len(cells) * CELL, thick, colour)
        elif kind == "edge":
            for i in range(len(cells)):
                yield _rectangle(left + (i + 0.5) * CELL - 0.5, top, 1, LINE, colour)
        elif kind == "dots":
            points = "".join(_dots(ord(cell.text) - 0x2800, left + i * CELL, top) for i, cell in enumerate(cells))
            if points:
                yield f'<path d="{points}" stroke="{colour}" stroke-width="2.2" stroke-linecap="round"/>'
        else:
            yield from _letters(cells, left, top, colour, theme)


def _letters(cells: Row, left: float, top: float, colour: str, theme: Theme) -> Iterable[str]:
    """Text, each stretch between wide gaps on its own, so that no font can shift a column."""
    text = "".join(cell.text or "\0" for cell in cells)  # a place for the second half of a wide character
    style = cells[0].style
    looks = "".join(
        f' {name}="{value}"'
        for name, value, on in (
            ("fill", colour, colour != theme.ink), ("font-weight", "bold", style.bold),
            ("font-style", "italic", style.italic),
        ) if on
    )  # fmt: skip
    for found in re.finditer(r"\S+(?: \S+)*", text):
        x, length = left + len(_placed(text[: found.start()])) * CELL, len(_placed(found[0])) * CELL
        yield (
            f'<text x="{_n(x)}" y="{_n(top + 0.72 * LINE)}" textLength="{_n(length)}" '
            f'lengthAdjust="spacingAndGlyphs"{looks}>{escape(found[0].replace(chr(0), ""))}</text>'
        )


def _placed(text: str) -> str:
    """Text without what joins the character before it: as many characters as columns."""
    return "".join(character for character in text if character == "\0" or _columns(character))


def _runs(row: Row, key: Callable[[Cell], object]) -> Iterable[tuple[int, int]]:
    """(start, end) of each run of cells of the same key."""
    start = 0
    for i in range(1, len(row) + 1):
        if i == len(row) or key(row[i]) != key(row[start]):
            yield start, i
            start = i


def _kind(text: str) -> str:
    """How a character is drawn: as a filled bar, a rule, an edge, the dots of Braille, or else as a letter."""
    if "\u2588" <= text <= "\u258f":
        return "bar"
    if "\u2800" <= text <= "\u28ff":
        return "dots"
    return {"━": "rule", "─": "rule", "│": "edge"}.get(text, "letters")


def _dots(pattern: int, left: float, top: float) -> str:
    """Path of the dots of a Braille character: bits 0 to 2 and 6 from above on the left, 3 to 5 and 7 on the right."""
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]
    return "".join(
        f"M{_n(left + (0.25 + 0.5 * x) * CELL)} {_n(top + (y + 0.5) * LINE / 4)}h0"
        for bit, (x, y) in enumerate(places)
        if pattern >> bit & 1
    )


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" fill="{colour}"/>'


def _ink(style: Style, theme: Theme) -> str:
    if style.ink is None:
        return theme.faint if style.dim else theme.ink
    return _colour(style.ink, theme)


def _colour(colour: int | str | None, theme: Theme) -> str:
    """As "#rrggbb": the theme's 16, then the cube and the greys of xterm's 256.

    >>> [_colour(n, LIGHT) for n in (1, 16, 64, 255)]
    ['#cf222e', '#000000', '#5f8700', '#eeeeee']
    """
    if colour is None or isinstance(colour, str):
        return colour or theme.ink
    if colour < 16:
        return theme.colours[colour]
    if colour >= 232:
        return "#" + f"{8 + 10 * (colour - 232):02x}" * 3
    levels = [(colour - 16) // 36, (colour - 16) // 6 % 6, (colour - 16) % 6]
    return "#" + "".join(f"{55 + 40 * level if level else 0:02x}" for level in levels)


def _n(value: float) -> str:
    """A number as short as it can be."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ---- the run


def record(command: str, directory: Path) -> str:
    """What a terminal receives when a command is typed into it. Raises CalledProcessError where it fails."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "LLMCLI_MODEL")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    process = subprocess.Popen(
        command, shell=True, cwd=directory, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(theirs)
    received = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        received += part
    os.close(ours)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command, received)
    return received.decode("utf-8")


def session(recordings: Iterable[tuple[str, str, str | None]]) -> list[Row]:
    """Commands and what the terminal received from them, one under the other, each behind a prompt. Where a row of the
    output begins with the third text, the rows after it are left out."""
    rows: list[Row] = []
    for command, received, last in recordings:
        rows += [[]] if rows else []
        rows += screen(f"\x1b[2m$\x1b[0m \x1b[1m{command}\x1b[0m") + cropped(screen(received), last)
    return rows


def cropped(rows: list[Row], last: str | None) -> list[Row]:
    """
    >>> ["".join(cell.text for cell in row) for row in cropped(screen("one\\r\\ntwo\\r\\nthree"), "tw")]
    ['one', 'two']
    """
    ends = [i + 1 for i, row in enumerate(rows) if last and "".join(cell.text for cell in row).startswith(last)]
    return rows[: ends[-1]] if ends else rows


def main() -> None:
    """Run the commands in an empty directory and write the pictures."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "examples").symlink_to(EXAMPLES)
        rows = session([(command, record(command, Path(place)), last) for command, last in COMMANDS])
    title = "In a terminal: " + ", then ".join(command for command, _ in COMMANDS)
    for name, theme in (("first-picture.svg", LIGHT), ("first-picture-dark.svg", DARK)):
        (EXAMPLES / name).write_text(svg(rows, theme, title), "utf-8")
        print(f"wrote {EXAMPLES / name}")


if __name__ == "__main__":
    main()
