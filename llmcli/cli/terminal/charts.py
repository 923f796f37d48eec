"""Charts as lines of text: loss curves, bars, heat maps, histograms. Independent of terminals and colors."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcli.training.files.curve import Curve

LOG_RANGE = 10_000  # highest to lowest value of a logarithmic scale
MARK = "o"  # exactly one column wide in every terminal and font
# braille: bit of (column, row) in a cell of 2 x 4 dots
_DOTS = (
    (0x01, 0x02, 0x04, 0x40),
    (0x08, 0x10, 0x20, 0x80),
)
_BLANK = 0x2800  # the braille character without dots
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def curve(losses: "Curve", width: int, height: int, legend: str = "") -> list[str]:
    """Draw the training losses in braille dots, and the validation losses as MARK over them, in height + 1
    lines with a logarithmic y axis; [] without finite points. `legend` is centered below the chart if it
    fits."""
    line, marked = (
        [(x, y) for x, y in zip(*xy, strict=True) if math.isfinite(y)]
        for xy in ((losses.steps, losses.training), (losses.validation_steps, losses.validation))
    )
    points = line + marked
    if not points:
        return []
    all_x, all_y = zip(*points, strict=True)
    x_low = min(all_x)
    x_high = max(all_x)
    low, high = log_range(all_y)

    def dot_row(y: float) -> int:
        """Return the row of dots, from the top."""
        return round(math.log(high / max(y, low)) / math.log(high / low) * (4 * height - 1))

    labels = [""] * height
    labels[-1] = _label(low)
    labels[0] = _label(high)
    for value in round_values(low, high):
        row = dot_row(value) // 4
        if not any(labels[max(0, row - 1) : row + 2]):
            labels[row] = _label(value)
    margin = max(map(len, labels)) + 1
    columns = max(8, width - margin - 1)
    line_dots, mark_dots = (
        [(round((x - x_low) / (x_high - x_low or 1) * (2 * columns - 1)), dot_row(y)) for x, y in drawn]
        for drawn in (line, marked)
    )
    grid = _draw_line(line_dots, columns, height)
    for dot_column, row in mark_dots:
        grid[row // 4][dot_column // 2] = MARK
    lines = [
        f"{label:>{margin - 1}} │{''.join(row).rstrip(chr(_BLANK))}"
        for label, row in zip(labels, grid, strict=True)
    ]
    first = f"{x_low:,.0f}"
    last = f"{x_high:,.0f}"
    space = columns - len(first) - len(last)
    return [*lines, " " * margin + first + (legend if len(legend) + 4 <= space else "").center(space) + last]


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of a logarithmic scale: never empty, both ends positive, at most a factor of LOG_RANGE
    apart."""
    high = max(values)
    low = max(min(values), high / LOG_RANGE)
    if high > low:
        return low, high
    return (low / 1.5, high * 1.5) if high > 0 else (0.5, 1.5)


def _label(value: float) -> str:
    """
    >>> _label(8.1234), _label(0.5), _label(0.00214), _label(0.0000214)
    ('8.12', '0.50', '0.0021', '2e-05')
    """
    if value >= 0.095:
        return f"{value:.2f}"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def round_values(low: float, high: float) -> list[float]:
    """Return the round values from low to high (both positive), evenly spaced on a logarithmic scale.

    >>> round_values(0.2, 2.7), round_values(1.9, 2.3)
    ([0.2, 0.5, 1.0, 2.0], [2.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def _draw_line(dots: Sequence[tuple[int, int]], columns: int, rows: int) -> list[list[str]]:
    """Draw a line through (column, row) of dots, as rows of braille characters."""
    cells = [[0] * columns for _ in range(rows)]
    for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots, strict=False):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(steps + 1):
            column = round(x0 + (x1 - x0) * i / steps)
            row = round(y0 + (y1 - y0) * i / steps)
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return [[chr(_BLANK + dots) for dots in row] for row in cells]


def bar(share: float, width: int) -> str:
    """Draw a bar of `share` (0 to 1) of `width` characters, exact to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, share)) * max(0, width) * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def signed_bar(value: float, largest: float, width: int) -> str:
    """Draw a bar of |value| / largest of the width, solid for positive values, light for negative ones."""
    share = abs(value) / largest
    return bar(share, width) if value > 0 else "░" * round(share * width)


def heat_map(shares: Sequence[Sequence[float]], first: int = 1) -> list[str]:
    """Draw a lower triangle of shares (0 to 1), two characters per cell, below two lines of column
    numbers."""
    numbers = range(first, first + len(shares))
    tens = "".join(f"{n // 10 % 10 if n % 10 == 0 or (n == first and n > 9) else '':>2}" for n in numbers)
    rows = [
        "".join(
            2 * next((shade for limit, shade in _SHADES if share >= limit), "·") for share in row[: i + 1]
        )
        for i, row in enumerate(shares)
    ]
    return [tens, "".join(f"{n % 10:>2}" for n in numbers), *rows]


_SHADES = ((0.6, "█"), (0.3, "▓"), (0.1, "▒"), (0.03, "░"))
HEAT_LEGEND = "██ 60% or more, ▓▓ 30%, ▒▒ 10%, ░░ 3%, ·· less"


def sparkline(counts: Sequence[int]) -> str:
    """Draw a histogram on one line, one character per interval: █ for the largest count, a space for 0."""
    largest = max(counts, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / largest)] for count in counts)
