"""Surprisals: they sum to the score of eval, and equal those computed token by token."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.evaluation.evaluator import Span, most_surprising
from tests.cli.terminals import STYLES, in_a_terminal
from tests.conftest import Llm

TEXT = "The cat りんご sat.\n👨‍👩‍👧 ate the hat. The dog ate the mat and the cat sat on the hat of the dog.\n" * 3


def test_surprisals_sum_to_the_score_of_eval(llm: Llm, tiny_model: Path) -> None:
    Path("a.txt").write_text(TEXT, "utf-8")
    Path("b.txt").write_text("The dog.", "utf-8")
    report = json.loads(llm("eval", "a.txt", "b.txt", "--per-token", "--json").stdout)
    rows = json.loads(llm("eval", "a.txt", "b.txt", "--json").stdout)["results"]
    whole = next(row for row in rows if row["file"] is None)
    bits = [token["bits"] for token in report["tokens"]]
    assert len(bits) == whole["tokens"] > 96
    assert sum(bits) / whole["bytes"] == pytest.approx(whole["bits_per_byte"], abs=1e-4)
    assert report["bits_per_byte"] == whole["bits_per_byte"]
    first = report["files"][1]["first_token"]
    assert [file["file"] for file in report["files"]] == ["a.txt", "b.txt"]
    assert "".join(token["text"] for token in report["tokens"][first:]) == "The dog."
    for passage in report["most_surprising"]:
        start, end = passage["first_token"], passage["first_token"] + passage["tokens"]
        assert passage["bits"] == pytest.approx(sum(bits[start:end]), abs=1e-2)
        assert not start < first < end


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sets(st.integers(0, 39), max_size=3),
)
def test_passages_are_sorted_do_not_overlap_and_stay_within_a_document(
    bits: list[int], length: int, max_passages: int, breaks: set[int]
) -> None:
    breaks = {b for b in breaks if b < len(bits)}
    passages = most_surprising(np.array(bits, float), length, max_passages, breaks)
    assert 1 <= len(passages) <= max_passages
    assert [passage.bits for passage in passages] == sorted((passage.bits for passage in passages), reverse=True)
    taken: set[int] = set()
    for passage in passages:
        span = set(range(passage.start, passage.end))
        assert passage.bits == sum(bits[passage.start : passage.end]) and not span & taken
        assert not any(passage.start < b < passage.end for b in breaks)
        edges = sorted({0, *breaks, len(bits)})
        document = next(b - a for a, b in itertools.pairwise(edges) if a <= passage.start < b)
        assert len(span) == min(length, document)
        taken |= span


def test_passages_of_short_texts() -> None:
    assert most_surprising(np.array([])) == []
    assert most_surprising(np.array([1.0, 2.0])) == [Span(0, 2, 3.0)]
    assert most_surprising(np.array([1.0, 2.0]), breaks=[2]) == [Span(0, 2, 3.0)]  # the last document is empty
    assert most_surprising(np.array([1.0, 1.0, 2.0, 2.0]), length=2) == [Span(2, 4, 4.0), Span(0, 2, 2.0)]


@pytest.mark.slow
def test_a_terminal_shows_colored_text_without_its_control_characters(tiny_model: Path) -> None:
    Path("a.txt").write_text("The cat sat\x1b[31m on りんご👨‍👩‍👧 the mat.\n" * 2, "utf-8")
    shown = in_a_terminal("eval", "a.txt", "--per-token").split("\x1b[K")[-1]  # after the progress
    assert "\x1b[48;5;130;38" in shown and "bits: below 1" in STYLES.sub("", shown).replace("  ", " ")
    plain = STYLES.sub("", shown)
    assert "\x1b" not in plain and "The cat sat␛[31m on りんご" in plain
    assert "most surprising passages" in plain


@pytest.mark.slow
def test_without_colors_each_token_is_on_a_line(llm: Llm, tiny_model: Path) -> None:
    Path("a.txt").write_text("The cat 🍎", "utf-8")
    lines = llm("eval", "a.txt", "--per-token").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines[:3]][:2] == ["The", "·cat"]
    assert "🍎" in lines[3] or "🍎" in lines[2]  # its bytes are one character
    shown = in_a_terminal("eval", "a.txt", "--per-token", NO_COLOR="1").split("\x1b[K")[-1]
    assert "\x1b[48" not in shown and re.search(r"^\d+\.\d\d\s+The\r?$", shown, re.M)
