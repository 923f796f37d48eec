"""Which documents are nearly the same."""

import random
import string

from llmcli.data.text.near_duplicates import NEIGHBORS, SHARED, SHINGLE_BYTES, near_duplicates
from tests.data.corpora import corpus_of


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase + "  \n", k=count))


def containment(first: str, second: str) -> float:
    """The larger share of the strings of SHINGLE_BYTES bytes of one text that are in the other."""
    a, b = ({text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)} for text in (first, second))
    return len(a & b) / min(len(a), len(b))


def test_documents_that_share_most_strings_are_near_duplicates() -> None:
    for shared, are_near in [(0, False), (800, False), (4000, True), (9000, True)]:
        for seed in range(20):
            common = letters(shared, seed)
            texts = [common + letters(1000, 1000 * seed + i) for i in (1, 2)]
            assert (containment(*texts) > SHARED) == are_near, shared
            assert (len(near_duplicates(documents(*texts))) == 1) == are_near, shared


def documents(*texts: str) -> list:
    return list(corpus_of(*texts).documents)


def test_copies_and_versions_are_in_one_group() -> None:
    text = letters(5000, 0)
    changed = text[:2000] + "a new sentence. " + text[2000:4600] + letters(300, 1)
    other = letters(5000, 2)
    found = near_duplicates(documents(text, other, changed, "x", text, "x", letters(100, 3)))
    assert found == [[0, 2, 4], [1], [3, 5], [6]]
    assert near_duplicates([]) == []


def test_formats_that_break_lines_and_mark_words_differently_are_in_one_group() -> None:
    words = letters(9000, 0).split()
    wrapped = "\n    ".join(" ".join(words[i : i + 4]) for i in range(0, len(words), 4))
    marked = " ".join(f"*{word}*" if len(word) % 3 == 0 else word for word in words)
    assert near_duplicates(documents(" ".join(words), wrapped, marked, letters(9000, 1))) == [[0, 1, 2], [3]]


def test_versions_of_versions_are_in_one_group() -> None:
    """Each shares most of its text with the next, the first and the last share nothing."""
    parts = [letters(1000, seed) for seed in range(30)]
    versions = ["".join(parts[i : i + 20]) for i in range(0, 10, 2)]
    assert containment(versions[0], versions[-1]) < SHARED
    assert near_duplicates(documents(*versions, letters(9000, 99))) == [[0, 1, 2, 3, 4], [5]]


def test_a_common_header_does_not_join_documents() -> None:
    """Of 200 documents, of which two are nearly the same besides."""
    header = letters(1500, 0)
    texts = [header + letters(4000, seed) for seed in range(1, 200)]
    found = near_duplicates(documents(*texts, texts[50] + "the end"))
    assert [group for group in found if len(group) > 1] == [[50, 199]] and len(found) == 199


def test_a_document_is_with_the_one_that_contains_it() -> None:
    text, other = letters(9000, 0), letters(9000, 1)
    found = near_duplicates(documents(text, other, text[:3000], other[4000:6000], letters(20, 5)))
    assert found == [[0, 2], [1, 3], [4]]


def test_a_document_that_is_a_common_header_joins_none_of_the_others() -> None:
    header = letters(1000, 0)
    found = near_duplicates(documents(*(header + letters(9000, seed) for seed in range(1, 40)), header))
    assert max(map(len, found)) <= 1 + NEIGHBORS
