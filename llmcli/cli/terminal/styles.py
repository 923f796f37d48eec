"""Colours of the terminal, as strings with ANSI escape sequences. Plain text where colours are off.

Control characters in the text become visible marks first, so that untrusted text brings no escape sequences.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from llmcli.cli.terminal.safe_text import visible

PROBABILITIES = (0.02, 0.1, 0.3, 0.6, 0.9)  # limits between the backgrounds of `by_probability`
PROBABILITY_COLOURS = (88, 130, 136, 100, 64, 28)  # from red to green, of the 256 colours
SURPRISALS = (1, 3, 6, 10)  # bits, limits between the backgrounds of `by_surprisal`
SURPRISAL_COLOURS = (0, 58, 136, 130, 88)  # none, then from yellow to red
ALTERNATING_COLOURS = (24, 22, 54, 58, 88, 30, 94, 60)
HIGHLIGHT_COLOUR = 24


def has_colours(stream: TextIO) -> bool:
    """Whether output on this stream gets colours: a terminal, unless $NO_COLOR is set or it is a dumb one."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def dim(text: str, stream: TextIO) -> str:
    """Faint text, if the stream has colours."""
    return _styled("2", text, stream)


def bold(text: str, stream: TextIO) -> str:
    """Bold text, if the stream has colours."""
    return _styled("1", text, stream)


def red(text: str, stream: TextIO) -> str:
    """Red text, if the stream has colours."""
    return _styled("31", text, stream)


def _styled(code: str, text: str, stream: TextIO) -> str:
    return f"\x1b[{code}m{visible(text)}\x1b[0m" if has_colours(stream) else visible(text)


def by_probability(text: str, probability: float) -> str:
    """Text on a background from red (unlikely) through yellow to green (likely)."""
    return _on_background(PROBABILITY_COLOURS[_interval(probability, PROBABILITIES)], text)


def probability_legend() -> str:
    """The backgrounds of `by_probability` with their ranges, on one line."""
    ranges = ("<2%", *(f"{100 * low:.0f}-{high:.0%}" for low, high in itertools.pairwise(PROBABILITIES)), "≥90%")
    return "".join(
        _on_background(colour, f" {text} ") for colour, text in zip(PROBABILITY_COLOURS, ranges, strict=True)
    )


def by_surprisal(text: str, bits: float) -> str:
    """Text on a background from none (expected) through yellow to red (a surprisal of many bits)."""
    interval = _interval(bits, SURPRISALS)
    return _on_background(SURPRISAL_COLOURS[interval], text) if interval else visible(text)


def surprisal_legend() -> str:
    """The backgrounds of `by_surprisal` with their ranges, on one line."""
    ranges = ("below 1", "1 to 3", "3 to 6", "6 to 10", "10 or more")
    return "".join(by_surprisal(f" {text} ", bits) for text, bits in zip(ranges, (0, *SURPRISALS), strict=True))


def alternating(text: str, index: int) -> str:
    """Text on the background of this index, so that neighbours are distinguishable."""
    return _on_background(alternating_colour(index), text)


def alternating_colour(index: int) -> int:
    """The background of `alternating`, of the 256 colours."""
    return ALTERNATING_COLOURS[index % len(ALTERNATING_COLOURS)]


def highlighted(text: str) -> str:
    """Text on a background, for a passage that matters."""
    return _on_background(HIGHLIGHT_COLOUR, text)


def _interval(value: float, limits: Sequence[float]) -> int:
    """
    >>> [_interval(value, (1, 3)) for value in (0.5, 1, 7)]
    [0, 1, 2]
    """
    return sum(value >= limit for limit in limits)


def _on_background(colour: int, text: str) -> str:
    """Text for stdout on one of the 256 colours; the background ends at the end of a line."""
    text = visible(text)
    if not text or not has_colours(sys.stdout):
        return text
    start, end = f"\x1b[48;5;{colour};38;5;255m", "\x1b[0m"
    return start + text.replace("\n", f"{end}\n{start}") + end
