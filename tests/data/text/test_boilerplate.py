"""Boilerplate: headers and licenses of Project Gutenberg, and lines that many documents have."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversations.record_kinds import ReadOptions
from llmcli.data.sources import Sources, read_sources
from llmcli.data.text.boilerplate import MIN_DOCUMENTS, ONE_IN, estimate, repeated_lines
from tests.conftest import Llm
from tests.data.corpora import SMALL, put

STRIP = ReadOptions(strip_boilerplate=True)
NAVIGATION = ["Home | Products | About us | Contact", "", "Skip to the content of this page"]
FOOTER = ["Copyright 2020 Example Company. All rights reserved."]
HEADER = (
    "The Project Gutenberg eBook of Alice's Adventures\r\n\r\nThis ebook is for the use of anyone anywhere.\r\n\r\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK ALICE'S ADVENTURES IN\r\nWONDERLAND ***\r\n"
)
LICENSE = "*** END OF THE PROJECT GUTENBERG EBOOK ALICE'S ADVENTURES ***\r\n\r\nSection 1. General Terms of Use\r\n"


def story(seed: int, lines: int = 12) -> list[str]:
    """Lines that no other document has."""
    words = ["cat", "sat", "mat", "rain", "stone", "river", "bread", "night", "window", "garden"]
    choose = random.Random(seed)
    return [f"{seed}.{i} " + " ".join(choose.choices(words, k=12)) for i in range(lines)]


def write_pages(count: int, lines: int = 12) -> None:
    for i in range(count):
        put(f"site/{i:03}.txt", "\n".join([*NAVIGATION, "", *story(i, lines), "", *FOOTER, ""]).encode())


def texts(sources: Sources) -> list[str]:
    return ["".join(text) for text in sources.text.texts()]


def test_navigation_and_footers_are_cut_and_named() -> None:
    write_pages(20)
    sources = read_sources(["site"], STRIP)
    assert [text.strip() for text in texts(sources)] == ["\n".join(story(i)) for i in range(20)]
    [cuts] = sources.notes
    size = sum(len("\n".join([*NAVIGATION, *FOOTER])) for _ in range(20))
    assert cuts.startswith("boilerplate: ") and " cut from 20 documents: 60 repeated lines, most often " in cuts
    for line in (*NAVIGATION, *FOOTER):
        assert (repr(line) if len(line) <= 40 else f"{line[:40]}…") in cuts or not line
    [record, *_] = sources.records()
    assert record["skipped"] == [{"reason": "repeated line", "count": 3}]
    kept = sum(map(len, texts(sources)))
    assert size <= sum(path.stat().st_size for path in Path("site").iterdir()) - kept <= size + 20 * 5


def test_off_by_default_and_suggested_where_it_helps(llm: Llm) -> None:
    write_pages(20)
    assert all(text.startswith(NAVIGATION[0]) for text in texts(read_sources(["site"])))
    run = llm("train", "site", "--dry-run", *SMALL)
    assert "% of the text is boilerplate that documents repeat; to cut it: --strip-boilerplate\n" in run.stderr
    for i in range(20):
        put(f"prose/{i}.txt", "\n".join(story(100 + i)).encode())
    assert "boilerplate" not in llm("train", "prose", "--dry-run", *SMALL).stderr


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), documents=st.integers(1, 40))
def test_a_line_is_repeated_in_more_than_a_tenth_of_the_documents(counts: list[int], documents: int) -> None:
    lines: list[list[str]] = [story(i, 3) for i in range(documents)]
    marked = [f"a line that stands in some documents: {i}" for i in range(len(counts))]
    for line, count in zip(marked, counts, strict=True):
        for text in lines[:count]:
            text += [line, line]  # twice in a document counts once
    expected = [
        line
        for line, count in zip(marked, counts, strict=True)
        if min(count, documents) >= MIN_DOCUMENTS and ONE_IN * min(count, documents) > documents
    ]
    assert len(repeated_lines(lines, documents)) == len(expected)


def test_short_lines_are_cut_only_beside_others() -> None:
    """A brace or a common word alone is no boilerplate; a menu of one word a line is."""
    for i in range(10):
        menu = ["Home", "Products", "About", "Contact us"]
        put(f"d/{i}.txt", "\n".join([*menu, "", story(i)[0], "}", story(i)[1], "Yes.", story(i)[2]]).encode())
    for i, text in enumerate(texts(read_sources(["d"], STRIP))):
        assert text.strip() == "\n".join([story(i)[0], "}", story(i)[1], "Yes.", story(i)[2]])


def test_the_header_and_license_of_project_gutenberg_are_cut_from_a_single_text() -> None:
    body = "CHAPTER I.\r\nDown the Rabbit-Hole\r\n\r\nAlice was beginning to get very tired.\r\n"
    sources = read_sources([put("alice.txt", (HEADER + body + LICENSE).encode())], STRIP)
    assert texts(sources) == [body.removesuffix("\n")]
    assert "header and license of Project Gutenberg in 1: 0 repeated lines" in sources.notes[0]
    [record] = sources.records()
    assert record["skipped"] == [{"reason": "header and license of Project Gutenberg", "count": 1}]
    assert estimate(read_sources(["alice.txt"]).text.documents) > 0.5
    # an END without a START is text about it
    other = read_sources([put("b.txt", (body + LICENSE).encode())], STRIP)
    assert texts(other) == [body + LICENSE] and other.notes == ["boilerplate: none found, nothing is cut"]


def test_a_document_of_boilerplate_alone_is_named_without_being_called_empty() -> None:
    write_pages(9)
    put("site/menu.txt", "\n".join([*NAVIGATION, "", *FOOTER, ""]).encode())
    assert read_sources(["site"], STRIP).text.skipped == ("1 document without text: site/menu.txt",)


def test_documents_without_boilerplate_are_the_same_documents() -> None:
    for i in range(10):
        put(f"d/{i}.txt", "\n".join(story(i)).encode())
    assert read_sources(["d"], STRIP).text.documents == read_sources(["d"]).text.documents


def test_other_commands_cut_the_same_of_a_single_page(llm: Llm) -> None:
    """The record has the hashes of the lines, which one document alone does not show to be repeated."""
    write_pages(12, lines=40)
    trained = llm("train", "site", "--strip-boilerplate", *SMALL)
    assert trained.exit_code == 0 and "boilerplate: " in trained.stderr, trained.stderr
    one = llm("eval", "site/003.txt", "site/004.txt", "--json")
    assert one.exit_code == 0 and "trained on" in one.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_lines() -> None:
    import tracemalloc

    def peak(lines: int) -> int:
        tracemalloc.start()
        repeated_lines(((f"{document} {i} of the lines" for i in range(lines)) for document in range(5)), 5)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(10_000) < 1.01 * peak(1000) + 100_000
