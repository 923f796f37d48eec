"""Tokens of a long text in shards: those of the whole, whatever the cache holds or cannot hold."""

import gzip
import json
import os
import random
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llmcli.data.sources import read_corpus
from llmcli.data.text.corpus import Corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens import corpus_tokens
from llmcli.data.tokens import token_store as token_cache
from llmcli.data.tokens.corpus_tokens import (
    ShardText,
    TokenizingProgress,
    divide,
    label,
    tokenize_in_shards,
    tokenizer_hash,
)
from llmcli.data.tokens.token_store import TokenCache, cache_directory
from llmcli.data.tokens.tokens import count_bytes, tokenize, used_tokens
from llmcli.errors import LLMError
from tests import platforms
from tests.conftest import TEXT
from tests.data.corpora import FullDisk, put

BPE = Tokenizer.train_bpe([TEXT], 280)
CHAR = Tokenizer.train_char([TEXT])
LETTERS = ["word", "Ünder", "りんご", "🍎", " ", "\n", "  \n", "don't", "1", "."]


def random_text(seed: int, pieces: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(LETTERS, k=pieces))


def spm() -> Tokenizer:
    """A SentencePiece tokenizer that puts a space before a text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "w", "o", "wo", "▁wo", "▁wor", "r"]
    inner = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, name in enumerate(names[:3])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": {name: i for i, name in enumerate(names)}, "merges": ["w o", "▁ wo", "▁wo r"],
        },
    }  # fmt: skip
    return Tokenizer.from_json(json.dumps(inner))


@pytest.fixture(autouse=True)
def small_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of about 500 bytes, in a cache of the test's own."""
    monkeypatch.setattr(corpus_tokens, "SHARD_BYTES", 500)
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


@pytest.mark.parametrize("tokenizer", [BPE, CHAR, spm()], ids=["bpe", "char", "spm"])
def test_shards_have_the_tokens_of_the_whole(tokenizer: Tokenizer) -> None:
    whole = tokenize(corpus().texts(), tokenizer)
    for _ in range(2):  # made, and read
        tokens = tokenize_in_shards(corpus().contents, tokenizer)
        assert len(cached()) > 10
        assert tokens[0 : len(tokens)].tolist() == whole.tolist() and tokens.dtype == whole.dtype
        assert tokens.text_bytes == count_bytes(whole, tokenizer.byte_lengths)
        used = used_tokens(whole, tokenizer.vocab_size)
        assert tokens.seen_bytes == {*b"".join(tokenizer.token_bytes[i] for i in used)}


def test_samples_of_a_text_are_separated_as_without_shards() -> None:
    read = corpus()
    whole = tokenize(read.sample(3000).texts(), BPE)
    tokens = tokenize_in_shards(read.sample(3000).contents, BPE)
    assert tokens[0 : len(tokens)].tolist() == whole.tolist()


def test_the_next_run_on_the_same_text_tokenizes_nothing() -> None:
    tokenize_in_shards(corpus().contents, BPE)
    counting = CountingTokenizer.like(BPE)
    tokenize_in_shards(corpus().contents, counting)
    assert counting.count == 0
    before = len(cached())
    tokenize_in_shards(corpus().contents, CHAR)
    assert len(cached()) == 2 * before


def test_an_interrupted_run_leaves_its_shards_for_the_next() -> None:
    total = CountingTokenizer.like(BPE)
    whole = tokenize_in_shards(corpus().contents, total)
    for path in cached():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        tokenize_in_shards(corpus().contents, CountingTokenizer.like(BPE, fails_at=8))
    assert 0 < len(cached()) < len(whole._shards)
    rest = CountingTokenizer.like(BPE)
    tokens = tokenize_in_shards(corpus().contents, rest)
    assert 0 < rest.count < total.count
    assert tokens[0 : len(tokens)].tolist() == whole[0 : len(whole)].tolist()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]" + bytes(5000)], ids=["empty", "cut", "other"])
def test_a_damaged_shard_is_made_again(damage: bytes) -> None:
    whole = tokenize_in_shards(corpus().contents, BPE)
    whole = whole[0 : len(whole)].tolist()
    path = cached()[3]
    before = path.read_bytes()
    for data in (damage, before[:-1], before[:-1] + bytes([before[-1] ^ 1])):
        path.write_bytes(data)
        tokens = tokenize_in_shards(corpus().contents, BPE)
        assert tokens[0 : len(tokens)].tolist() == whole
        assert path.read_bytes() == before


@platforms.named_pipes
@pytest.mark.usefixtures("no_hang")
def test_a_pipe_or_a_directory_in_place_of_a_shard_is_not_waited_for() -> None:
    """Also if it takes the place of a shard that was read before."""
    whole = tokenize_in_shards(corpus().contents, BPE)
    expected, path = whole[0 : len(whole)].tolist(), cached()[3]
    for replace in (os.mkfifo, os.mkdir):
        path.unlink()
        replace(path)
        assert whole[0 : len(whole)].tolist() == expected
        again = tokenize_in_shards(corpus().contents, BPE)
        assert again[0 : len(again)].tolist() == expected
        assert path.is_file() == (replace is os.mkfifo)
        whole = again


def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("file").absolute()))


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.os, "replace", write)


def little_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCLI_CACHE_GB", "3e-5")  # some shards


@pytest.mark.parametrize(
    ("problem", "note"),
    [
        (unwritable, "cannot write to .*file"),
        (full_disk, "cannot write to .*: No space left"),
        (little_space, "may have 30.00 kB"),
    ],
)
def test_without_a_cache_the_tokens_are_the_same_and_one_note_says_why(monkeypatch, problem: object, note: str) -> None:
    whole = tokenize(corpus().texts(), BPE).tolist()
    problem(monkeypatch)  # type: ignore[operator]
    notes: list[str] = []
    tokens = tokenize_in_shards(corpus().contents, BPE, notes.append)
    assert tokens[0 : len(tokens)].tolist() == whole
    assert len(notes) == 1 and re.match(f"some tokens are in a temporary file.* for the next run: .*{note}", notes[0])


@pytest.mark.parametrize("directory", [None, "unused"])
def test_with_the_cache_turned_off_or_without_a_home_directory_nothing_is_kept(
    monkeypatch, tmp_path: Path, directory: str | None
) -> None:
    monkeypatch.setenv("LLMCLI_CACHE_GB", "0")
    found = tmp_path / directory if directory else None
    monkeypatch.setattr("llmcli.data.tokens.corpus_tokens.cache_directory", lambda: found)
    notes: list[str] = []
    tokens = tokenize_in_shards(corpus().contents, BPE, notes.append)
    assert tokens[0 : len(tokens)].tolist() == tokenize(corpus().texts(), BPE).tolist()
    assert notes == [] and not (tmp_path / "unused").exists()


def test_if_no_disk_has_space_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    read = corpus()
    unwritable(monkeypatch)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: FullDisk())
    with pytest.raises(LLMError, match=r"cannot store the tokens in .*No space left.*TMPDIR"):
        tokenize_in_shards(read.contents, BPE)


def test_the_tokens_of_a_file_that_changes_meanwhile_are_not_kept() -> None:
    read = corpus()
    os.utime("0.txt", (1, 1))
    tokenize_in_shards(read.contents, BPE)
    complete = tokenize_in_shards(corpus().contents, BPE)
    assert len(cached()) == len(complete._shards)
    for path in cached():
        path.unlink()
    os.utime("0.txt", (2, 2))
    read = corpus()
    os.utime("0.txt", (3, 3))
    tokens = tokenize_in_shards(read.contents, BPE)
    assert 0 < len(cached()) < len(complete._shards)
    assert tokens[0 : len(tokens)].tolist() == complete[0 : len(complete)].tolist()


def test_texts_of_other_runs_make_room() -> None:
    tokenize_in_shards(corpus().contents, BPE)
    size = sum(path.stat().st_size for path in cached())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCLI_CACHE_GB", str(1.2 * size / 1e9))
        notes: list[str] = []
        tokens = tokenize_in_shards(corpus().contents, CHAR, notes.append)
    assert notes == [] and len(tokens._shards) <= len(cached()) < 2 * len(tokens._shards)


# ---- notes


def notes_of(total: int, cached: int, part: int, seconds: float) -> list[str]:
    """The notes of a text of which `part` bytes are tokenized every so many seconds."""
    notes: list[str] = []
    now = 0.0
    progress = TokenizingProgress(total, cached, notes.append, lambda: now)
    for start in range(0, total, part):
        now += seconds
        progress.add(min(part, total - start))
    return notes


def test_a_long_text_has_a_note_soon_and_others_less_and_less_often() -> None:
    notes = notes_of(9_000_000_000, 0, 16_000_000, 2.5)  # 6.4 MB/s: 1,407.5 s
    assert notes[0] == "tokenizing 9.00 GB of text"
    assert notes[1] == "tokenized 1 %, about 23m left"  # 8 parts, 1.4 %, after 20 s
    assert 10 <= len(notes) <= 16 and notes[-1].startswith("tokenized ")


def test_notes_are_seconds_apart() -> None:
    assert notes_of(9_000_000_000, 0, 16_000_000, 0.05) == [  # 28 s in all
        "tokenizing 9.00 GB of text",
        "tokenized 71 %, about 8s left",
    ]


def test_what_is_cached_is_named() -> None:
    assert notes_of(1_000_000_000, 8_000_000_000, 16_000_000, 0.05) == [
        "tokenizing 1.00 GB of text; 8.00 GB are cached"
    ]


def test_a_text_that_takes_seconds_has_no_notes() -> None:
    assert notes_of(15_000_000, 0, 1_000_000, 3.0) == []
    assert notes_of(0, 9_000_000_000, 16_000_000, 3.0) == []


def test_pieces_of_texts_count_as_bytes() -> None:
    notes: list[str] = []
    now = iter(range(0, 900, 30))
    progress = TokenizingProgress(32_000_000, 0, notes.append, lambda: next(now))
    texts = [["é" * 4_000_000] * 2, ["a" * 8_000_000] * 2]
    assert [list(text) for text in progress.counted(iter(map(iter, texts)))] == texts
    assert notes == ["tokenizing 32.00 MB of text", "tokenized 25 %, about 2m left", "tokenized 50 %, about 1m left",
                     "tokenized 75 %, about 30s left"]  # fmt: skip


# ---- the texts of shards


def texts_of(*texts: str, shard_bytes: int) -> list[ShardText]:
    corpus = read_corpus([put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_tokens, "SHARD_BYTES", shard_bytes)
        return list(divide(corpus.contents, BPE))


@pytest.mark.parametrize("seed", range(8))
def test_shards_are_the_whole_text_in_order_and_of_about_one_size(seed: int) -> None:
    texts = [random_text(seed * 10 + i, 30 + 200 * (i % 3)) for i in range(6)]
    shards = texts_of(*texts, shard_bytes=300)
    read: dict[str, str] = {}
    for shard in shards:
        for part in shard.parts:
            read[part.document.name] = read.get(part.document.name, "") + "".join(part.text())
        assert sum(part.end - part.start for part in shard.parts) <= 300 + 150
    assert list(read.values()) == texts
    assert [shard.is_first for shard in shards] == [True] + [False] * (len(shards) - 1)


def test_a_shard_that_continues_a_text_begins_before_a_space_or_line_end() -> None:
    shards = texts_of(random_text(3, 3000), shard_bytes=500)
    assert len(shards) > 5
    for shard in shards[1:]:
        assert not shard.begins_text
        assert next(shard.parts[0].text())[0] in " \n"


def test_a_text_without_spaces_is_cut_at_the_end_of_a_character() -> None:
    shards = texts_of("りんご" * 100, shard_bytes=100)
    assert all("".join(shard.parts[0].text()).encode() for shard in shards)
    assert "".join("".join(shard.parts[0].text()) for shard in shards) == "りんご" * 100


def test_short_texts_share_a_shard() -> None:
    shards = texts_of(*["some words\n"] * 10, shard_bytes=55)
    assert [len(shard.parts) for shard in shards] == [5, 5] and all(shard.begins_text for shard in shards)
    assert (label(shards), label(shards[1:]), label(texts_of("one", shard_bytes=9))) == (
        "0.txt and 9 more",
        "5.txt and 4 more",
        "0.txt",
    )


def test_the_key_names_text_and_tokenizer() -> None:
    one, other = texts_of("a few words " * 20, shard_bytes=120)
    hash_ = tokenizer_hash(BPE)
    assert one.key(hash_) == texts_of("a few words " * 20, shard_bytes=120)[0].key(hash_)
    others = [other.key(hash_), one.key(tokenizer_hash(Tokenizer.train_bpe([TEXT], 281)))]
    others.append(texts_of("a few Words " * 20, shard_bytes=120)[0].key(hash_))
    others.append(texts_of("a few words " * 20, shard_bytes=130)[0].key(hash_))
    assert len({one.key(hash_), *others}) == 5


def test_the_key_does_not_depend_on_the_name_of_the_file(tmp_path: Path) -> None:
    (one,) = texts_of("same words", shard_bytes=120)
    put("renamed.txt", b"same words")
    (other,) = divide(read_corpus(["renamed.txt"]).contents, BPE)
    assert one.key("") == other.key("")
