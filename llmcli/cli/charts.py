"""Numbers -> lines of text: curves, bars, histograms. Knows nothing of terminals or colours."""

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # braille: bit of (column, row) in a 2 x 4 cell
Point = tuple[float, float]
SETTLE = 0.1  # of a run: the loss falls steeply before, and what is looked for in a curve comes after
MARK = "o"  # one column wide in every terminal and font
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def curve(
    series: Sequence[tuple[Sequence[float], Sequence[float]]],
    width: int,
    height: int,
    *,
    marks: tuple[Sequence[float], Sequence[float]] = ((), ()),
    settle: float = 0.0,
    legend: str = "",
) -> list[str]:
    """Lines through points, drawn with braille dots, with the scale at the left and under the chart.

    Each series is (x values, y values); all share the axes. `marks` are points that each show as a MARK over the
    lines, so that they differ without colours too. What is high in the first `settle` of the x axis only (0 to 1, the
    steep beginning of a run) does not stretch the scale: it leaves the chart at the top. `legend` stands in the middle
    of the line under the chart where it fits. Empty series and marks give an empty chart.
    """
    points = [(x, y) for xs, ys in (*series, marks) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    settled = [y for x, y in points if x >= left + settle * (right - left)]  # never empty: one stands at the right
    low, high = min(y for _, y in points), max(settled)
    labels = [f"{high:.2f}", f"{low:.2f}"]
    margin = max(map(len, labels)) + 1
    columns = max(8, width - margin - 1)
    cells = [[0] * columns for _ in range(height)]

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - left) / (right - left) if right > left else 0.0
        up = (y - low) / (high - low) if high > low else 0.5
        return round(across * (2 * columns - 1)), round((1 - up) * (4 * height - 1))

    for xs, ys in series:
        found = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        for start, end in zip(found, found[1:] or found, strict=False):
            inside = _below(start, end, high)
            if inside is None:
                continue
            (x0, y0), (x1, y1) = place(*inside[0]), place(*inside[1])
            steps = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(steps + 1):
                across, down = round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)
                cells[down // 4][across // 2] |= _DOTS[across % 2][down % 4]
    rows = [[chr(0x2800 + dots) for dots in row] for row in cells]
    for x, y in zip(*marks, strict=True):
        if y <= high:  # no for one that is not a number
            column, row = place(x, y)
            rows[row // 4][column // 2] = MARK
    lines = []
    for number, row_ in enumerate(rows):
        label = labels[0] if number == 0 else labels[1] if number == height - 1 else ""
        lines.append(f"{label:>{margin - 1}} │" + "".join(row_).rstrip("\u2800"))
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    room = columns - len(first) - len(last)
    lines.append(" " * margin + first + (legend if len(legend) + 4 <= room else "").center(room) + last)
    return lines


def _below(start: Point, end: Point, high: float) -> tuple[Point, Point] | None:
    """The part of a line that is not above `high`, or None.

    >>> _below((0, 5), (4, 1), 3)
    ((2.0, 3), (4, 1))
    """
    (x0, y0), (x1, y1) = start, end
    if y0 > high and y1 > high:
        return None
    crossing = (x0 + (x1 - x0) * (y0 - high) / (y0 - y1), high) if max(y0, y1) > high else start
    return (crossing if y0 > high else start), (crossing if y1 > high else end)


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` characters, to an eighth of a character; none where there is no width.

    >>> [bar(0.5, 4), bar(0.28, 4), bar(0, 4), bar(0.28, -4)]
    ['██', '█▏', '', '']
    """
    eighths = round(max(0.0, min(1.0, share)) * max(0, width) * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def signed_bar(value: float, most: float, width: int) -> str:
    """A bar of |value| / most of the width: full for what is above zero, light for what is below.

    >>> [signed_bar(2, 4, 8), signed_bar(-2, 4, 8), signed_bar(0, 0, 8)]
    ['████', '░░░░', '']
    """
    share = abs(value) / most if most else 0.0
    return bar(share, width) if value > 0 else "░" * round(share * width)


def heat_map(shares: Sequence[Sequence[float]], first: int = 1) -> list[str]:
    """A square of shares (0 to 1), of which each row reaches to the diagonal: two columns a cell, darker for more.

    Two lines above number the columns from `first` on, tens over ones; then one line a row. HEAT explains the cells.

    >>> heat_map([[1.0], [0.25, 0.75]])[2:]
    ['██', '▒▒██']
    """
    numbers = range(first, first + len(shares))
    tens = "".join(f"{n // 10 % 10 if n % 10 == 0 or (n == first and n > 9) else '':>2}" for n in numbers)
    rows = ["".join(2 * _shade(share) for share in row[: i + 1]) for i, row in enumerate(shares)]
    return [tens, "".join(f"{n % 10:>2}" for n in numbers), *rows]


_SHADES = ((0.6, "█"), (0.3, "▓"), (0.1, "▒"), (0.03, "░"))
HEAT = "██ 60% and more, ▓▓ 30%, ▒▒ 10%, ░░ 3%, ·· less"


def _shade(share: float) -> str:
    return next((shade for least, shade in _SHADES if share >= least), "·")


def spark(counts: Sequence[int]) -> str:
    """A histogram on one line, a character for each interval: the fullest is █, an empty one is blank.

    >>> spark([0, 1, 4, 8, 0])
    ' ▁▄█ '
    """
    most = max(counts, default=0) or 1
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / most)] for count in counts)


def histogram(counts: Sequence[int], low: float, high: float, width: int) -> list[str]:
    """One line for each of the equal intervals between low and high: where it starts, a bar, how many."""
    most = max(counts, default=0) or 1
    step = (high - low) / max(1, len(counts))
    starts = [f"{low + i * step:+.3g}" for i in range(len(counts))]
    margin = max(map(len, starts), default=0)
    return [
        f"{start:>{margin}} │{bar(count / most, width)} {count:,}" for start, count in zip(starts, counts, strict=True)
    ]
