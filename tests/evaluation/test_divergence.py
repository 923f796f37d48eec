"""The estimated KL divergence: against its definition, and of a model from itself."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from llmcli.config import ModelConfig
from llmcli.data.tokenizers.tokenizer import Tokenizer
from llmcli.evaluation import evaluator
from llmcli.evaluation.evaluator import divergence
from llmcli.models.numpy_runtime import NumpyRuntime
from tests.conftest import TEXT, random_checkpoint
from tests.generation.fakes import FakeRuntime


class FixedProbabilities(FakeRuntime):
    """A model whose next token has the same probabilities after every text."""

    def __init__(self, probabilities: NDArray[np.float64]) -> None:
        super().__init__(20_001, None)
        self.logprobs = np.log(probabilities).astype(np.float32)

    def _process(self, ids: list[int]) -> NDArray[np.float32]:
        self.cached += ids
        return self.logprobs


@pytest.mark.slow
def test_the_estimate_approaches_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """KL(p || q) = sum of p log2(p / q) bits per token, over the sum of p * length bytes per token."""
    monkeypatch.setattr(evaluator, "KL_TOKENS", 20_000)
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    lengths = np.array([len(token) for token in tokenizer.token_bytes])
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.full(len(lengths), 0.5), 2) + 1e-6
    p, q = p / p.sum(), q / q.sum()
    bits = np.log2(p / q)
    expected = (p @ bits) / (p @ lengths)
    deviation = math.sqrt(p @ (bits - expected * lengths) ** 2 / 20_000) / (p @ lengths)  # of a ratio of means
    estimate, share = divergence(FixedProbabilities(p), FixedProbabilities(q), tokenizer)
    assert expected > 20 * deviation
    assert estimate == pytest.approx(expected, abs=5 * deviation)
    assert share == pytest.approx((p @ bits) / -(p @ np.log2(p)), rel=1e-4)


def test_a_model_does_not_diverge_from_itself_whatever_its_cache_holds() -> None:
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    model = NumpyRuntime(random_checkpoint(ModelConfig(tokenizer.vocab_size, 32, 64, 2, 4, 2, 8, 32)))
    model.prefill(range(20))
    assert divergence(model, model.fork(), tokenizer) == (0, 0)
