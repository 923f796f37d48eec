"""Training a tokenizer: the size of the vocabulary follows the text."""

import random
import string

from llmcli.data.tokenizers import training
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.data.tokenizers.training import train_tokenizer
from tests.data.corpora import corpus_of


def words(count, seed=0, letters=string.ascii_lowercase):
    """Random text with repeated words."""
    rng = random.Random(seed)
    known = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(200)]
    return " ".join(rng.choices(known, k=count)) + "\n"


def test_the_target_size_grows_with_the_text(monkeypatch):
    for train_bytes, expected in [
        (1, 512),  # 512 at least
        (700_000, 512),
        (800_000, 1024),
        (2_000_000, 2048),
        (2_500_000, 2048),
        (8_000_000, 8192),
        (10**12, 8192),  # 8192 at most
    ]:
        targets = []
        monkeypatch.setattr(
            Tokenizer, "train_bpe", lambda texts, size, to=targets: to.append(size) or Tokenizer.train_char([""])
        )
        train_tokenizer(corpus_of("t"), other_bytes=train_bytes - 1)
        assert targets == [expected], train_bytes


def test_a_varied_text_gets_the_target_size():
    text = " ".join(f"{n * 7919 % 99991:x}" for n in range(20_000))
    tokenizer, reason = train_tokenizer(corpus_of(text), other_bytes=900_000)  # as if it were that much longer
    assert tokenizer.vocab_size == 1024
    assert reason.startswith("about one token per 1,000 bytes")


def test_a_text_with_few_pairs_gives_a_smaller_vocabulary():
    tokenizer, reason = train_tokenizer(corpus_of("abab abab"))
    assert 261 <= tokenizer.vocab_size < 274
    assert reason == "no more pairs to merge in the corpus"


def test_a_requested_size_is_trained():
    tokenizer, reason = train_tokenizer(corpus_of(words(1000)), 300)
    assert (tokenizer.vocab_size, reason) == (300, "as requested")


def test_each_character_becomes_a_token():
    corpus = corpus_of("りんごとリンゴ🍎")
    tokenizer, reason = train_tokenizer(corpus, characters=True)
    assert tokenizer.vocab_size == 261 + 8  # り ん ご と リ ン ゴ 🍎
    assert reason == "one token per character, as requested"
    assert train_tokenizer(corpus, 264, characters=True)[0].vocab_size == 264


def test_a_tokenizer_is_trained_on_evenly_sampled_parts_of_a_long_corpus(monkeypatch):
    text = words(5000)
    corpus = corpus_of(text)
    monkeypatch.setattr(training, "TRAINING_BYTES", 6400)
    tokenizer, _ = train_tokenizer(corpus, 300)
    parts = [piece for part in corpus.sample(6400).texts() for piece in part]
    assert len("".join(parts)) == 6400
    assert tokenizer.to_json() == Tokenizer.train_bpe(parts, 300).to_json()
