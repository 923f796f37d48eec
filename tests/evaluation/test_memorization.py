"""What a model recites: exact on texts made by hand, and what `in` says on any others."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation import memorization
from llmcli.evaluation.memorization import LENGTH, measure_memorization, occurring_strings, share, strings
from llmcli.formats.checkpoint import load
from tests.conftest import TEXT, random_checkpoint

SENTENCE = "It was the best of times, it was the worst of times."


def test_the_strings_of_a_text() -> None:
    assert list(strings(["a" * 29, "b" * 30, "c" + "d" * 30])) == ["b" * 30, "c" + "d" * 29, "d" * 30]
    assert list(strings([])) == []


def test_by_hand() -> None:
    wanted = {SENTENCE[:30], SENTENCE[5:35], SENTENCE[:29] + "!", "x" * 30}
    assert occurring_strings(wanted, [[SENTENCE]]) == {SENTENCE[:30], SENTENCE[5:35]}
    assert occurring_strings(wanted, [["x" * 29]]) == set()
    assert occurring_strings(wanted, []) == occurring_strings(set(), [[SENTENCE]]) == set()


@pytest.mark.parametrize("size", [1, 7, 29, 30, 31, 60])
def test_a_string_may_lie_across_pieces_but_not_across_documents(size: int) -> None:
    pieces = [SENTENCE[i : i + size] for i in range(0, len(SENTENCE), size)]
    wanted = set(strings([SENTENCE]))
    assert occurring_strings(wanted, [pieces]) == wanted
    whole = set(strings(pieces))  # each piece a document of its own
    assert occurring_strings(wanted, [[piece] for piece in pieces]) == whole


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_is_what_in_says(data: st.DataObject) -> None:
    letters = st.text(st.sampled_from("ab\n🍎り\ud800"), max_size=120)
    documents = data.draw(st.lists(st.lists(letters, max_size=4), max_size=3))
    own = data.draw(st.lists(letters, max_size=3))
    for pieces in documents[:1]:  # so that something stands there
        own.append("".join(pieces)[3:90])
    wanted = set(strings(own))
    truth = {string for string in wanted if any(string in "".join(pieces) for pieces in documents)}
    assert occurring_strings(wanted, documents) == truth


def test_chance_hits_of_the_filter_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorization, "_TABLE_BITS", 1)
    wanted = set(strings([SENTENCE, "y" * 40]))
    assert occurring_strings(wanted, [[SENTENCE + " " + "z" * 50]]) == set(strings([SENTENCE]))


def test_shares_count_repeats() -> None:
    assert share(["a", "a", "b", "c"], {"a", "x"}) == 0.5


def said(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """From here on the model says these texts."""

    def own_words(*_: object) -> Iterator[str]:
        return iter(texts)

    monkeypatch.setattr(memorization, "_generate_texts", own_words)


def test_the_model_and_the_held_out_text_are_asked_the_same(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    known, new = "abcdefghijklmnopqrstuvwxyz0123456789", "9876543210zyxwvutsrqponmlkjihgfedcba"
    said(monkeypatch, known, "A" + known[1:], "short")
    found = measure_memorization(
        checkpoint, tokenizer, np.array(tokenizer.encode(new + known)), [iter([known[:20], known[20:], "りんご"])]
    )
    assert found is not None
    assert found.strings == 14 and found.share == round(13 / 14, 4)
    assert found.held_out_share == round(7 / 43, 4)
    assert found.searched_bytes == 36 + 9


def test_too_few_words_are_no_share(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    said(monkeypatch, "short", "")
    assert measure_memorization(checkpoint, tokenizer, np.array([5]), [["text"]]) is None
    said(monkeypatch, "x" * 30)
    alone = measure_memorization(checkpoint, tokenizer, np.array([], np.uint16), [["text"]])
    assert alone is not None and alone.held_out_share is None and alone.share == 0


def test_a_model_talks_and_says_the_same_again_with_the_seed(tiny_model: Path) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    held = np.array(tokenizer.encode(TEXT))
    first, again, other = (measure_memorization(checkpoint, tokenizer, held, [[TEXT]], seed) for seed in (1, 1, 2))
    assert first is not None and first == again != other
    assert first.share == 0 and first.held_out_share == 1  # it learned nothing; the text repeats itself
    assert 0 < first.strings <= memorization.SAMPLED_CHARACTERS


def test_damaged_weights_are_told(tiny_model: Path) -> None:
    checkpoint = load(tiny_model)
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json)
    broken = random_checkpoint(checkpoint.config, tokenizer_json=checkpoint.tokenizer_json)
    broken.tensors["model.norm.weight"][:] = np.nan
    with pytest.raises(LLMError, match="NaN or infinite logits"):
        measure_memorization(broken, tokenizer, np.array([5]), [[TEXT]])


def test_the_steps_of_the_hash_make_up_the_length() -> None:
    assert int(np.prod(memorization._STEPS)) == LENGTH
