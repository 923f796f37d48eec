"""Bits per byte of answers, on score functions whose losses are known for every token."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.data.conversations.chat_template import CHATML, ChatTemplate
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.errors import LLMError
from llmcli.evaluation.answers import conversation_windows, measure_answers, spread
from llmcli.evaluation.evaluator import Score, evaluate_windows
from tests.data.conversations.test_batches import numbered
from tests.training.chats import conversation

lengths_of = st.lists(st.integers(2, 30), min_size=1, max_size=30)


def by_pair(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats of each target by it and the token before; of even tokens the likeliest."""
    return 0.1 + block[:, :-1] * 0.37 + block[:, 1:] * 0.011, block[:, 1:] % 2 == 0


@settings(max_examples=100, deadline=None)
@given(lengths_of, st.integers(1, 100))
@pytest.mark.slow
def test_only_learned_tokens_count_whatever_the_batches(lengths: list[int], batch_tokens: int) -> None:
    conversations = numbered(lengths)
    byte_lengths = np.arange(sum(lengths)) % 5
    expected = Score(0.0, 0, 0)
    for i in range(len(lengths)):
        ids = conversations.ids[conversations.span(i)].astype(np.int64)
        for position in np.flatnonzero(conversations.loss_mask[conversations.span(i)]):
            nats, correct = by_pair(ids[None, position - 1 : position + 1])
            expected += Score(float(nats.item()), 1, int(byte_lengths[ids[position]]), int(correct.item()))
    windows = conversation_windows(conversations)
    batches = list(
        evaluate_windows(
            conversations.ids,
            byte_lengths,
            windows,
            by_pair,
            batch_tokens=batch_tokens,
            loss_mask=conversations.loss_mask,
        )
    )
    ends = np.cumsum([count for count, _ in batches]).tolist()
    assert ends[-1] == len(lengths)
    for count, end in zip((count for count, _ in batches), ends, strict=True):
        assert count == 1 or count * (max(lengths[end - count : end]) - 1) <= batch_tokens
    total = sum((score for _, score in batches), Score(0.0, 0, 0))
    assert total.nats == pytest.approx(expected.nats)
    assert (total.tokens, total.bytes, total.correct) == (expected.tokens, expected.bytes, expected.correct)


@given(lengths_of, st.integers(1, 400))
def test_the_first_conversations_are_spread_evenly(lengths: list[int], most: int) -> None:
    chosen = spread(numbered(lengths), most)
    assert 1 <= len(chosen) == len(set(chosen)) <= len(lengths)
    assert sum(lengths[i] for i in chosen) <= most or len(chosen) == 1
    assert sorted(spread(numbered(lengths))) == list(range(len(lengths)))
    order = spread(numbered([2] * 100))
    for count in (10, 20, 50):
        gaps = np.diff(sorted(order[:count]))
        assert gaps.max() <= 2.7 * 100 / count


BYTES = Tokenizer.train_bpe(["a"], 261)  # one token for each byte
TEMPLATE = ChatTemplate(CHATML, BYTES)


class Uniform:
    """A model that finds every token equally likely."""

    context = 60

    def score(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(ids[:, 1:].shape, math.log(256)), np.zeros(ids[:, 1:].shape, bool)


def silent(share: float) -> None:
    pass


def test_bits_per_byte_are_of_the_answers_and_the_tokens_that_end_them() -> None:
    result = measure_answers(
        [conversation("Who?", "Ann"), conversation("Why?", "りんご", "So?", "ab")], Uniform(), TEMPLATE, 200, silent
    )
    answers = [3, 9, 2]  # bytes, and one token for the end of each
    assert result.score.tokens == sum(answers) + len(answers)
    assert result.score.bytes == sum(answers)
    assert result.score.bits_per_byte == pytest.approx(8 * result.score.tokens / sum(answers))
    assert (result.conversations, result.truncated, result.left_out) == (2, 0, 0)


def test_what_does_not_fit_the_context_is_counted() -> None:
    short, long = conversation("Who?", "Ann"), conversation("y" * 99, "z")
    two = conversation("Why?", "So.", "Really?", "x" * 40)
    result = measure_answers([short, two, long, conversation("alone")], Uniform(), TEMPLATE, 60, silent)
    assert (result.conversations, result.truncated, result.left_out) == (2, 1, 2)
    assert result.score.bytes == 6
    with pytest.raises(LLMError, match="no answer to measure"):
        measure_answers([long], Uniform(), TEMPLATE, 60, silent)


def test_a_model_of_nan_is_an_error() -> None:
    class Broken(Uniform):
        def score(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.full(ids[:, 1:].shape, np.nan), np.zeros(ids[:, 1:].shape, bool)

    with pytest.raises(LLMError, match="NaN"):
        measure_answers([conversation("Who?", "Ann")], Broken(), TEMPLATE, 60, silent)
