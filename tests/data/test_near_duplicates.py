"""Which documents are nearly the same."""

import random
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.data.corpus import read_corpus
from llmcli.data.near_duplicates import SHINGLE_BYTES, SIMILARITY, near_duplicates, similarity, sketch


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


def test_no_documents() -> None:
    assert near_duplicates([]) == []
