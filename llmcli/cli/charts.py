"""Numbers -> lines of text: line charts, bars, heat maps, histograms. Knows no terminal and no colours."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
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
    initial_share: float = 0.0,
    legend: str = "",
) -> list[str]:
    """A line chart of braille dots, with the y scale at the left and the x scale below: height + 1 lines.

    Each series is (x values, y values); all share the axes. `marks` are points shown as MARK over the lines, so that
    they are distinguishable without colours. Values in the first `initial_share` of the x axis (0 to 1) do not set the
    top of the scale; what is above it is not drawn. `legend` is centered below the chart if it fits. Values that are
    not finite are left out; without any other the chart is [].
    """
    series_points = [_finite_points(*values) for values in series]
    mark_points = _finite_points(*marks)
    points = [point for points in (*series_points, mark_points) for point in points]
    if not points:
        return []
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low = min(y for _, y in points)
    y_high = max(y for x, y in points if x >= x_low + initial_share * (x_high - x_low))  # at least the last point
    labels = [f"{y_high:.2f}", *[""] * (height - 2), f"{y_low:.2f}"] if height > 1 else [f"{y_high:.2f}"]
    margin = max(len(f"{y_high:.2f}"), len(f"{y_low:.2f}")) + 1
    axes = _Axes(x_low, x_high, y_low, y_high, columns=max(8, width - margin - 1), rows=height)
    grid = _draw_lines(series_points, axes)
    for x, y in mark_points:
        if y <= y_high:
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

    def dot(self, x: float, y: float) -> tuple[int, int]:
        """(column, row) of the dot, from the upper left."""
        across = (x - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.0
        up = (y - self.y_low) / (self.y_high - self.y_low) if self.y_high > self.y_low else 0.5
        return round(across * (2 * self.columns - 1)), round((1 - up) * (4 * self.rows - 1))


def _finite_points(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def _draw_lines(series: Iterable[Sequence[Point]], axes: _Axes) -> list[list[str]]:
    """Rows of braille characters with a line through the points of each series."""
    cells = [[0] * axes.columns for _ in range(axes.rows)]
    for points in series:
        for start, end in zip(points, points[1:] or points, strict=False):
            segment = _clip(start, end, axes.y_high)
            if segment is None:
                continue
            (x0, y0), (x1, y1) = axes.dot(*segment[0]), axes.dot(*segment[1])
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(steps + 1):
                column, row = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
                cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return [[chr(_BLANK + dots) for dots in row] for row in cells]


def _clip(start: Point, end: Point, y_high: float) -> tuple[Point, Point] | None:
    """The part of a line that is not above `y_high`, or None.

    >>> _clip((0, 5), (4, 1), 3)
    ((2.0, 3), (4, 1))
    """
    (x0, y0), (x1, y1) = start, end
    if y0 > y_high and y1 > y_high:
        return None
    crossing = (x0 + (x1 - x0) * (y0 - y_high) / (y0 - y1), y_high) if max(y0, y1) > y_high else start
    return (crossing if y0 > y_high else start), (crossing if y1 > y_high else end)


def _x_axis(first: str, last: str, legend: str, columns: int) -> str:
    """
    >>> [_x_axis("0", "99", legend, 16) for legend in ("bits", "bits per byte")]
    ['0     bits    99', '0             99']
    """
    space = columns - len(first) - len(last)
    return first + (legend if len(legend) + 4 <= space else "").center(space) + last


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` characters, exact to an eighth of a character; "" if width is not positive.

    >>> [bar(0.5, 4), bar(0.28, 4), bar(0, 4), bar(0.28, -4)]
    ['██', '█▏', '', '']
    """
    eighths = round(max(0.0, min(1.0, share)) * max(0, width) * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def signed_bar(value: float, largest: float, width: int) -> str:
    """A bar of |value| / largest of the width, solid for positive values, light for negative ones.

    >>> [signed_bar(2, 4, 8), signed_bar(-2, 4, 8), signed_bar(0, 0, 8)]
    ['████', '░░░░', '']
    """
    share = abs(value) / largest if largest else 0.0
    return bar(share, width) if value > 0 else "░" * round(share * width)


def heat_map(shares: Sequence[Sequence[float]], first: int = 1) -> list[str]:
    """A lower triangle of shares (0 to 1), two characters per cell, darker for more; HEAT_LEGEND explains them.

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
    """A histogram on one line, one character per interval: █ for the largest count, a space for 0.

    >>> sparkline([0, 1, 4, 8, 0])
    ' ▁▄█ '
    """
    largest = max(counts, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / largest)] for count in counts)


def histogram(counts: Sequence[int], low: float, high: float, width: int) -> list[str]:
    """One line for each of the equal intervals from low to high: its start, a bar, the count."""
    largest = max(counts, default=0) or 1
    step = (high - low) / max(1, len(counts))
    starts = [f"{low + i * step:+.3g}" for i in range(len(counts))]
    margin = max(map(len, starts), default=0)
    return [
        f"{start:>{margin}} │{bar(count / largest, width)} {count:,}"
        for start, count in zip(starts, counts, strict=True)
    ]
