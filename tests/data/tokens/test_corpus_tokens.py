"""Tokens of a long text in pieces: those of the whole, whatever the cache holds or cannot hold."""

import gzip
import itertools
import os
import random
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from llmcli.data.text.corpus import Corpus, DocumentPart
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens import corpus_tokens
from llmcli.data.tokens import token_store as token_cache
from llmcli.data.tokens.corpus_tokens import cache_key, divide, noted, tokenize_corpus
from llmcli.data.tokens.token_store import TokenCache, cache_directory
from llmcli.data.tokens.tokens import tokenize
from llmcli.errors import LLMError
from tests import platforms
from tests.conftest import TEXT
from tests.data.corpora import FullDisk, put, read_corpus
from tests.data.tokenizers.test_tokenizer import without_chat_tokens

BPE = Tokenizer.train_bpe([TEXT], 280)
CHAR = Tokenizer.train_char([TEXT])
LETTERS = ["word", "Ünder", "りんご", "🍎", " ", "\n", "  \n", "don't", "1", "."]


def random_text(seed: int, pieces: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(LETTERS, k=pieces))


@pytest.fixture(autouse=True)
def small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of about 500 bytes, and a cache of the test's own, which also short texts use."""
    monkeypatch.setattr(corpus_tokens, "PIECE_BYTES", 500)
    monkeypatch.setattr(corpus_tokens, "CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def corpus() -> Corpus:
    """A long text, some short ones, and a compressed one."""
    texts = [random_text(1, 2000), *(random_text(i, 12) for i in range(2, 9)), " ", random_text(9, 700)]
    names = [put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)]
    return read_corpus([*names, put("b.gz", gzip.compress(random_text(11, 600).encode()))])


def cached() -> list[Path]:
    return [file.path for file in TokenCache(cache_directory()).files()]


class CountingTokenizer(Tokenizer):
    """Counts the texts that it encodes, and fails at one of them."""

    count, fails_at = 0, -1

    @classmethod
    def like(cls, other: Tokenizer, fails_at: int = -1) -> "CountingTokenizer":
        counting = cls.from_json(other.to_json())
        counting.fails_at = fails_at
        return counting

    def encode_stream(self, texts: Iterable[str], *, continued: bool = False) -> "Iterator[array[int]]":
        self.count += 1
        if self.count == self.fails_at:
            raise KeyboardInterrupt
        return super().encode_stream(texts, continued=continued)


@pytest.mark.parametrize("tokenizer", [BPE, CHAR, without_chat_tokens("spm")], ids=["bpe", "char", "spm"])
def test_pieces_have_the_tokens_of_the_whole(tokenizer: Tokenizer) -> None:
    whole = tokenize(corpus().texts(), tokenizer)
    assert len(list(divide(corpus().contents, tokenizer))) > 10
    for _ in range(2):  # made, and read
        tokens = tokenize_corpus(corpus().contents, tokenizer)
        assert tokens.tolist() == whole.tolist() and tokens.dtype == whole.dtype
        assert len(cached()) == 1
    sample = corpus().sample(3000)
    assert tokenize_corpus(sample.contents, tokenizer).tolist() == tokenize(sample.texts(), tokenizer).tolist()


def test_the_next_run_on_the_same_text_tokenizes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize_corpus(corpus().contents, BPE)
    counting = CountingTokenizer.like(BPE)
    tokenize_corpus(corpus().contents, counting)
    assert counting.count == 0
    tokenize_corpus(corpus().contents, CHAR)
    assert len(cached()) == 2
    monkeypatch.setattr(corpus_tokens, "CACHED_BYTES", 10**6)  # a short text
    tokenize_corpus(corpus().contents, counting)
    assert counting.count > 0 and len(cached()) == 2


def test_an_interrupted_run_leaves_nothing() -> None:
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(corpus().contents, CountingTokenizer.like(BPE, fails_at=8))
    assert cached() == []


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_what_is_no_token_file_is_made_again() -> None:
    expected = tokenize_corpus(corpus().contents, BPE).tolist()
    (path,) = cached()
    content = path.read_bytes()
    for data in (b"", b"{}", b"[1]" + bytes(5000), content[:-2], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(data)
        assert tokenize_corpus(corpus().contents, BPE).tolist() == expected
        assert path.read_bytes() == content
    for replace in (os.mkfifo, os.mkdir):
        path.unlink()
        replace(path)
        assert tokenize_corpus(corpus().contents, BPE).tolist() == expected
        assert path.is_file() == (replace is os.mkfifo)


def unwritable(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", str(Path(put("file", b"")).absolute()))


def test_without_a_cache_the_tokens_are_the_same_and_one_note_says_why() -> None:
    whole = tokenize(corpus().texts(), BPE).tolist()
    no_space = mock.Mock(side_effect=OSError(28, "No space left on device"))
    for problem, note in [
        (unwritable, "cannot be written: "),
        (lambda patch: patch.setattr(token_cache.os, "replace", no_space), "cannot be written: No space left"),
        (lambda patch: patch.setenv("LLMCLI_CACHE_GB", "5e-6"), "is limited to 5.00 kB"),
    ]:
        notes: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            problem(patch)
            assert tokenize_corpus(corpus().contents, BPE, notes.append).tolist() == whole
        assert len(notes) == 1 and re.match(f"the tokens are not kept for the next run: .*llmcli {note}", notes[0])


def test_with_the_cache_turned_off_or_without_a_home_directory_nothing_is_kept(monkeypatch, tmp_path: Path) -> None:
    for directory in [None, "unused"]:
        monkeypatch.setenv("LLMCLI_CACHE_GB", "0")
        found = tmp_path / directory if directory else None
        monkeypatch.setattr("llmcli.data.tokens.corpus_tokens.cache_directory", lambda found=found: found)
        notes: list[str] = []
        tokens = tokenize_corpus(corpus().contents, BPE, notes.append)
        assert tokens.tolist() == tokenize(corpus().texts(), BPE).tolist(), directory
        assert notes == [] and not (tmp_path / "unused").exists(), directory


def test_if_no_disk_has_space_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    read = corpus()
    unwritable(monkeypatch)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FullDisk())
    with pytest.raises(LLMError, match=r"cannot store the tokens in .*No space left.*TMPDIR"):
        tokenize_corpus(read.contents, BPE)


def test_the_tokens_of_a_file_that_changes_meanwhile_are_not_kept() -> None:
    read = corpus()
    os.utime("0.txt", (1, 1))
    tokens = tokenize_corpus(read.contents, BPE)
    assert cached() == []
    assert tokens.tolist() == tokenize_corpus(corpus().contents, BPE).tolist()
    assert len(cached()) == 1


# ---- notes


def notes_of(total: int, part: int, seconds: float) -> list[str]:
    """The notes of a text of which `part` bytes are tokenized every so many seconds."""
    notes: list[str] = []
    clock = (seconds * count for count in itertools.count())
    pieces = ((min(part, total - start), b"") for start in range(0, total, part))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_tokens, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        assert list(noted(pieces, total, notes.append))
    return notes


def test_a_long_text_has_a_note_soon_and_others_less_and_less_often() -> None:
    notes = notes_of(9_000_000_000, 16_000_000, 2.5)  # 6.4 MB/s: 1,407.5 s
    assert notes[0] == "tokenizing 9.00 GB of text"
    assert notes[1] == "tokenized 1 %"  # 8 parts, 1.4 %, after 20 s
    assert 10 <= len(notes) <= 16 and notes[-1].startswith("tokenized ")


# ---- pieces


def pieces_of(*texts: str, piece_bytes: int) -> list[tuple[DocumentPart, bool]]:
    corpus = read_corpus([put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_tokens, "PIECE_BYTES", piece_bytes)
        return list(divide(corpus.contents, BPE))


def test_pieces_are_the_whole_text_in_order_and_of_about_one_size() -> None:
    for seed in range(8):
        texts = [random_text(seed * 10 + i, 30 + 200 * (i % 3)) for i in range(6)]
        read: dict[str, str] = {}
        for piece, continues in pieces_of(*texts, piece_bytes=300):
            name = piece.document.name
            assert continues is (name in read) and piece.text_bytes <= 300 + 150, seed
            read[name] = read.get(name, "") + "".join(piece.text())
        assert list(read.values()) == texts, seed


def test_a_piece_that_continues_a_text_begins_before_a_space_or_line_end() -> None:
    pieces = pieces_of(random_text(3, 3000), piece_bytes=500)
    assert len(pieces) > 5
    assert all(continues and next(piece.text())[0] in " \n" for piece, continues in pieces[1:])


def test_a_text_without_spaces_is_cut_at_the_end_of_a_character() -> None:
    pieces = pieces_of("りんご" * 100, piece_bytes=100)
    assert len(pieces) > 5 and all(text for text in ("".join(piece.text()) for piece, _ in pieces))
    assert "".join("".join(piece.text()) for piece, _ in pieces) == "りんご" * 100


def test_the_key_names_text_and_tokenizer_but_no_file(tmp_path: Path) -> None:
    def parts(name: str, text: bytes) -> tuple[DocumentPart, ...]:
        return read_corpus([put(name, text)]).contents

    key = cache_key(parts("a.txt", b"a few words"), "hash")
    assert key == cache_key(parts("b.txt", b"a few words"), "hash")
    others = [cache_key(parts("a.txt", b"a few Words"), "hash"), cache_key(parts("b.txt", b"a few words"), "other")]
    assert len({key, *others}) == 3
