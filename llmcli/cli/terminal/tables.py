"""Tables, trees and lists: drawn in a terminal, plain lines with tabs for a program."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from llmcli.cli.terminal import console
from llmcli.cli.terminal.safe_text import visible_line
from llmcli.cli.terminal.text_layout import fit, pad, terminal_width, text_width

GAP = 3  # spaces between two columns
MIN_GAP = 2
MIN_TEXT_COLUMN = 12  # minimum width of a folded text column
MIN_VALUE_COLUMN = 24  # with less space, the next lines of a value begin below the name
MAX_TREE_NAME = 80  # characters
FIGURES_WIDTH = 18  # minimum width of the figures of a tree, unless the terminal is narrow


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    to_stderr: bool = False,
) -> None:
    """Print a table: drawn in a terminal, tab-separated for a program. The columns `numbers` are
    right-aligned and never folded. In a narrow terminal, text is folded, or each row becomes a list of its
    cells."""
    stream = sys.stderr if to_stderr else sys.stdout
    if to_stderr and console.settings.quiet:
        return
    if not stream.isatty():
        for row in (columns, *rows):
            tab_separated(row, stream)
        stream.flush()
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = [visible_line(name) for name in columns]
    cells = [[visible_line(cell) for cell in row] for row in rows]
    widths = [max(text_width(row[i]) for row in [names, *cells]) for i in range(len(names))]
    folded = [width if i in numbers else min(width, MIN_TEXT_COLUMN) for i, width in enumerate(widths)]
    if numbers and sum(folded) + MIN_GAP * len(names) > terminal_width(stream):
        for row in cells:
            pairs([(name, cell) for name, cell in zip(names, row, strict=True) if cell], to_stderr=to_stderr)
            console.write_line("", stream)
        return
    is_tight = sum(widths) + GAP * len(names) > terminal_width(stream)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0) if is_tight else (0, 1))
    for i, name in enumerate(names):
        drawn.add_column(
            name, justify="right" if i in numbers else "left", overflow="fold", no_wrap=i in numbers
        )
    for row in cells:
        drawn.add_row(*map(Text, row))
    console.draw(drawn, stream)


def tab_separated(cells: Iterable[str], stream: TextIO | None = None) -> None:
    """Print cells on one line, for a program."""
    console.write_line("\t".join(map(visible_line, cells)).rstrip("\t"), stream or sys.stdout)


def pairs(rows: Iterable[tuple[str, str]], *, to_stderr: bool = False) -> None:
    """Print (name, value) pairs, one below the other; in a terminal long values are wrapped."""
    stream = sys.stderr if to_stderr else sys.stdout
    rows = [(visible_line(name), visible_line(value)) for name, value in rows]
    margin = max((text_width(name) for name, _ in rows), default=0) + 4
    hanging = margin if margin + MIN_VALUE_COLUMN <= terminal_width(stream) else 4
    for name, value in rows:
        for line in fit(f"  {name}{' ' * (margin - 2 - text_width(name))}{value}", stream, 0, hanging):
            console.write_line(line, stream)


def labeled(rows: Iterable[tuple[str, str]], max_label: int) -> None:
    """Print (label, line) pairs with labels padded to one width of at most `max_label` columns."""
    rows = [(visible_line(label), line) for label, line in rows]
    margin = min(max_label, max((text_width(label) for label, _ in rows), default=0))
    for label, line in rows:
        console.result(f"{pad(label, margin)} {line}".rstrip())


def tree(rows: Sequence[tuple[int, str, str, str]]) -> None:
    """Print rows of (depth, name, detail, figures) as a tree; in a narrow terminal, with short names and
    without details."""
    names = [
        branches + visible_line(row[1])[:MAX_TREE_NAME]
        for branches, row in zip(_branches(rows), rows, strict=True)
    ]
    details = [visible_line(row[2]) for row in rows]
    figures = [visible_line(row[3]) for row in rows]
    left, middle, right = (max(map(text_width, column), default=0) for column in (names, details, figures))
    columns = terminal_width() if sys.stdout.isatty() else math.inf
    if left + middle + max(right, FIGURES_WIDTH) + 4 > columns:
        middle = 0
        left = min(left, max(8, int(columns) - right - 3))
    else:
        right = FIGURES_WIDTH
    for name, detail, figure in zip(names, details, figures, strict=True):
        shown = f"  {detail:>{middle}}" if middle else ""
        console.result(f"{pad(name, left)}{shown}  {figure:>{right}}".rstrip())


def _branches(rows: Sequence[tuple[int, str, str, str]]) -> list[str]:
    """Draw the lines that connect each row of a tree with its parent and siblings."""
    branches = []
    siblings = set[int]()  # levels on which another row follows
    for depth, *_ in reversed(rows):
        line = "".join("│  " if level in siblings else "   " for level in range(depth))
        branches.append(line + ("├─ " if depth in siblings else "└─ "))
        siblings = {level for level in siblings if level < depth} | {depth}
    return branches[::-1]
