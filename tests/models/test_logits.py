"""Softmax, log-softmax, token losses and entropy, compared with their definitions in float64."""

import math

import numpy as np
import pytest

from llmcli.errors import LLMError
from llmcli.models.logits import check_finite, entropy, log_softmax, softmax, token_losses

PROBABILITIES = [0.1, 0.4, 0.2, 0.3]


def logits_of(probabilities: list[float]) -> np.ndarray:
    """Logits [V] with these probabilities, shifted so that they are not log probabilities."""
    return np.log(np.array(probabilities, np.float64)).astype(np.float32) + np.float32(3)


def test_softmax_is_taken_over_each_row() -> None:
    rows = softmax(np.stack([logits_of(PROBABILITIES), logits_of([0.25] * 4)]))
    np.testing.assert_allclose(rows, [PROBABILITIES, [0.25] * 4], rtol=1e-6)


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    with np.errstate(over="raise", invalid="raise"):
        logits = np.array([1e4, 1e4, -1e4, -math.inf], np.float32)
        np.testing.assert_allclose(softmax(logits), [0.5, 0.5, 0, 0])


def test_softmax_does_not_change_its_input() -> None:
    logits = logits_of(PROBABILITIES)
    before = logits.copy()
    softmax(logits)
    np.testing.assert_array_equal(logits, before)


def test_log_softmax_is_the_logarithm_of_softmax() -> None:
    logprobs = log_softmax(logits_of(PROBABILITIES))
    assert logprobs.dtype == np.float64
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES), atol=1e-6)


def test_nan_and_infinite_logits_are_an_error() -> None:
    for value in [math.nan, math.inf, -math.inf]:
        with pytest.raises(LLMError, match=r"NaN or infinite logits.*llm inspect --verify"):
            check_finite(value)
        with pytest.raises(LLMError, match="NaN or infinite logits"):
            log_softmax(np.full(3, value, np.float32))


def test_token_losses_are_negative_log_probabilities() -> None:
    logits = np.stack([logits_of(PROBABILITIES)] * 4)
    losses, correct = token_losses(logits, np.arange(4))
    np.testing.assert_allclose(losses, -np.log(PROBABILITIES), atol=1e-6)
    assert correct.tolist() == [False, True, False, False]


def test_entropy_of_equal_probabilities_is_the_logarithm_of_their_number() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.array([1.0, 0.0])) == 0
