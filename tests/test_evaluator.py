"""Bits per byte, on score functions whose probabilities are known for every token."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.evaluator import Figures, _windows, evaluate

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
    for number, (start, first, end) in enumerate(_windows(count, context)):
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
    assert list(_windows(count, context)) == expected


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
    assert found + found == Figures(2 * found.nats, 12, 2 * size, 2)


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
    assert found.right == sum(b == (a + 1) % 5 for a, b in pairs)


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
def test_most_tokens_limits_what_is_scored(count, context, most, batch_tokens):
    shown = []

    def score(block):
        shown.extend(int(row.max()) for row in block)
        return all_alike(1.0)(block)

    options = {"most_tokens": most, "batch_tokens": batch_tokens}
    found = evaluate(np.arange(count), np.ones(count, int), context, score, **options)
    first = context - context // 2  # what the first window counts more than the others
    assert found.tokens <= max(most, context // 2) + first
    assert found.tokens >= min(count - 1, max(1, most - context))
    assert found.nats == found.tokens == found.bytes
    assert len(set(shown)) == len(shown)  # no window twice


def test_with_most_tokens_the_windows_are_spread_from_the_beginning_to_the_end():
    shown = []

    def score(block):
        shown.extend(int(row.max()) for row in block)
        return all_alike(0.0)(block)

    found = evaluate(np.arange(981), np.ones(981, int), 20, score, most_tokens=50)
    assert shown == [20, 260, 500, 740, 980]  # the last token of each
    assert found.tokens == 20 + 4 * 10


def test_most_tokens_beyond_the_text_scores_all_of_it():
    ids = np.arange(77) % 5
    assert evaluate(ids, LENGTHS, 8, by_token, most_tokens=10_000) == evaluate(ids, LENGTHS, 8, by_token)


@pytest.mark.parametrize("ids", [[], [0]])
def test_a_text_without_tokens_has_no_figures(ids):
    found = evaluate(np.array(ids, np.int64), LENGTHS, 8, by_token, most_tokens=5)
    assert (found.nats, found.tokens, found.bytes) == (0, 0, 0)
    assert math.isnan(found.bits_per_byte)
    assert math.isnan(found.perplexity)
    assert math.isnan(found.accuracy)


def test_a_hopeless_model_has_a_finite_perplexity():
    assert math.isfinite(Figures(nats=1e9, tokens=1, bytes=1).perplexity)
