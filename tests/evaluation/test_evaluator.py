"""Bits per byte, on score functions whose probabilities are known for every token."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.evaluator import Score, measure, text_windows
from tests.evaluation.scoring import evaluate

BYTE_LENGTHS = np.array([0, 1, 2, 3, 7])  # bytes of tokens 0 (end of text) to 4


def by_pair(block):
    """Losses that depend on the target and the token before it, so that any off-by-one error changes the sum."""
    return 0.1 + block[:, :-1] * 0.37 + block[:, 1:] * 0.011, block[:, 1:] == (block[:, :-1] + 1) % 5


def constant_loss(nats):
    """The same loss for each target; no target is the most likely token."""
    return lambda block: (np.full(block[:, 1:].shape, nats), np.zeros(block[:, 1:].shape, bool))


ids_of = st.lists(st.integers(0, 4), min_size=0, max_size=90).map(lambda ids: np.array(ids, np.uint16))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=4), st.integers(1, 40))
def test_windows_count_every_position_once_with_half_a_context_before_it(lengths, context):
    edges = [0, *np.cumsum(lengths, dtype=int).tolist()]
    windows = text_windows(edges, context)
    counted = []
    for start, first, end in windows.tolist():
        document = np.searchsorted(edges, start, side="right") - 1
        assert edges[document] <= start < first < end <= edges[document + 1]
        assert end - start <= context + 1
        if start > edges[document]:
            assert first - start >= context // 2
        counted += range(first, end)
    assert counted == [position for position in range(edges[-1]) if position not in edges]


def test_a_share_of_the_windows_is_evenly_spread():
    windows = text_windows([0, 500, 1001], 10).tolist()
    for share in (0.01, 0.1, 0.5, 1.0):
        chosen = [windows.index(window) for window in text_windows([0, 500, 1001], 10, share).tolist()]
        assert len(chosen) == round(share * len(windows)) and len(set(np.diff(chosen).tolist())) <= 2


def test_bits_per_byte_by_hand():
    result = Score(nats=16 * math.log(2), tokens=6, bytes=14, correct=1)
    assert result.bits_per_byte == pytest.approx(16 / 14, abs=1e-9)
    assert result.perplexity == pytest.approx(2 ** (16 / 6), abs=1e-9)
    assert result.accuracy == 1 / 6
    assert result + result == Score(2 * result.nats, 12, 28, 2)


@settings(max_examples=100, deadline=None)
@given(ids_of, st.integers(1, 20), st.integers(1, 200))
def test_each_token_is_scored_once_at_its_position_for_any_window_and_batch_size(ids, context, batch_tokens):
    result = evaluate(ids, BYTE_LENGTHS, context, by_pair, batch_tokens=batch_tokens)
    pairs = list(zip(ids.tolist(), ids.tolist()[1:], strict=False))
    assert result.tokens == len(pairs)
    assert result.bytes == sum(BYTE_LENGTHS[b] for _, b in pairs)
    assert result.nats == pytest.approx(sum(0.1 + a * 0.37 + b * 0.011 for a, b in pairs), abs=1e-9)
    assert result.correct == sum(b == (a + 1) % 5 for a, b in pairs)


def test_scores_of_a_text_without_tokens_are_nan():
    for ids in [[], [0]]:
        result = evaluate(np.array(ids, np.int64), BYTE_LENGTHS, 8, by_pair)
        assert (result.nats, result.tokens, result.bytes) == (0, 0, 0), ids
        assert math.isnan(result.bits_per_byte), ids
        assert math.isnan(result.perplexity), ids
        assert math.isnan(result.accuracy), ids


def test_the_perplexity_of_a_very_high_loss_is_finite():
    assert math.isfinite(Score(nats=1e9, tokens=1, bytes=1).perplexity)


class Model:
    """A model with the same loss for every token."""

    context = 8

    def __init__(self, nats):
        self.score_with_weights = constant_loss(nats)


def test_measure_counts_every_token_and_byte_of_the_text():
    tokenizer = Tokenizer.train_bpe(["The cat りんご"] * 3, 270)
    text = "The cat りんご\n" * 30
    shares = []
    result = measure("text", [text[:7], text[7:]], Model(2.0), tokenizer, shares.append)
    count = len(tokenizer.encode(text))
    assert (result.tokens, result.bytes, result.nats) == (count, len(text.encode()), 2.0 * count)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_every_window_begins_with_the_beginning_of_text_token():
    model, rows = Model(1.0), []
    score = model.score_with_weights
    model.score_with_weights = lambda block: rows.extend(block.tolist()) or score(block)
    for bos_token in [None, "<|im_start|>"]:
        tokenizer = Tokenizer(Tokenizer.train_char(["abc"])._inner, "char", bos_token)
        rows.clear()
        measure("text", ["abc" * 10], model, tokenizer)
        ids = [tokenizer.bos_id, *tokenizer.encode("abc" * 10)]
        assert [row[1:] for row in rows[1:3]] == [ids[5:13], ids[9:17]]
        assert [row[0] for row in rows[:3]] == ([tokenizer.bos_id] * 3 if bos_token else [ids[0], ids[4], ids[8]])


def test_a_tokenizer_that_changes_the_text_is_an_error():
    document = json.loads(Tokenizer.train_bpe(["abc"], 261).to_json())
    tokenizer = Tokenizer.from_json(json.dumps(document | {"normalizer": {"type": "NFC"}}))
    assert measure("0.txt", ["caf\u00e9"], Model(1.0), tokenizer).bytes == 5
    with pytest.raises(LLMError, match=r"changes 1\.txt: 6 bytes of text become 5"):
        measure("1.txt", ["cafe\u0301"], Model(1.0), tokenizer)


def test_nan_losses_are_an_error_in_the_first_batch():
    model, blocks = Model(math.nan), []
    score = model.score_with_weights
    model.score_with_weights = lambda block: blocks.append(block.size) or score(block)
    with pytest.raises(LLMError, match="NaN or infinite logits"):
        measure("text", ["abc" * 10_000], model, Tokenizer.train_bpe(["abc"], 261))
    assert len(blocks) == 1
