"""Memorization: on texts with known matches, and compared with a search by `in`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation import memorization
from llmcli.evaluation.memorization import (
    measure_memorization,
    occurring_lines,
    occurring_share,
    occurring_strings,
    strings,
)
from llmcli.formats.loading import load
from tests.conftest import TEXT

SENTENCE = "It was the best of times, it was the worst of times."


def test_a_string_may_span_pieces_but_not_documents() -> None:
    for size in [1, 7, 29, 30, 31, 60]:
        pieces = [SENTENCE[i : i + size] for i in range(0, len(SENTENCE), size)]
        candidates = set(strings([SENTENCE]))
        assert occurring_strings(candidates, [pieces]) == candidates, size
        within_pieces = set(strings(pieces))  # each piece a document of its own
        assert occurring_strings(candidates, [[piece] for piece in pieces]) == within_pieces, size


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_occurring_strings_equal_those_found_by_in(data: st.DataObject) -> None:
    letters = st.text(st.sampled_from("ab\n🍎り\ud800"), max_size=120)
    documents = data.draw(st.lists(st.lists(letters, max_size=4), max_size=3))
    own = data.draw(st.lists(letters, max_size=3))
    for pieces in documents[:1]:  # so that there are matches
        own.append("".join(pieces)[3:90])
    candidates = set(strings(own))
    truth = {string for string in candidates if any(string in "".join(pieces) for pieces in documents)}
    assert occurring_strings(candidates, documents) == truth


def test_hash_collisions_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "_TABLE_BITS", 1)
    candidates = set(strings([SENTENCE, "y" * 40]))
    assert occurring_strings(candidates, [[SENTENCE + " " + "z" * 50]]) == set(strings([SENTENCE]))


def test_shares_count_repeats() -> None:
    assert occurring_share(["a", "a", "b", "c"], {"a", "x"}) == 0.5


def set_generated_texts(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """From here on these are the texts that the model generates."""

    def generate_texts(*_: object) -> Iterator[str]:
        return iter(texts)

    monkeypatch.setattr(memorization, "_generate_texts", generate_texts)


def test_shares_of_generated_and_of_held_out_text(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    known, new = "abcdefghijklmnopqrstuvwxyz0123456789", "9876543210zyxwvutsrqponmlkjihgfedcba"
    set_generated_texts(monkeypatch, known, "A" + known[1:], "short")
    result = measure_memorization(
        checkpoint, tokenizer, np.array(tokenizer.encode(new + known)), [iter([known[:20], known[20:], "りんご"])]
    )
    assert result is not None
    assert result.strings == 14 and result.share == round(13 / 14, 4)
    assert result.held_out_share == round(7 / 43, 4)
    assert result.searched_bytes == 36 + 9


def test_held_out_text_ends_at_any_token_that_ends_a_text(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json).for_model(None, [7])
    known, other = "abcdefghijklmnopqrstuvwxyz0123456789", "9876543210zyxwvutsrqponmlkjihgfedcba"
    set_generated_texts(monkeypatch, known)
    for end in (tokenizer.eos_id, 7):
        held_out = np.array([*tokenizer.encode(known), end, *tokenizer.encode(other)])
        result = measure_memorization(checkpoint, tokenizer, held_out, [[known]])
        assert result is not None and result.held_out_share == 1


def test_texts_that_are_too_short_have_no_share(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    set_generated_texts(monkeypatch, "short", "")
    assert measure_memorization(checkpoint, tokenizer, np.array([5]), [["text"]]) is None
    set_generated_texts(monkeypatch, "x" * 30)
    alone = measure_memorization(checkpoint, tokenizer, np.array([], np.uint16), [["text"]])
    assert alone is not None and alone.held_out_share is None and alone.share == 0


@pytest.mark.slow
def test_the_measurement_is_reproducible_with_a_seed(tiny_model: Path) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    held = np.array(tokenizer.encode(TEXT))
    first, again, other = (measure_memorization(checkpoint, tokenizer, held, [[TEXT]], seed) for seed in (1, 1, 2))
    assert first is not None and first == again != other
    assert first.share == 0 and first.held_out_share == 1  # random weights; the held-out text is training text
    assert 0 < first.strings <= memorization.SAMPLED_CHARACTERS


def test_a_measurement_whose_time_is_over_ends_with_what_it_has(tiny_model: Path, monkeypatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    [text] = memorization._generate_texts(checkpoint, tokenizer, 0, lambda: True)
    assert len(tokenizer.encode(text)) <= 2  # one token, of eight texts
    set_generated_texts(monkeypatch, "x" * 30)
    pieces = ["a" * 40, "x" * 40, "b" * 40]
    answers = iter([False, True])  # asked before the second and the third piece
    result = measure_memorization(checkpoint, tokenizer, np.array([5]), [pieces], 0, lambda: next(answers))
    assert result is not None and (result.searched_bytes, result.share) == (80, 1.0)


def test_lines_that_occur_are_found_across_pieces() -> None:
    documents = [["Ann\nBe", "n\r\n", " Cara"], ["Dora", "Eve\ud800Fay\n"], ["Gil\nA", "n"], []]
    candidates = {"Ann", "Ben", "Cara", "Dora", "Eve", "DoraEve", "Fay", "Gil", "An", "Be", "n"}
    assert occurring_lines(candidates, documents) == {"Ann", "Ben", "Cara", "DoraEve", "Fay", "Gil", "An"}
