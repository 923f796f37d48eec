"""Bits per byte, on score functions whose probabilities are known for every token."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.corpus import read_corpus
from llmcli.data.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import Score, _Windows, evaluate, measure, passages
from llmcli.evaluation.training_text import held_out_start, trained_bytes, was_trained_on

CHANCES = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])  # of token 0 (the end of text), 1, 2, 3, 4
LENGTHS = np.array([0, 1, 2, 3, 7])  # its bytes


def by_token(block):
    """Nats of each target, whatever stands before it; the likeliest is always 0."""
    return -np.log(CHANCES[block[:, 1:]]), block[:, 1:] == 0


def by_pair(block):
    """Nats of each target by it and the token before: any step beside the right place changes the sum."""
    return 0.1 + block[:, :-1] * 0.37 + block[:, 1:] * 0.011, block[:, 1:] == (block[:, :-1] + 1) % 5


def all_alike(nats):
    """The same nats for each target, none of them the likeliest."""
    return lambda block: (np.full(block[:, 1:].shape, nats), np.zeros(block[:, 1:].shape, bool))


ids_of = st.lists(st.integers(0, 4), min_size=0, max_size=90).map(lambda ids: np.array(ids, np.uint16))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(1, 40))
def test_windows_count_every_position_once_with_half_a_context_before_it(count, context):
    counted = []
    for number, (start, first, end) in enumerate(_Windows(count, context)):
        assert 0 <= start < first < end <= count
        assert end - start <= context + 1
        if number:
            assert first - start >= context // 2
        counted += range(first, end)
    assert counted == list(range(1, count))


@pytest.mark.parametrize(
    ("count", "context", "expected"),
    [
        (0, 4, []),
        (1, 4, []),
        (2, 4, [(0, 1, 2)]),
        (5, 4, [(0, 1, 5)]),
        (6, 4, [(0, 1, 5), (1, 5, 6)]),
        (9, 4, [(0, 1, 5), (2, 5, 7), (4, 7, 9)]),
        (4, 1, [(0, 1, 2), (1, 2, 3), (2, 3, 4)]),
    ],
)
def test_windows_of_small_texts(count, context, expected):
    assert list(_Windows(count, context)) == expected


def test_bits_per_byte_by_hand():
    ids = np.array([0, 1, 2, 0, 3, 1, 4], np.uint16)  # what is scored: 1 2 0 3 1 4
    found = evaluate(ids, LENGTHS, 4, by_token)
    bits, size = 2 + 3 + 1 + 4 + 2 + 4, 1 + 2 + 0 + 3 + 1 + 7
    assert found.tokens == 6
    assert found.bytes == size
    assert found.nats == pytest.approx(bits * math.log(2), abs=1e-9)
    assert found.bits_per_byte == pytest.approx(bits / size, abs=1e-9)
    assert found.perplexity == pytest.approx(2 ** (bits / 6), abs=1e-9)
    assert found.accuracy == 1 / 6
    assert found + found == Score(2 * found.nats, 12, 2 * size, 2)


def test_a_uniform_model_of_bytes_needs_8_bits_for_each():
    ids = np.arange(200) % 256
    found = evaluate(ids, np.ones(256, int), 16, all_alike(math.log(256)))
    assert found.bits_per_byte == pytest.approx(8, abs=1e-9)
    assert found.perplexity == pytest.approx(256, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(ids_of, st.integers(1, 20), st.integers(1, 200))
def test_each_token_is_scored_once_in_its_place_whatever_the_windows_and_batches(ids, context, batch_tokens):
    found = evaluate(ids, LENGTHS, context, by_pair, batch_tokens=batch_tokens)
    pairs = list(zip(ids.tolist(), ids.tolist()[1:], strict=False))
    assert found.tokens == len(pairs)
    assert found.bytes == sum(LENGTHS[b] for _, b in pairs)
    assert found.nats == pytest.approx(sum(0.1 + a * 0.37 + b * 0.011 for a, b in pairs), abs=1e-9)
    assert found.correct == sum(b == (a + 1) % 5 for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 90), st.integers(1, 20), st.integers(1, 200))
def test_the_model_is_shown_windows_of_the_text_and_no_more_than_asked(count, context, batch_tokens):
    text = np.arange(1, count + 1)  # each token tells its place; 0 is what fills up

    def score(block):
        assert block.shape[1] <= context + 1
        assert len(block) * context <= max(batch_tokens, context)
        for row in block:
            window = row[: int((row > 0).sum())]
            np.testing.assert_array_equal(window, np.arange(window[0], window[0] + len(window)))
        return all_alike(0.0)(block)

    assert evaluate(text, np.ones(count + 1, int), context, score, batch_tokens=batch_tokens).tokens == count - 1


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 500), st.integers(1, 20), st.integers(1, 600), st.integers(1, 200))
def test_max_tokens_limits_what_is_scored(count, context, most, batch_tokens):
    shown = []

    def score(block):
        shown.extend(int(row.max()) for row in block)
        return all_alike(1.0)(block)

    options = {"max_tokens": most, "batch_tokens": batch_tokens}
    found = evaluate(np.arange(count), np.ones(count, int), context, score, **options)
    first = context - context // 2  # what the first window counts more than the others
    assert found.tokens <= max(most, context // 2) + first
    assert found.tokens >= min(count - 1, max(1, most - context))
    assert found.nats == found.tokens == found.bytes
    assert len(set(shown)) == len(shown)  # no window twice


def test_with_max_tokens_the_windows_are_spread_from_the_beginning_to_the_end():
    shown = []

    def score(block):
        shown.extend(int(row.max()) for row in block)
        return all_alike(0.0)(block)

    found = evaluate(np.arange(981), np.ones(981, int), 20, score, max_tokens=50)
    assert shown == [20, 260, 500, 740, 980]  # the last token of each
    assert found.tokens == 20 + 4 * 10


def test_max_tokens_beyond_the_text_scores_all_of_it():
    ids = np.arange(77) % 5
    assert evaluate(ids, LENGTHS, 8, by_token, max_tokens=10_000) == evaluate(ids, LENGTHS, 8, by_token)


class Endless:
    """Ids of a text far larger than memory, made where they are asked for."""

    def __len__(self):
        return 10**13

    def __getitem__(self, span):
        return np.arange(span.start, span.stop) % 5


def test_what_is_scored_of_a_text_decides_the_work_not_its_length(no_hang):
    found = evaluate(Endless(), LENGTHS, 8, by_token, max_tokens=1000)
    assert 1000 <= found.tokens <= 1008


@pytest.mark.parametrize("ids", [[], [0]])
def test_a_text_without_tokens_has_no_figures(ids):
    found = evaluate(np.array(ids, np.int64), LENGTHS, 8, by_token, max_tokens=5)
    assert (found.nats, found.tokens, found.bytes) == (0, 0, 0)
    assert math.isnan(found.bits_per_byte)
    assert math.isnan(found.perplexity)
    assert math.isnan(found.accuracy)


def test_a_hopeless_model_has_a_finite_perplexity():
    assert math.isfinite(Score(nats=1e9, tokens=1, bytes=1).perplexity)


# ---- texts on disk, and what a record says of them


def corpus_of(*texts):
    for i, text in enumerate(texts):
        Path(f"{i}.txt").write_text(text, "utf-8")
    return read_corpus([f"{i}.txt" for i in range(len(texts))])


def record_of(corpus, learned):
    return {"corpus": [{"sha256": d.sha256} for d in corpus.documents], "train_bytes": learned}


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, ["one", "りんご", "three"]), (2, ["e", "りんご", "three"]), (3, ["りんご", "three"]), (4, ["んご", "three"]),
     (13, ["hree"]), (17, [])],
)  # fmt: skip
def test_passages_are_the_documents_from_a_byte_on(start, expected):
    found = passages(corpus_of("one", "りんご", "three"), start)
    assert ["".join(passage.text()) for passage in found] == expected
    assert [passage.name for passage in found] == ["0.txt", "1.txt", "2.txt"][3 - len(expected) :]


def test_the_end_that_no_model_learned_from():
    corpus, other = corpus_of("one", "two", "three"), {"corpus": [{"sha256": "x"}], "train_bytes": 5}
    a, b, everything = (record_of(corpus, n) for n in (6, 8, 11))
    assert (trained_bytes(corpus, a), trained_bytes(corpus, other), trained_bytes(corpus, {})) == (6, None, None)
    assert held_out_start(corpus, [a]) == held_out_start(corpus, [other, a]) == 6
    assert held_out_start(corpus, [a, b]) == 8
    assert held_out_start(corpus, [other]) == held_out_start(corpus, []) == held_out_start(corpus, [b, everything]) == 0
    reordered = {**a, "corpus": a["corpus"][::-1]}
    assert held_out_start(corpus, [reordered]) == 0
    known = [was_trained_on(corpus, r, s) for r, s in [(a, 6), (a, 0), (everything, 0), (reordered, 0), (other, 0)]]
    assert known == [False, True, True, True, False]


@pytest.mark.parametrize(
    "record", [{"corpus": 7}, {"corpus": [3, {}]}, {"corpus": None}, {"train_bytes": "x"}, {"train_bytes": 10**9}]
)
def test_a_record_of_another_shape_tells_nothing(record):
    corpus = corpus_of("one")
    assert trained_bytes(corpus, record_of(corpus, 2) | record) is None


class Model:
    """Tells every token alike."""

    context = 8

    def __init__(self, nats):
        self.score = all_alike(nats)


def test_measure_counts_every_token_and_byte_of_the_text():
    tokenizer = Tokenizer.train_bpe(["The cat りんご"] * 3, 270)
    text = "The cat りんご\n" * 30
    [passage] = passages(corpus_of(text))
    told = []
    found = measure(passage, Model(2.0), tokenizer, told.append)
    count = len(tokenizer.encode(text))
    assert (found.tokens, found.bytes, found.nats) == (count, len(text.encode()), 2.0 * count)
    assert told == sorted(told) and told[-1] == 1.0
    assert measure(passages(corpus_of(text), 5)[0], Model(2.0), tokenizer).bytes == len(text.encode()) - 5


def test_a_tokenizer_that_changes_the_text_is_told():
    made = json.loads(Tokenizer.train_bpe(["abc"], 257).to_json())
    tokenizer = Tokenizer.from_json(json.dumps(made | {"normalizer": {"type": "NFC"}}))
    plain, split = passages(corpus_of("caf\u00e9", "cafe\u0301"))
    assert measure(plain, Model(1.0), tokenizer).bytes == 5
    with pytest.raises(LLMError, match=r"changes 1\.txt: 6 bytes of text become 5"):
        measure(split, Model(1.0), tokenizer)


def test_a_model_that_answers_no_number_is_told():
    with pytest.raises(LLMError, match="NaN or infinite logits"):
        measure(passages(corpus_of("abc"))[0], Model(math.nan), Tokenizer.train_bpe(["abc"], 257))
