"""Terminal colors, as ANSI escape sequences. Escape sequences in untrusted text are made visible first."""

import os
import sys
from typing import TextIO

from llmcli.cli.terminal.safe_text import visible

# backgrounds: (lowest value, one of the 256 colors or None, label), lowest first
PROBABILITIES = (
    (0.0, 88, "<2%"),
    (0.02, 130, "2-10%"),
    (0.1, 136, "10-30%"),
    (0.3, 100, "30-60%"),
    (0.6, 64, "60-90%"),
    (0.9, 28, "≥90%"),
)
SURPRISALS = (  # in bits
    (0, None, "below 1"),
    (1, 58, "1 to 3"),
    (3, 136, "3 to 6"),
    (6, 130, "6 to 10"),
    (10, 88, "10 or more"),
)
Scale = tuple[tuple[float, int | None, str], ...]
ALTERNATING_COLORS = (24, 22, 54, 58, 88, 30, 94, 60)
BOLD = "1"
DIM = "2"
RED = "31"


def has_colors(stream: TextIO) -> bool:
    """Return whether output on a stream gets colors: in a terminal that is not dumb, unless $NO_COLOR is
    set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    """Style text as BOLD, DIM or RED, if the stream has colors."""
    return f"\x1b[{style}m{visible(text)}\x1b[0m" if has_colors(stream) else visible(text)


def by_value(text: str, value: float, scale: Scale) -> str:
    """Put text on the background for a value on the scale PROBABILITIES or SURPRISALS."""
    color = next((color for lowest, color, _ in reversed(scale) if value >= lowest), scale[0][1])
    return _on_background(color, text)


def legend(scale: Scale) -> str:
    """Show the backgrounds of a scale with their ranges, on one line."""
    return "".join(by_value(f" {label} ", lowest, scale) for lowest, _, label in scale)


def alternating(text: str, index: int) -> str:
    """Put text on a background chosen by index, so that neighbors are distinguishable."""
    return _on_background(ALTERNATING_COLORS[index % len(ALTERNATING_COLORS)], text)


def _on_background(color: int | None, text: str) -> str:
    """Put text for stdout on a background, one of the 256 colors, which ends at the end of a line."""
    text = visible(text)
    if color is None or not text or not has_colors(sys.stdout):
        return text
    start = f"\x1b[48;5;{color};38;5;255m"
    end = "\x1b[0m"
    return start + text.replace("\n", f"{end}\n{start}") + end
