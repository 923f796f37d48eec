"""The ensemble compared with its formula, written out for every position."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.models import ensemble
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(60, 32, 32, 2, 2, 2, 16, 100)
SHAPES = (CONFIG, replace(CONFIG, hidden_size=48, num_hidden_layers=1), replace(CONFIG, tie_word_embeddings=True))
IDS = np.random.default_rng(3).integers(0, 60, 90).tolist()


def members() -> list[NumpyRuntime]:
    return [NumpyRuntime(random_checkpoint(config, seed=number)) for number, config in enumerate(SHAPES)]


class DomainModel:
    """A model of one third of the vocabulary, whose tokens are nine times as likely as the others."""

    parameters = cache_bytes_per_token = 1
    can_shift = True

    def __init__(self, third: int) -> None:
        self.context = 100
        self.length = 0
        self.calls = 0
        self._row = np.zeros(60, np.float32)
        self._row[20 * third : 20 * third + 20] = np.log(9)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self.calls += 1
        self.length += len(ids)
        return np.tile(self._row, (len(ids), 1))

    def rewind(self, length: int = 0) -> None:
        self.length = length


def expected_logprobs(ids: list[int], runtimes: list[NumpyRuntime]) -> np.ndarray:
    """Log probabilities [T, V] of the ensemble after each token: prior times decayed likelihood, without the models
    that weighed less than MIN_WEIGHT at the last refresh."""
    rows = []
    for runtime in runtimes:
        runtime.rewind()
        logits = runtime.logits(ids).astype(np.float64)
        rows.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    likelihoods = np.array([[row[t - 1, ids[t]] for t in range(1, len(ids))] for row in rows])  # of tokens 1, 2, ...

    def posterior(length: int) -> np.ndarray:
        ages = length - 1 - np.arange(1, length)
        evidence = likelihoods[:, : max(0, length - 1)] @ ensemble.DECAY ** ages.astype(float)
        weights = np.exp(evidence - evidence.max())
        return weights / weights.sum()

    logprobs = []
    for length in range(1, len(ids) + 1):
        runs = posterior(length // ensemble.REFRESH * ensemble.REFRESH) >= ensemble.MIN_WEIGHT
        weights = posterior(length) * runs
        logprobs.append(
            np.log(sum(w * np.exp(row[length - 1]) for w, row in zip(weights / weights.sum(), rows, strict=True)))
        )
    return np.array(logprobs)


def test_logits_are_those_of_the_formula_however_the_text_is_split() -> None:
    for pieces in [[90], [1] * 90, [5, 1, 1, 30, *[1] * 53], [15, 1, 16, 1, 57]]:
        expected = expected_logprobs(IDS, members())
        runtime, at = EnsembleRuntime(members()), 0
        for count in pieces:
            logprobs = runtime.prefill(IDS[at : at + count])
            at += count
            np.testing.assert_allclose(logprobs, expected[at - 1], atol=1e-4)
            assert np.exp(logprobs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
            assert runtime.expert_weights().sum() == pytest.approx(1, abs=1e-5)
        assert runtime.length == 90, pieces


def test_scores_are_those_of_the_formula() -> None:
    windows = np.array([IDS[:41], IDS[45:86]])
    losses, correct = EnsembleRuntime(members()).score(windows)
    for window, window_losses, window_correct in zip(windows.tolist(), losses, correct, strict=True):
        expected = expected_logprobs(window[:-1], members())
        np.testing.assert_allclose(
            window_losses, [-row[token] for row, token in zip(expected, window[1:], strict=True)], atol=1e-4
        )
        assert window_correct.tolist() == (expected.argmax(axis=-1) == window[1:]).tolist()


def test_after_a_rewind_the_dropped_tokens_have_no_effect() -> None:
    for length in [89, 64, 50, 33, 16, 1, 0]:
        runtime = EnsembleRuntime(members())
        for token in IDS:
            runtime.step(token)
        runtime.rewind(length)
        assert runtime.length == length, length
        other = [7, 50, *IDS[:5]]
        expected = expected_logprobs([*IDS[:length], *other], members())
        for i, token in enumerate(other):
            np.testing.assert_allclose(runtime.step(token), expected[length + i], atol=1e-4)


def test_models_of_other_domains_do_not_run() -> None:
    runtimes = [DomainModel(third) for third in range(3)]
    runtime = EnsembleRuntime(runtimes)
    text = [20 + i % 20 for i in range(64)]  # the domain of the second
    runtime.prefill(text[:48])
    assert runtime.expert_weights()[0].tolist() == [0.0, 1.0, 0.0]
    before = [one.calls for one in runtimes]
    for token in text[48:55]:
        runtime.step(token)
    assert [one.calls - was for one, was in zip(runtimes, before, strict=True)] == [0, 7, 0]
    runtime.step(text[55])  # a refresh: all models catch up
    assert [one.calls - was for one, was in zip(runtimes, before, strict=True)] == [1, 8, 1]
