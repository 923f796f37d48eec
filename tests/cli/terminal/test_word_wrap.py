"""Text that arrives in pieces is wrapped as if it had arrived at once."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmcli.cli.terminal.text_layout import WordWrap

TEXTS = st.text("ab ,。「」私は毎\U0001f34eé", max_size=80)


def wrapped(text: str, columns: int, cuts: list[int] | None = None) -> str:
    wrapper = WordWrap(columns)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts or []), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    return "".join(map(wrapper.feed, parts)) + wrapper.finish()


@given(TEXTS, st.integers(4, 40), st.lists(st.integers(0, 100), max_size=8))
def test_the_pieces_do_not_matter(text: str, columns: int, cuts: list[int]) -> None:
    assert wrapped(text, columns, cuts) == wrapped(text, columns)


def test_a_line_has_at_most_nine_columns() -> None:
    """A word that is longer is broken by the terminal; after a tab the text is at column 8."""
    for text, expected in [
        ("one two three", "one two\nthree"),
        ("one\n\n  two  \nthree", "one\n\n  two\nthree"),
        ("a\tb", "a\tb"),
        ("a\tbc", "a\nbc"),
        ("abcdefghijklm n", "abcdefghijklm\nn"),
        ("私は毎朝リンゴを食べます。", "私は毎朝\nリンゴを\n食べま\nす。"),
    ]:
        assert wrapped(text, 9) == expected


def test_the_columns_may_change() -> None:
    wrapper = WordWrap(20)
    text = wrapper.feed("one two three ")
    wrapper.columns = 10  # fewer than the line has
    text += wrapper.feed("four five six ")
    wrapper.columns = 20
    assert text + wrapper.feed("seven eight") + wrapper.finish() == "one two three\nfour five\nsix seven eight"


def test_a_word_is_printed_when_it_is_complete() -> None:
    wrapper = WordWrap(20)
    pieces = {"I li": "I", "ke": "", " to": " like", "\n": " to\n", "eat": "", "私は": "eat私"}
    assert [wrapper.feed(piece) for piece in pieces] == [*pieces.values()]
    assert wrapper.finish() == "は"
