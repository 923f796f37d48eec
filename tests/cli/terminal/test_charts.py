"""Charts as lines of text: some compared in full, others by their dots and their size."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.cli.terminal import charts
from llmcli.cli.terminal.charts import bar, heat_map, log_range, signed_bar, sparkline
from llmcli.training.files.curve import Curve


def dots(lines):
    """(column, row) of all braille dots of a chart, from the upper left."""
    bits = {1: (0, 0), 2: (0, 1), 4: (0, 2), 64: (0, 3), 8: (1, 0), 16: (1, 1), 32: (1, 2), 128: (1, 3)}
    return {
        (2 * x + dx, 4 * y + dy)
        for y, line in enumerate(lines[:-1])
        for x, cell in enumerate(line.split("│", 1)[1])
        for bit, (dx, dy) in bits.items()
        if (ord(cell) - 0x2800) & bit
    }


def curve(xs, ys, width, height, *, marks=((), ()), legend="") -> list[str]:
    return charts.curve(Curve(xs, ys, *marks), width, height, legend)


def test_a_falling_line() -> None:
    assert curve([0, 1], [8.0, 1.0], 14, 4) == [
        "8.00 │⠑⢄",
        "     │⠀⠀⠑⢄",
        "     │⠀⠀⠀⠀⠑⢄",
        "1.00 │⠀⠀⠀⠀⠀⠀⠑⢄",
        "     0      1",
    ]


def test_a_chart_without_points_is_empty():
    for values in [([], []), ([1, 2], [math.nan, math.inf])]:
        assert curve(*values, 40, 5) == []


def test_the_range_of_a_scale_is_positive_and_never_empty():
    ranges = {(2.0, 4.0): (2, 4), (3.0, 3.0): (2, 4.5), (1e6, 1e-6): (100, 1e6), (0.0,): (0.5, 1.5), (2, 0): (2e-4, 2)}
    for values, expected in ranges.items():
        assert log_range(values) == pytest.approx(expected)


def test_values_that_are_not_finite_are_left_out():
    drawn = curve([1, 2, 3, 4, 5], [math.nan, 3.0, math.inf, 1.0, -math.inf], 40, 5)
    assert drawn == curve([2, 4], [3.0, 1.0], 40, 5)


def test_marks_are_drawn_over_the_line_on_the_same_axes():
    lines = curve([0, 10], [1.0, 1.0], 26, 3, marks=([0, 10, 10], [3.0, 1.0, math.nan]))
    assert lines[0].startswith("3.00 │o") and lines[2].endswith("o") and lines[2].count("⠤") + lines[2].count("⣀") > 10
    assert sum(line.count("o") for line in lines) == 2
    assert curve([], [], 26, 3, marks=([5], [1.0]))[1].count("o") == 1


def test_a_legend_is_shown_below_the_chart_if_it_fits():
    assert curve([0, 10], [1.0, 2.0], 40, 3, legend="a legend")[-1].split() == ["0", "a", "legend", "10"]
    assert curve([0, 10], [1.0, 2.0], 16, 3, legend="a legend that is long")[-1].split() == ["0", "10"]


points = st.lists(st.tuples(st.integers(0, 1_000_000), st.floats(0, 999, width=16)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(points, points, st.integers(30, 120), st.integers(1, 12))
def test_a_chart_fits_its_size_and_joins_all_points(pairs, marked, width, height):
    pairs, marked = sorted(pairs), ([x for x, _ in marked], [y for _, y in marked])
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    lines = curve(xs, ys, width, height, marks=marked, legend="legend")
    assert len(lines) == height + 1  # and the axis
    assert all(len(line) <= width for line in lines)
    drawn = dots(curve(xs, ys, width, height))
    columns, rows = {x for x, _ in drawn}, {y for _, y in drawn}
    assert columns == set(range(max(columns) + 1))  # from the left edge on, without a gap
    assert rows == set(range(min(rows), max(rows) + 1))
    if max(ys) > min(ys):
        assert rows == set(range(4 * height))
    if max(xs) > min(xs):
        assert max(columns) >= 2 * (width - 9) - 1  # labels take 9 at most


def test_a_bar_is_exact_to_an_eighth_of_a_character():
    drawn = {(0, 8): "", (1, 3): "███", (0.5, 3): "█▌", (1 / 8, 1): "▏", (7 / 8, 1): "▉", (0.28, 4): "█▏"}
    for (share, width), expected in (drawn | {(1e-6, 10): "", (-1, 5): "", (2, 5): "█████"}).items():
        assert bar(share, width) == expected


def test_a_heat_map_has_column_numbers_and_is_darker_for_larger_shares() -> None:
    shares = [[1.0], [0.31, 0.69], [0.02, 0.05, 0.2]]
    assert heat_map(shares, first=9) == ["   1  ", " 9 0 1", "██", "▓▓██", "··░░▒▒"]
    rows = heat_map([[0.5] * 30] * 30)
    assert [len(line) for line in rows] == [60, 60, *range(2, 62, 2)]
    assert rows[0].split() == ["1", "2", "3"] and rows[0].index("1") == rows[1].index("0")


def test_a_negative_value_is_a_light_bar() -> None:
    assert [signed_bar(x, 2, 4) for x in (2, 1, 0, -1, -2)] == ["████", "██", "", "░░", "░░░░"]


def test_a_sparkline_shows_the_largest_count_at_full_height_and_0_as_a_space() -> None:
    assert sparkline([0, 1, 50, 100, 1000]) == " ▁▁▁█" and sparkline([]) == "" and sparkline([0, 0]) == "  "
