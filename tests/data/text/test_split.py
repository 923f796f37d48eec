"""The training text and the held-out text of a corpus."""

import random
import shutil
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.text.corpus import Corpus
from llmcli.data.text.decoding import document_of_texts
from llmcli.data.text.repetitions import find_repetitions
from llmcli.data.text.split import CorpusSplit, split
from llmcli.data.text.temporary_files import TextCopy
from tests.data.corpora import put, read_corpus

HERE = Path()


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_lowercase, k=count))


def write(directory: str, sizes: Sequence[int]) -> Path:
    """A directory of documents of these sizes, some of them in a directory inside."""
    path = HERE / directory
    shutil.rmtree(path, ignore_errors=True)
    (path / "more").mkdir(parents=True)
    for i, size in enumerate(sizes):
        (path / ("more" if i % 3 else ".") / f"{i}.txt").write_text(letters(size, i))
    return path


def names(corpus: Corpus) -> set[str]:
    return {document.relative_name for document in corpus.documents}


def joined(corpus: Corpus) -> list[str]:
    return ["".join(text) for text in corpus.texts()]


@pytest.mark.slow
@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 400) | st.just(20_000), min_size=1, max_size=60),
    share=st.sampled_from([0.0, 0.1, 0.2, 0.5]),
)
def test_the_split_is_a_partition_of_about_the_right_size(sizes: list[int], share: float) -> None:
    """Of each document a first part is for training and the rest is held out; either may be empty."""
    corpus = read_corpus([str(write("c", sizes))])
    divided = split(corpus, share)
    parts = {part.document: "".join(part.text()) for part in divided.training.contents}
    for part in divided.held_out.contents:
        parts[part.document] = parts.get(part.document, "") + "".join(part.text())
    assert [parts[document] for document in corpus.documents] == joined(corpus)
    order = {document: i for i, document in enumerate(corpus.documents)}
    for side in (divided.training, divided.held_out):
        places = [order[document] for document in side.documents]
        assert places == sorted(places)
    wanted = share * corpus.text_bytes
    longest = max((part.text_bytes for part in corpus.contents if part.text_bytes <= wanted / 2), default=0)
    assert abs(divided.held_out.text_bytes - wanted) <= longest + len(sizes) / 2
    assert bool(divided.rule) == bool(divided.held_out.contents)


def test_of_many_documents_whole_ones_are_held_out() -> None:
    corpus = read_corpus([str(write("c", [1000] * 80))])
    divided = split(corpus, 0.1)
    assert names(divided.training) | names(divided.held_out) == names(corpus)
    assert not names(divided.training) & names(divided.held_out)
    assert len(divided.held_out.documents) == 8
    listed = [document.path.name for document in divided.held_out.documents][:3]
    assert divided.rule == f"8 of 80 documents: {', '.join(listed)}, ..."
    assert split(corpus, 0.2).rule.startswith("16 of 80 documents: ")
    for i in range(30):  # documents of the same name
        put(f"same/{i}/a.txt", letters(1000, i).encode())
    same = split(read_corpus(["same"]), 0.1)
    assert all(document.relative_name in same.rule for document in same.held_out.documents)
    assert names(divided.held_out) <= names(split(corpus, 0.2).held_out)


def test_of_few_or_long_documents_the_ends_are_held_out() -> None:
    for sizes, held_out, rule in [
        ([1000], [100], "the last tenth of the text"),
        ([1000, 2000, 300], [100, 200, 30], "the last tenth of each of 3 documents"),
        ([1000] * 10, [100] * 10, "the last tenth of each of 10 documents"),
        ([5000, 10], [500], "the last tenth of 0.txt"),
    ]:
        divided = split(read_corpus([str(write("c", sizes))]), 0.1)
        assert [part.text_bytes for part in divided.held_out.contents] == held_out and divided.rule == rule
    divided = split(read_corpus([put("a.txt", "あ".encode() * 1004)]), 0.1)  # not 301, inside a character
    assert divided.held_out.text_bytes == len(divided.held_out.utf8()) == 300


def test_of_a_long_document_among_short_ones_the_end_is_held_out_and_of_the_others_whole_ones() -> None:
    corpus = read_corpus([str(write("c", [50_000] + [1000] * 40))])
    divided = split(corpus, 0.1)
    ends = [part for part in divided.held_out.contents if part.start]
    assert [(part.document.relative_name, part.text_bytes) for part in ends] == [("0.txt", 5000)]
    assert len(divided.held_out.contents) == 1 + 4
    assert divided.rule.startswith("4 of 41 documents (") and divided.rule.endswith(") and the last tenth of 0.txt")
    assert split(corpus, 0.15).rule.endswith("and the last 0.15 of 0.txt")


@pytest.mark.slow
def test_neither_the_order_nor_the_place_of_the_files_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("c", [300 + 10 * i for i in range(60)])
    expected = names(split(read_corpus([str(path)]), 0.1).held_out)
    assert expected
    files = sorted((file for file in path.rglob("*.txt")), key=lambda file: file.name)
    for order in (files, files[::-1]):
        documents = [document for file in order for document in read_corpus([str(path)]).documents
                     if document.path == file]  # fmt: skip
        assert names(split(Corpus.of(documents), 0.1).held_out) == expected
    shutil.copytree(path, "elsewhere/deeper")
    assert names(split(read_corpus(["elsewhere/deeper"]), 0.1).held_out) == expected
    assert names(split(read_corpus(["elsewhere/deeper/**/*.txt"]), 0.1).held_out) == expected
    monkeypatch.chdir("elsewhere/deeper")
    assert names(split(read_corpus(["."]), 0.1).held_out) == expected
    assert names(split(read_corpus(["*"]), 0.1).held_out) == expected


def test_the_hash_of_a_name_decides() -> None:
    """What is held out is spread over the names: not one end of the alphabet."""
    held_out = split(read_corpus([str(write("c", [1000] * 400))]), 0.1).held_out
    numbers = sorted(int(document.path.stem) for document in held_out.documents)
    assert len(numbers) == 40 and numbers[0] < 40 and numbers[-1] >= 360
    assert all(sum(first <= number < first + 100 for number in numbers) >= 3 for first in range(0, 400, 100))


def test_one_more_file_changes_little() -> None:
    sizes = [1000] * 100
    before = names(split(read_corpus([str(write("c", sizes))]), 0.1).held_out)
    after = names(split(read_corpus([str(write("c", [*sizes, 1000]))]), 0.1).held_out)
    assert len(before ^ after) <= 2


def are_disjoint(divided: CorpusSplit) -> bool:
    """Whether no string of 200 characters of the held-out text is in the training text."""
    held_out, training = (
        (text[i : i + 200] for text in joined(corpus) for i in range(len(text) - 199))
        for corpus in (divided.held_out, divided.training)
    )
    return set(held_out).isdisjoint(training)


def split_without_repetitions(corpus: Corpus, share: float) -> CorpusSplit:
    """Split as a run does."""
    divided = split(corpus, share)
    found = find_repetitions(divided.training, divided.held_out, versions=divided.versions)
    return replace(divided, training=found.training)


def corpus_of(texts: dict[str, str]) -> Corpus:
    """A corpus of these files, in memory."""
    copy = TextCopy()
    documents = [document_of_texts(name, HERE / name, [text], copy) for name, text in sorted(texts.items())]
    return Corpus.of([replace(document, relative_name=document.name) for document in documents])


def beginnings(count: int, seed: int, growth: float = 0.0) -> dict[str, str]:
    """Documents of which each is the beginning of the next; the first has 1,000 letters. They grow by 1,000 letters, or
    by a factor."""
    sizes = [round(1000 * growth**i) if growth else 1000 * (i + 1) for i in range(count)]
    text = letters(sizes[-1], seed)
    return {f"version-{seed}-{size}.txt": text[:size] for size in sizes}


def test_of_versions_of_one_text_the_end_of_the_longest_is_held_out() -> None:
    """20 files of which each is the beginning of the next: they are one text."""
    divided = split_without_repetitions(corpus_of(beginnings(20, 0)), 0.1)
    [held_out] = divided.held_out.contents
    assert (held_out.document.relative_name, held_out.start, held_out.end) == ("version-0-20000.txt", 18_000, 20_000)
    trained = {part.document.relative_name: part.text_bytes for part in divided.training.contents}
    ends = {f"version-0-{size}.txt": min(size, 18_000) for size in range(1000, 20_001, 1000)}
    assert trained == ends and divided.rule == "the last tenth of version-0-20000.txt"


def test_the_common_end_of_many_versions_is_left_out_of_each() -> None:
    """A list of changes grows at its beginning: each of 20 releases ends like all before."""
    text = letters(40_000, 0)
    texts = {f"{i}.txt": text[1000 * (19 - i) :] for i in range(20)}
    divided = split_without_repetitions(corpus_of(texts), 0.1)
    assert names(divided.held_out) == {"19.txt"} and are_disjoint(divided)
    assert divided.training.text_bytes == sum(map(len, texts.values())) - 20 * 4000


def test_versions_beside_other_text_are_all_for_training() -> None:
    family = beginnings(6, 0)
    corpus = corpus_of(family | {f"{i}.txt": letters(1000, i + 1) for i in range(40)})
    divided = split(corpus, 0.1)
    assert {*family} <= names(divided.training) and not {*family} & names(divided.held_out)
    assert divided.held_out.text_bytes == 4000  # a tenth of the others
    assert divided.rule.endswith("; 6 near-duplicates, such as version-0-1000.txt, are all trained on")


def test_near_duplicate_books_are_one_text() -> None:
    """Another edition with a new foreword and a new last chapter."""
    book = letters(50_000, 0)
    second = letters(500, 1) + book[:20_000] + "new" + book[20_000:] + letters(4000, 2)
    divided = split_without_repetitions(corpus_of({"first.txt": book, "second.txt": second}), 0.1)
    assert names(divided.held_out) == {"second.txt"} and divided.training.text_bytes > 90_000


@settings(max_examples=40, deadline=None)
@given(
    edits=st.lists(
        st.lists(
            st.tuples(st.sampled_from(["insert", "delete", "move", "append", "prepend"]), st.integers(0, 9)),
            min_size=1, max_size=4,
        ),
        min_size=1, max_size=8,
    ),
    others=st.sampled_from([0, 3, 60]),
    size=st.sampled_from([4000, 20_000]),
    seed=st.integers(0, 1000),
)  # fmt: skip
@pytest.mark.slow
def test_no_version_however_edited_has_a_held_out_passage_of_another(
    edits: list[list[tuple[str, int]]], others: int, size: int, seed: int
) -> None:
    """Versions of one text of ten parts: a group is held out or kept as a whole, or nothing of its end is trained on,
    wherever that stands in other versions."""
    parts = [letters(size // 10, 100 * seed + i) for i in range(10)]
    texts = {f"{i}.txt": letters(1000, 10**6 + i) for i in range(others)} | {"original.txt": "".join(parts)}
    for number, changes in enumerate(edits):
        version = list(parts)
        for step, (what, where) in enumerate(changes):
            at = where % len(version)
            if what == "delete" and len(version) > 8:
                del version[at]
            elif what == "move":
                version.insert(where * 7 % len(version), version.pop(at))
            elif what in ("insert", "append", "prepend"):
                place = {"insert": at, "append": len(version), "prepend": 0}[what]
                version.insert(place, letters(size // 20, 10**7 + 1000 * seed + 10 * number + step))
        texts[f"version-{number}.txt"] = "".join(version)
    family = {name for name in texts if not name[0].isdigit()}
    divided = split_without_repetitions(corpus_of(texts), 0.1)
    held_out = names(divided.held_out) & family
    assert are_disjoint(divided)
    assert not held_out or held_out == family or len(held_out) == 1
