"""The addresses of a server's page; for a class, the code and a QR code."""

import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from llmcli.cli.terminal import console, styles
from llmcli.cli.terminal.text_layout import terminal_width

if TYPE_CHECKING:
    from llmcli.server.http.classroom import Classroom

BLOCKS = " ▄▀█"  # two modules, one above the other: none dark, the lower, the upper, both


def invite(before: str, after: str, urls: Sequence[str], classroom: "Classroom | None") -> None:
    """Print the addresses between two texts, then how a class joins."""
    console.warn(f"{before} {' and on this network at '.join(urls)}{after}")
    if classroom:
        console.warn(f"class code {classroom.code}, or open {classroom.link}")
        _draw(classroom.invitation["qr"])


def _draw(rows: list[str]) -> None:
    """Draw a QR code, black on white, if the terminal has colors and is wide enough."""
    is_seen = console.shows_progress() and styles.has_colors(sys.stderr)
    if is_seen and rows and len(rows[0]) <= terminal_width(sys.stderr):
        for pair in zip_longest(rows[::2], rows[1::2], fillvalue="0" * len(rows[0])):
            blocks = "".join(BLOCKS[int(upper + lower, 2)] for upper, lower in zip(*pair, strict=True))
            console.write_line(f"\x1b[38;5;16;48;5;231m{blocks}\x1b[0m", sys.stderr)
