"""Finding the files of a corpus, and the text between two positions in it."""

import itertools
import os
import tempfile
from pathlib import Path

import pytest

from llmcli.data.text.corpus import find_files
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from tests import platforms
from tests.conftest import TEXT
from tests.data.corpora import error_of, joined, names, put, read_corpus
from tests.formats.test_atomic_io import as_nobody

# ---- finding files


def test_the_files_of_a_directory_are_sorted_and_hidden_ones_skipped() -> None:
    hidden = ("d/.hidden", "d/.git/config", "d/sub/.x/y", "d/__pycache__/a.txt", "d/node_modules/x/i.js")
    for name in ("d/b.txt", "d/a.md", "d/sub/deep/c", *hidden):
        put(name, name.encode())
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.md", "d/b.txt", "d/sub/deep/c"]
    assert joined(corpus) == "d/a.mdd/b.txtd/sub/deep/c"
    assert corpus.skipped == ()
    assert names(read_corpus(["d/.git"])) == ["d/.git/config"]


@platforms.named_pipes
def test_files_in_a_directory_that_are_not_text_are_skipped_with_a_reason(no_hang: None) -> None:
    put("d/a.txt", b"text")
    put("d/b.bin", b"\x01\x02xx\0\0")
    put("d/c.latin1", b"caf\xe9")
    os.mkfifo("d/pipe")
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.txt"]
    assert corpus.skipped[0] == "d: 1 name that cannot be opened as a file or a directory: pipe"
    assert [line.split(" ")[0] for line in corpus.skipped[1:]] == ["d/b.bin", "d/c.latin1"]
    assert "zero byte at position 4" in corpus.skipped[1]
    assert "0xe9 at position 3" in corpus.skipped[2]
    assert "d/b.bin is not text" in error_of(read_corpus, ["d/a.txt", "d/b.bin"])


@platforms.symbolic_links
def test_links_to_directories_are_not_followed_and_counted() -> None:
    put("d/a.txt", b"a")
    put("other/b.txt", b"b")
    for name, target in {"circle": ".", "other": "../other", "file.txt": "../other/b.txt", "broken": "c"}.items():
        Path("d", name).symlink_to(target)
    corpus = read_corpus(["d"])
    assert names(corpus) == ["d/a.txt", "d/file.txt"]
    assert corpus.skipped == ("d: 3 links to a directory or to nothing, not followed: broken, circle, other",)


def test_a_directory_without_text_is_an_error_with_a_reason() -> None:
    put("d/b.bin", b"\0")
    with pytest.raises(LLMError, match=r"no text found in d \(1 file skipped; .*d/b\.bin is not text"):
        read_corpus(["d"])
    Path("empty").mkdir()
    assert "no text found in empty;" in error_of(read_corpus, ["empty"])


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no modes here")
def test_a_directory_that_cannot_be_read_is_not_called_empty() -> None:
    with tempfile.TemporaryDirectory() as place:  # not in tmp_path, which another user cannot enter
        Path(place).chmod(0o300)
        with as_nobody():
            assert error_of(read_corpus, [place]) == f"cannot read {place}: Permission denied"


def test_the_matches_of_a_glob_pattern_are_sorted() -> None:
    for name in ("b.txt", "a.txt", "c.md", "d/e.txt", "d/f/g.txt"):
        put(name, name.encode())
    assert names(read_corpus(["*.txt"])) == ["a.txt", "b.txt"]
    assert names(read_corpus(["[bc].*"])) == ["b.txt", "c.md"]
    assert names(read_corpus(["**/*.txt"])) == ["a.txt", "b.txt", "d/e.txt", "d/f/g.txt"]
    assert names(read_corpus(["d*"])) == ["d/e.txt", "d/f/g.txt"]
    put("[a].txt", b"brackets")
    assert names(read_corpus(["[a].txt"])) == ["[a].txt"]  # an existing file


@platforms.symbolic_links
def test_a_pattern_does_not_follow_links_in_a_circle(no_hang: None) -> None:
    for name in ("d/a.txt", "d/e/b.txt", "d/.git/c.txt", "d/e/f/d.md"):
        put(name, name.encode())
    for name, target in {"d/self": ".", "d/e/up": "..", "d/e/top": "../.."}.items():
        Path(name).symlink_to(target)
    for pattern in ("**/*.txt", "d/**/*.txt", "d/**/[ab]**.txt"):
        assert names(read_corpus([pattern])) == ["d/a.txt", "d/e/b.txt"]
    assert names(read_corpus(["d/**"])) == ["d/a.txt", "d/e/b.txt", "d/e/f/d.md"]
    Path("d/loop.txt").symlink_to("loop.txt")
    with pytest.raises(LLMError, match=r"^(there is no file|cannot read) d/loop\.txt"):
        read_corpus(["d/*.txt"])


@platforms.symbolic_links
def test_a_file_named_twice_is_read_once() -> None:
    put("d/a.txt", b"a")
    put("d/b.txt", b"b")
    Path("link").symlink_to("d/a.txt")
    corpus = read_corpus(["d/a.txt", "d/../d/a.txt", "link", "d", "d/*.txt"])
    assert names(corpus) == ["d/a.txt", "d/b.txt"]
    assert joined(corpus) == "ab"
    assert len(corpus.skipped) == 5
    reasons = ("found twice", "the same file was found before, as d/a.txt")
    assert all(line.endswith(reasons) for line in corpus.skipped)


# ---- positions


def test_the_sample_of_a_long_text_is_evenly_spaced() -> None:
    text = "".join(f"{n:05d}" for n in range(2000))  # 10,000 bytes; each five give their position
    corpus = read_corpus([put("a.txt", text.encode())])
    parts = ["".join(part) for part in corpus.cut(100, 9000).sample(640).texts()]
    assert [len(part) for part in parts] == [10] * 64
    window_starts = [text.index(part) for part in parts]
    assert (window_starts[0], window_starts[-1]) == (100, 8990)  # nothing from beyond the ends
    gaps = [b - a for a, b in itertools.pairwise(window_starts)]
    assert max(gaps) - min(gaps) <= 10
    assert ["".join(part) for part in corpus.cut(100, 740).sample(640).texts()] == [text[100:740]]


def test_a_part_of_the_corpus_keeps_its_documents_separate() -> None:
    corpus = read_corpus([put("a", b"aaaa"), put("b", b"bbbb"), put("c", b"cccc")])
    assert ["".join(text) for text in corpus.cut(2, 9).texts()] == ["aa", "bbbb", "c"]
    assert ["".join(text) for text in corpus.cut(4, 8).texts()] == ["bbbb"]
    assert ["".join(text) for text in corpus.cut(4, 4).texts()] == []
    assert ["".join(text) for text in corpus.cut(12).texts()] == []


def test_a_part_that_begins_inside_the_last_character_of_a_document_omits_the_document() -> None:
    tokenizer = Tokenizer.train_char([TEXT])
    corpus = read_corpus([put("a", "aあ".encode()), put("b", b"xyz")])
    assert list(tokenize(corpus.cut(2).texts(), tokenizer)) == tokenizer.encode("xyz")


PAGE = b"<!DOCTYPE html><html><body><main><p>A page with a sentence that is long enough.</p></main></body></html>"


def test_of_a_web_site_only_the_pages_are_read() -> None:
    for name in ("index.html", "a.html", "b.html"):
        put(f"site/{name}", PAGE)
    for name in ("style.css", "searchindex.js"):
        put(f"site/_static/{name}", b"body { color: red }")
    put("site/notes.txt", b"Notes.")
    found, skipped = find_files(["site"])
    assert [file.relative_name for file in found] == ["a.html", "b.html", "index.html", "notes.txt"]
    assert skipped == ["site: 2 files beside the pages of a web site: searchindex.js, style.css"]


def test_the_scripts_of_a_program_are_text() -> None:
    for name in ("index.html", "game.js", "player.js", "style.css"):
        put(f"game/{name}", b"let x = 1;")
    assert len(find_files(["game"])[0]) == 4
