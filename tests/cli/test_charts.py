"""Numbers as lines of text: golden charts, the room they take, tables of how people say numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.cli.charts import bar, curve, heat_map, histogram, signed_bar, spark
from llmcli.units import duration, number, size

# ---- curves


def dots(lines):
    """The places (column, row from the top) of all braille dots of a chart."""
    bits = {1: (0, 0), 2: (0, 1), 4: (0, 2), 64: (0, 3), 8: (1, 0), 16: (1, 1), 32: (1, 2), 128: (1, 3)}
    return {
        (2 * x + dx, 4 * y + dy)
        for y, line in enumerate(lines[:-1])
        for x, cell in enumerate(line.split("│", 1)[1])
        for bit, (dx, dy) in bits.items()
        if (ord(cell) - 0x2800) & bit
    }


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right():
    assert curve([([0, 1], [0.0, 1.0])], 14, 4) == [
        "1.00 │⠀⠀⠀⠀⠀⠀⡠⠊",
        "     │⠀⠀⠀⠀⡠⠊",
        "     │⠀⠀⡠⠊",
        "0.00 │⡠⠊",
        "     0      1",
    ]


def test_series_share_the_axes():
    lines = curve([([0, 10], [5.0, 5.0]), ([20, 30], [1.0, 1.0])], 30, 2)
    assert lines[0].startswith("5.00 │")
    assert lines[1].startswith("1.00 │")
    assert lines[2].split() == ["0", "30"]
    upper, lower = ({x for x, y in dots(lines) if y == row} for row in (0, 7))
    assert upper == set(range(max(upper) + 1))
    assert max(upper) < min(lower)
    assert len(upper) + len(lower) == len(dots(lines))


@pytest.mark.parametrize("series", [[], [([], [])], [([1, 2], [math.nan, math.inf])]])
def test_nothing_to_draw_is_an_empty_chart(series):
    assert curve(series, 40, 5) == []


def test_one_point_is_one_dot():
    lines = curve([([3], [2.5])], 30, 4)
    assert len(lines) == 5
    assert len(dots(lines)) == 1
    assert lines[0].startswith("2.50 │")
    assert lines[3].startswith("2.50 │")


def test_a_constant_is_one_level_line():
    lines = curve([([0, 50, 100], [7.0, 7.0, 7.0])], 30, 3)
    found = dots(lines)
    assert len({y for _, y in found}) == 1
    assert {x for x, _ in found} == set(range(2 * (30 - 6)))


def test_values_that_are_not_finite_are_passed_over():
    drawn = curve([([1, 2, 3, 4, 5], [math.nan, 3.0, math.inf, 1.0, -math.inf])], 40, 5)
    assert drawn == curve([([2, 4], [3.0, 1.0])], 40, 5)


def test_many_points_keep_their_highest_and_lowest():
    xs = list(range(10_000))
    lines = curve([(xs, [math.sin(x / 100) for x in xs])], 60, 8)
    rows = {y for _, y in dots(lines)}
    assert rows == set(range(32))
    assert lines[0].startswith(" 1.00 │")
    assert lines[7].startswith("-1.00 │")
    assert lines[8].split() == ["0", "9,999"]


points = st.lists(st.tuples(st.integers(0, 1_000_000), st.floats(-999, 999)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(points, st.integers(30, 120), st.integers(1, 12))
def test_a_chart_keeps_to_its_width_and_height_and_joins_all_points(pairs, width, height):
    pairs = sorted(pairs)
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    lines = curve([(xs, ys)], width, height)
    assert len(lines) == height + 1  # and the axis
    assert all(len(line) <= width for line in lines)
    found = dots(lines)
    columns, rows = {x for x, _ in found}, {y for _, y in found}
    assert columns == set(range(max(columns) + 1))  # from the left end on, without a gap
    assert rows == set(range(min(rows), max(rows) + 1))
    if max(ys) > min(ys):
        assert rows == set(range(4 * height))
    if max(xs) > min(xs):
        assert max(columns) >= 2 * (width - 9) - 1  # labels take 9 at most


# ---- curves of a run


def test_a_steep_beginning_leaves_the_chart_at_the_top():
    """100 at first, then from 2 down to 1: the scale is that of the rest."""
    xs = list(range(101))
    ys = [100.0 - 9.8 * x if x < 10 else 2 - (x - 10) / 90 for x in xs]
    lines = curve([(xs, ys)], 60, 6, settle=0.1)
    assert lines[0].startswith("2.00 │") and lines[5].startswith("1.00 │")
    rest = curve([(xs[10:], ys[10:])], 60, 6)
    assert rest[0].startswith("2.00 │")
    assert {y for _, y in dots(lines)} == set(range(24))
    assert min(x for x, _ in dots(lines)) >= 8  # nothing lies flat along the top before
    assert curve([(xs, ys)], 60, 6)[0].startswith("100.00 │")


def test_what_is_high_later_stays():
    lines = curve([([0, 1, 2, 3], [9.0, 1.0, 2.0, 5.0])], 40, 5, settle=0.3)
    assert lines[0].startswith("5.00 │") and lines[4].startswith("1.00 │")


def test_a_line_above_the_chart_is_no_line():
    lines = curve([([0, 1], [9.0, 8.0]), ([0, 100], [2.0, 1.0])], 40, 5, settle=0.1)
    assert lines == curve([([0, 100], [2.0, 1.0])], 40, 5, settle=0.1)


def test_marks_stand_over_the_lines_and_share_the_axes():
    lines = curve([([0, 10], [1.0, 1.0])], 26, 3, marks=([0, 10, 10], [3.0, 1.0, math.nan]))
    assert lines[0].startswith("3.00 │o") and lines[2].endswith("o") and lines[2].count("⠤") + lines[2].count("⣀") > 10
    assert sum(line.count("o") for line in lines) == 2
    assert curve([], 26, 3, marks=([5], [1.0]))[1].count("o") == 1


def test_a_legend_stands_under_the_chart_where_it_fits():
    assert curve([([0, 10], [1.0, 2.0])], 40, 3, legend="a legend")[-1].split() == ["0", "a", "legend", "10"]
    narrow = curve([([0, 10], [1.0, 2.0])], 16, 3, legend="a legend that is long")[-1]
    assert narrow.split() == ["0", "10"]


@settings(max_examples=100, deadline=None)
@given(points, points, st.integers(30, 120), st.integers(1, 12), st.floats(0, 1))
def test_a_chart_keeps_to_its_room_whatever_is_cut(pairs, marked, width, height, settle):
    pairs, marked = sorted(pairs), ([x for x, _ in marked], [y for _, y in marked])
    lines = curve(
        [([x for x, _ in pairs], [y for _, y in pairs])], width, height, marks=marked, settle=settle, legend="legend"
    )
    assert len(lines) == height + 1
    assert all(len(line) <= width for line in lines)


# ---- bars


@pytest.mark.parametrize(
    ("share", "width", "expected"),
    [
        (0, 8, ""),
        (1, 3, "███"),
        (0.5, 4, "██"),
        (0.5, 3, "█▌"),
        (1 / 8, 1, "▏"),
        (7 / 8, 1, "▉"),
        (0.28, 4, "█▏"),
        (1e-6, 10, ""),
        (-1, 5, ""),
        (2, 5, "█████"),
    ],
)
def test_a_bar_is_exact_to_an_eighth_of_a_character(share, width, expected):
    assert bar(share, width) == expected


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), st.integers(1, 60))
def test_a_bar_fills_its_share_of_the_width(share, width):
    found = bar(share, width)
    assert len(found) <= width
    filled = sum(" ▏▎▍▌▋▊▉█".index(c) / 8 for c in found)
    assert filled == pytest.approx(share * width, abs=1 / 16 + 1e-9)


def test_a_histogram_tells_where_each_interval_starts_and_how_many_are_in_it():
    assert histogram([0, 5, 10, 1234], -1, 1, 10) == [
        "  -1 │ 0",
        "-0.5 │ 5",
        "  +0 │▏ 10",
        "+0.5 │██████████ 1,234",
    ]


def test_a_histogram_of_nothing_is_empty():
    assert histogram([], math.nan, math.nan, 10) == []
    assert histogram([0, 0], 0, 2, 10) == ["+0 │ 0", "+1 │ 0"]


# ---- numbers


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1, "1"),
        (950, "950"),
        (999, "999"),
        (1_000, "1.0 k"),
        (541_792, "541.8 k"),
        (999_900, "999.9 k"),
        (1_000_000, "1.00 M"),
        (15_192_288, "15.19 M"),
        (68_976_648_192, "68.98 B"),
        (1_500_000_000_000, "1.50 T"),
        (999_999, "1.00 M"),  # not 1000.0 k
        (999_999_999, "1.00 B"),
    ],
)
def test_number_says_counts_as_people_do(value, expected):
    assert number(value) == expected


def test_number_says_any_size_that_a_header_can_claim():
    assert number(10**400).endswith("T")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 bytes"),
        (12, "12 bytes"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (3_753_201, "3.75 MB"),
        (137_953_316_864, "137.95 GB"),
        (2_000_000_000_000, "2.00 TB"),
        (999_999, "1.00 MB"),  # not 1000.00 kB
    ],
)
def test_size_says_bytes_as_people_do(count, expected):
    assert size(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (5.2, "5s"),
        (59.6, "1m"),
        (60, "1m"),
        (90, "1m 30s"),
        (300, "5m"),
        (3599.7, "1h"),
        (3600, "1h"),
        (3605, "1h 5s"),
        (5400, "1h 30m"),
        (3661, "1h 1m 1s"),
        (172_800, "48h"),
    ],
)
def test_duration_says_times_as_people_do(seconds, expected):
    assert duration(seconds) == expected


# ---- attention, effects, weights


def test_a_heat_map_numbers_its_columns_and_darkens_with_the_share() -> None:
    shares = [[1.0], [0.31, 0.69], [0.02, 0.05, 0.2]]
    assert heat_map(shares, first=9) == ["   1  ", " 9 0 1", "██", "▓▓██", "··░░▒▒"]
    rows = heat_map([[0.5] * 30] * 30)
    assert [len(line) for line in rows] == [60, 60, *range(2, 62, 2)]
    assert rows[0].split() == ["1", "2", "3"] and rows[0].index("1") == rows[1].index("0")


def test_what_is_below_zero_is_a_light_bar() -> None:
    assert [signed_bar(x, 2, 4) for x in (2, 1, 0, -1, -2)] == ["████", "██", "", "░░", "░░░░"]


def test_a_spark_shows_the_fullest_interval_whole_and_an_empty_one_blank() -> None:
    assert spark([0, 1, 50, 100, 1000]) == " ▁▁▁█" and spark([]) == "" and spark([0, 0]) == "  "
