"""Charts as lines of text: line charts, bars, heat maps, histograms. Knows no terminal and no colors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float]
LOG_RANGE = 10_000  # highest to lowest value of a logarithmic scale
MARK = "o"  # one column wide in every terminal and font
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille: bit of (column, row) in a cell of 2 x 4 dots
_BLANK = 0x2800  # the braille character without dots
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def curve(
    series: Sequence[tuple[Sequence[float], Sequence[float]]],
    width: int,
    height: int,
    *,
    marks: tuple[Sequence[float], Sequence[float]] = ((), ()),
    logarithmic: bool = False,
    legend: str = "",
) -> list[str]:
    """Draw a line chart of braille dots, the y scale at the left, the x scale below: height + 1 lines.

    Each series is (x values, y values); values that are not finite are left out. `marks` are points shown as MARK over
    the lines. A `logarithmic` y scale shows both a steep beginning and small differences at the end; it covers at most
    LOG_RANGE, and lower values are drawn at its bottom. `legend` is centered below the chart if it fits. Without any
    point the chart is [].
    """
    series_points = [_finite_points(*values) for values in series]
    mark_points = _finite_points(*marks)
    points = [point for points in (*series_points, mark_points) for point in points]
    if not points:
        return []
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = logarithmic and y_high > 0
    if logarithmic:
        y_low = max(y_low, y_high / LOG_RANGE)
    axes = _Axes(x_low, x_high, y_low, y_high, columns=0, rows=height, logarithmic=logarithmic)
    labels = _labels(axes)
    margin = max(map(len, labels)) + 1
    axes = replace(axes, columns=max(8, width - margin - 1))
    grid = _draw_lines(series_points, axes)
    for x, y in mark_points:
        dot_column, dot_row = axes.dot(x, y)
        grid[dot_row // 4][dot_column // 2] = MARK
    lines = [
        f"{label:>{margin - 1}} │" + "".join(row).rstrip(chr(_BLANK)) for label, row in zip(labels, grid, strict=True)
    ]
    return [*lines, " " * margin + _x_axis(f"{x_low:,.0f}", f"{x_high:,.0f}", legend, axes.columns)]


@dataclass(frozen=True)
class _Axes:
    """Maps values to dots of a chart of columns x rows characters, each of 2 x 4 dots."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    columns: int
    rows: int
    logarithmic: bool = False

    def dot(self, x: float, y: float) -> tuple[int, int]:
        """Return (column, row) of a dot, from the upper left."""
        across = (x - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.0
        return round(across * (2 * self.columns - 1)), round((1 - self._height(y)) * (4 * self.rows - 1))

    def _height(self, y: float) -> float:
        """0 to 1."""
        if self.y_high <= self.y_low:
            return 0.5
        if self.logarithmic:
            return math.log(max(y, self.y_low) / self.y_low) / math.log(self.y_high / self.y_low)
        return (y - self.y_low) / (self.y_high - self.y_low)


def _labels(axes: _Axes) -> list[str]:
    """Label the highest and the lowest row, on a logarithmic scale also round values between them."""
    labels = [""] * axes.rows
    if not axes.logarithmic:
        labels[-1], labels[0] = f"{axes.y_low:.2f}", f"{axes.y_high:.2f}"
        return labels
    labels[-1], labels[0] = _label(axes.y_low), _label(axes.y_high)
    for value in round_values(axes.y_low, axes.y_high):
        row = axes.dot(axes.x_low, value)[1] // 4
        if not any(labels[max(0, row - 1) : row + 2]):
            labels[row] = _label(value)
    return labels


def _label(value: float) -> str:
    """
    >>> _label(8.1234), _label(0.5), _label(0.00214), _label(0.0000214)
    ('8.12', '0.50', '0.0021', '2e-05')
    """
    return f"{value:.2f}" if value >= 0.095 else f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def round_values(low: float, high: float) -> list[float]:
    """Return round values from low to high (both positive), evenly spaced on a logarithmic scale.

    >>> round_values(0.2, 2.7), round_values(1.9, 2.3)
    ([0.2, 0.5, 1.0, 2.0], [1.9, 2.0, 2.1, 2.2, 2.3])
    """
    if high < 3 * low:
        step = 10.0 ** math.floor(math.log10((high - low) / 2 or 1))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) < 6)
        return [round(n * step, 9) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def _finite_points(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def _draw_lines(series: Iterable[Sequence[Point]], axes: _Axes) -> list[list[str]]:
    """Draw a line through the points of each series, as rows of braille characters."""
    cells = [[0] * axes.columns for _ in range(axes.rows)]
    for points in series:
        for start, end in zip(points, points[1:] or points, strict=False):
            (x0, y0), (x1, y1) = axes.dot(*start), axes.dot(*end)
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(steps + 1):
                column, row = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
                cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return [[chr(_BLANK + dots) for dots in row] for row in cells]


def _x_axis(first: str, last: str, legend: str, columns: int) -> str:
    """
    >>> [_x_axis("0", "99", legend, 16) for legend in ("bits", "bits per byte")]
    ['0     bits    99', '0             99']
    """
    space = columns - len(first) - len(last)
    return first + (legend if len(legend) + 4 <= space else "").center(space) + last


def bar(share: float, width: int) -> str:
    """Return a bar of `share` (0 to 1) of `width` characters, exact to an eighth of one; "" if width is not positive.

    >>> [bar(0.5, 4), bar(0.28, 4), bar(0, 4), bar(0.28, -4)]
    ['██', '█▏', '', '']
    """
    eighths = round(max(0.0, min(1.0, share)) * max(0, width) * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def signed_bar(value: float, largest: float, width: int) -> str:
    """Return a bar of |value| / largest of the width, solid for positive values, light for negative ones.

    >>> [signed_bar(2, 4, 8), signed_bar(-2, 4, 8), signed_bar(0, 0, 8)]
    ['████', '░░░░', '']
    """
    share = abs(value) / largest if largest else 0.0
    return bar(share, width) if value > 0 else "░" * round(share * width)


def heat_map(shares: Sequence[Sequence[float]], first: int = 1) -> list[str]:
    """Draw a lower triangle of shares (0 to 1), two characters per cell, darker for more (HEAT_LEGEND).

    The first two lines number the columns from `first` on, tens above ones; then one line per row.

    >>> heat_map([[1.0], [0.25, 0.75]])[2:]
    ['██', '▒▒██']
    """
    numbers = range(first, first + len(shares))
    tens = "".join(f"{n // 10 % 10 if n % 10 == 0 or (n == first and n > 9) else '':>2}" for n in numbers)
    rows = ["".join(2 * _shade(share) for share in row[: i + 1]) for i, row in enumerate(shares)]
    return [tens, "".join(f"{n % 10:>2}" for n in numbers), *rows]


_SHADES = ((0.6, "█"), (0.3, "▓"), (0.1, "▒"), (0.03, "░"))
HEAT_LEGEND = "██ 60% or more, ▓▓ 30%, ▒▒ 10%, ░░ 3%, ·· less"


def _shade(share: float) -> str:
    return next((shade for limit, shade in _SHADES if share >= limit), "·")


def sparkline(counts: Sequence[int]) -> str:
    """Draw a histogram on one line, one character per interval: █ for the largest count, a space for 0.

    >>> sparkline([0, 1, 4, 8, 0])
    ' ▁▄█ '
    """
    largest = max(counts, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / largest)] for count in counts)


def histogram(counts: Sequence[int], low: float, high: float, width: int) -> list[str]:
    """Draw one line for each of the equal intervals from low to high: its start, a bar, the count."""
    largest = max(counts, default=0) or 1
    step = (high - low) / max(1, len(counts))
    starts = [f"{low + i * step:+.3g}" for i in range(len(counts))]
    margin = max(map(len, starts), default=0)
    return [
        f"{start:>{margin}} │{bar(count / largest, width)} {count:,}"
        for start, count in zip(starts, counts, strict=True)
    ]
