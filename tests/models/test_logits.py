"""Softmax, log-softmax, token losses and entropy, compared with their definitions in float64."""

import math

import numpy as np
import pytest

from llmcli.models.logits import entropy, log_softmax, softmax, token_losses

PROBABILITIES = [0.1, 0.4, 0.2, 0.3]


def logits_of(probabilities: list[float]) -> np.ndarray:
    """Logits [V] with these probabilities, shifted so that they are not log probabilities."""
    return np.log(np.array(probabilities, np.float64)).astype(np.float32) + np.float32(3)


def test_softmax_is_taken_over_each_row_without_overflow_or_a_change_of_its_input() -> None:
    logits = np.stack([logits_of(PROBABILITIES), logits_of([0.25] * 4)])
    before = logits.copy()
    np.testing.assert_allclose(softmax(logits), [PROBABILITIES, [0.25] * 4], rtol=1e-6)
    np.testing.assert_array_equal(logits, before)
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_allclose(softmax(np.array([1e4, 1e4, -1e4, -math.inf], np.float32)), [0.5, 0.5, 0, 0])
    logprobs = log_softmax(logits_of(PROBABILITIES))
    assert logprobs.dtype == np.float64
    np.testing.assert_allclose(logprobs, np.log(PROBABILITIES), atol=1e-6)


def test_token_losses_are_negative_log_probabilities() -> None:
    logits = np.stack([logits_of(PROBABILITIES)] * 4)
    losses, correct = token_losses(logits, np.arange(4))
    np.testing.assert_allclose(losses, -np.log(PROBABILITIES), atol=1e-6)
    assert correct.tolist() == [False, True, False, False]


def test_entropy_of_equal_probabilities_is_the_logarithm_of_their_number() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(3)
    assert entropy(np.array([1.0, 0.0])) == 0
