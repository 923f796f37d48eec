"""Which documents are nearly the same."""

import random
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.text.corpus import read_corpus
from llmcli.data.text.near_duplicates import (
    SEARCHED_STEP,
    SHINGLE_BYTES,
    SIMILARITY,
    Passages,
    near_duplicates,
    similarity,
    sketch,
)


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase + "  \n", k=count))


def jaccard(first: bytes, second: bytes) -> float:
    """Of the sets of all strings of SHINGLE_BYTES bytes."""
    a, b = ({text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)} for text in (first, second))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("shared", [0, 500, 1000, 2000, 4000])
def test_the_similarity_of_sketches_estimates_that_of_the_texts(shared: int) -> None:
    """Over 40 pairs the mean is within three standard deviations of the mean of 64 hashes each."""
    estimates, truths = [], []
    for seed in range(40):
        common = letters(shared, seed)
        first, second = ((common + letters(1000, 1000 * seed + i)).encode() for i in (1, 2))
        estimates.append(similarity(sketch(first), sketch(second)))
        truths.append(jaccard(first, second))
    truth = np.mean(truths)
    assert np.mean(estimates) == pytest.approx(truth, abs=3 * max(truth * (1 - truth), 1e-9) ** 0.5 / (64 * 40) ** 0.5)


@given(st.binary(max_size=200))
def test_a_text_is_like_itself_however_short(data: bytes) -> None:
    assert similarity(sketch(data), sketch(data)) == 1


def documents(*texts: str) -> list:
    for i, text in enumerate(texts):
        Path(f"{i}.txt").write_text(text, "utf-8")
    return list(read_corpus([f"{i}.txt" for i in range(len(texts))]).documents)


def test_copies_and_versions_are_in_one_group() -> None:
    text = letters(5000, 0)
    changed = text[:2000] + "a new sentence. " + text[2000:4600] + letters(300, 1)
    other = letters(5000, 2)
    found = near_duplicates(documents(text, other, changed, "x", text, "x", letters(100, 3)))
    assert found == [[0, 2, 4], [1], [3, 5], [6]]


def test_versions_of_versions_are_in_one_group() -> None:
    """Each shares most of its text with the next, the first and the last share nothing."""
    parts = [letters(1000, seed) for seed in range(30)]
    versions = ["".join(parts[i : i + 20]) for i in range(0, 10, 2)]
    assert jaccard(versions[0].encode(), versions[-1].encode()) < SIMILARITY
    assert near_duplicates(documents(*versions, letters(9000, 99))) == [[0, 1, 2, 3, 4], [5]]


def test_a_common_header_does_not_join_documents() -> None:
    """Of 200 documents, of which two are nearly the same besides."""
    header = letters(1500, 0)
    texts = [header + letters(4000, seed) for seed in range(1, 200)]
    found = near_duplicates(documents(*texts, texts[50] + "the end"))
    assert [group for group in found if len(group) > 1] == [[50, 199]] and len(found) == 199


def test_a_document_is_with_the_one_that_continues_it_however_long_that_is() -> None:
    text, other = letters(9000, 0), letters(9000, 1)
    assert near_duplicates(documents(text, other, text[:100], other[:5000], text[:20])) == [[0, 2], [1, 3], [4]]
    assert near_duplicates(documents(letters(90_000, 0), other, text[:100])) == [[0, 2], [1]]


def test_a_document_that_is_a_common_header_joins_none() -> None:
    header = letters(100, 0)
    assert len(near_duplicates(documents(header, *(header + letters(3000, seed) for seed in range(1, 4))))) == 4


@settings(max_examples=50)
@given(st.text("abé日", max_size=300), st.integers(0, 300), st.text("abé日", min_size=1, max_size=100))
def test_passages_are_where_texts_first_share_a_string(shared: str, start: int, other: str) -> None:
    """What stands before repeats nothing of the end of the text that is longer than a passage."""
    text, searched = documents(letters(300, 0) + shared + letters(100, 1), other + shared)
    data, before = text.utf8(0, text.text_bytes), searched.utf8(0, Passages(text, start).first_in(searched))
    length = SHINGLE_BYTES + SEARCHED_STEP + 3  # and what is inside a character
    repeated = {before[i : i + length] for i in range(len(before) - length + 1)}
    earlier = {data[i : i + SHINGLE_BYTES] for i in range(start - SHINGLE_BYTES + 1)}
    for passage in (data[i : i + length] for i in range(start, len(data) - length + 1)):
        if passage in repeated:  # then all its strings that were searched for occur in the text before its end
            assert any(passage[i : i + SHINGLE_BYTES] in earlier for i in range(len(passage) - SHINGLE_BYTES + 1))


def test_no_documents() -> None:
    assert near_duplicates([]) == []
