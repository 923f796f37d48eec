"""Prose and labels in the columns of a terminal: wide characters, commands to copy, any width."""

import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from llmcli.cli.terminal import text_layout
from llmcli.cli.terminal.text_layout import text_width, truncate, wrap


def test_text_is_cut_to_any_number_of_columns() -> None:
    for text in ["", "apple pie", "りんごを食べる", "🍎 が"]:
        for columns in range(-2, 21):
            line = truncate(text, columns)
            assert text_width(line) <= max(0, columns)
            assert line == text or columns < 1 or (line[-1] == "…" and text.startswith(line[:-1]))


@given(st.lists(st.text("abé-/,", min_size=1, max_size=50)), st.integers(10, 60), st.integers(0, 6), st.integers(0, 6))
def test_words_wrap_as_the_standard_library_wraps_them(words: list[str], columns: int, first: int, later: int) -> None:
    text = " ".join(words)
    expected = textwrap.wrap(
        text, columns, initial_indent=" " * first, subsequent_indent=" " * later, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    assert wrap(text, columns, first, later) == (expected or [" " * first])


CHARACTERS = st.lists(st.sampled_from(["私", "🍎", "カ\u3099", "、", "。", "「", "」", "e", "e\u0301"])).map("".join)


@pytest.mark.slow
@settings(max_examples=500)
@given(CHARACTERS, st.integers(1, 40))
def test_text_without_spaces_wraps_by_the_columns_it_takes(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert "".join(lines) == text
    for line in lines[1:]:
        assert line[0] not in "、。」\u0301\u3099"
    for line in lines[:-1]:
        assert line[-1] != "「"
    for line in lines:  # one wide character or a run of narrow ones, with its punctuation, is not broken
        one = re.fullmatch("「*(私|🍎|カ\u3099|(e\u0301?)+)?[、。」]*", line)
        assert text_width(line) <= columns or one, (line, lines)


def test_widths_without_rich_are_those_of_rich() -> None:
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    narrow = re.findall(text_layout._NARROW.removesuffix("*"), "".join(characters))
    assert len(narrow) > 600 and {*map(cell_len, narrow)} == {1}
    assert text_width("".join(narrow)) == len(narrow) and text_width("リンゴ\u0301") == 6


def test_a_combining_mark_does_not_hide_the_width_of_what_it_is_combined_with() -> None:
    assert wrap("私\u0301e", 2) == ["私\u0301", "e"]


def test_a_command_to_type_is_not_broken() -> None:
    command = "llm train c.txt -o 'my model.safetensors' --context 16 --threads 1 --force --steps 8"
    lines = wrap(f"It was still improving; more time would help: {command}", 40)
    assert lines[-1] == command and all(len(line) <= 40 for line in lines[:-1])
    asked = 'Ask it: llm generate "..." -m x.safetensors; look into it: llm inspect x.safetensors'
    assert wrap(asked, 50) == [
        'Ask it: llm generate "..." -m x.safetensors; look', "into it: llm inspect x.safetensors",
    ]  # fmt: skip
