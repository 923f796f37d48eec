"""Colors of the terminal, as strings with ANSI escape sequences. Plain text where colors are off.

Control characters in the text become visible marks first, so that untrusted text brings no escape sequences.
"""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from llmcli.cli.terminal.safe_text import visible

PROBABILITIES = (0.02, 0.1, 0.3, 0.6, 0.9)  # limits between the backgrounds of `by_probability`
PROBABILITY_COLORS = (88, 130, 136, 100, 64, 28)  # from red to green, of the 256 colors
SURPRISALS = (1, 3, 6, 10)  # bits, limits between the backgrounds of `by_surprisal`
SURPRISAL_COLORS = (0, 58, 136, 130, 88)  # none, then from yellow to red
ALTERNATING_COLORS = (24, 22, 54, 58, 88, 30, 94, 60)
BOLD, DIM, RED = "1", "2", "31"


def has_colors(stream: TextIO) -> bool:
    """Return whether output on a stream gets colors: in a terminal, unless $NO_COLOR is set or it is a dumb one."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    """Style text as BOLD, DIM or RED, if the stream has colors."""
    return f"\x1b[{style}m{visible(text)}\x1b[0m" if has_colors(stream) else visible(text)


def by_probability(text: str, probability: float) -> str:
    """Put text on a background from red (unlikely) through yellow to green (likely)."""
    return _on_background(PROBABILITY_COLORS[_interval(probability, PROBABILITIES)], text)


def probability_legend() -> str:
    """Show the backgrounds of `by_probability` with their ranges, on one line."""
    ranges = ("<2%", "2-10%", "10-30%", "30-60%", "60-90%", "≥90%")
    return "".join(by_probability(f" {text} ", low) for text, low in zip(ranges, (0, *PROBABILITIES), strict=True))


def by_surprisal(text: str, bits: float) -> str:
    """Put text on a background from none (expected) through yellow to red (a surprisal of many bits)."""
    interval = _interval(bits, SURPRISALS)
    return _on_background(SURPRISAL_COLORS[interval], text) if interval else visible(text)


def surprisal_legend() -> str:
    """Show the backgrounds of `by_surprisal` with their ranges, on one line."""
    ranges = ("below 1", "1 to 3", "3 to 6", "6 to 10", "10 or more")
    return "".join(by_surprisal(f" {text} ", bits) for text, bits in zip(ranges, (0, *SURPRISALS), strict=True))


def alternating(text: str, index: int) -> str:
    """Put text on the background of this index, so that neighbors are distinguishable."""
    return _on_background(ALTERNATING_COLORS[index % len(ALTERNATING_COLORS)], text)


def _interval(value: float, limits: Sequence[float]) -> int:
    """
    >>> [_interval(value, (1, 3)) for value in (0.5, 1, 7)]
    [0, 1, 2]
    """
    return sum(value >= limit for limit in limits)


def _on_background(color: int, text: str) -> str:
    """Put text for stdout on one of the 256 colors; the background ends at the end of a line."""
    text = visible(text)
    if not text or not has_colors(sys.stdout):
        return text
    start, end = f"\x1b[48;5;{color};38;5;255m", "\x1b[0m"
    return start + text.replace("\n", f"{end}\n{start}") + end
