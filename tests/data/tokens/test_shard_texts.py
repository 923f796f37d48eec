"""The texts of shards: together they are the corpus, and each is cut where a word begins."""

import random
from pathlib import Path

import pytest

from llmcli.data.text.corpus import read_corpus
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokens import shard_texts
from llmcli.data.tokens.shard_texts import ShardText, divide, label, tokenizer_hash
from tests.conftest import TEXT
from tests.data.corpora import put

BPE = Tokenizer.train_bpe([TEXT], 280)
LETTERS = ["word", "Ünder", "りんご", "🍎", " ", "\n", "  \n", "don't", "1", "."]


def random_text(seed: int, pieces: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(LETTERS, k=pieces))


def texts_of(*texts: str, shard_bytes: int) -> list[ShardText]:
    corpus = read_corpus([put(f"{i}.txt", text.encode()) for i, text in enumerate(texts)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_texts, "SHARD_BYTES", shard_bytes)
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
