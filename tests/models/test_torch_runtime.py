"""The torch runtime gives the results of the numpy runtime."""

import numpy as np
import pytest

from llmcli.errors import LLMError
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch_runtime import TorchRuntime
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES


@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_step_and_rewind_are_those_of_the_numpy_runtime(shape: str) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    reference, tested = NumpyRuntime(checkpoint), TorchRuntime(checkpoint, "cpu")
    for runtime in (reference, tested):
        runtime.prefill([5, 6, 7, 8])
        runtime.rewind(2)
        runtime.step(9)
    assert np.abs(reference.prefill([1, 2, 3]) - tested.prefill([1, 2, 3])).max() < 1e-4
    assert reference.length == tested.length == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_are_those_of_the_numpy_runtime(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    ids = np.random.default_rng(2).integers(300, size=(5, 49))
    losses, correct = NumpyRuntime(checkpoint).score(ids)
    monkeypatch.setattr("llmcli.models.torch_scoring.LOGITS_AT_ONCE", 2 * 48 * 300)  # two windows at once
    runtime = TorchRuntime(checkpoint, "cpu")
    before = runtime.prefill([1, 2])
    torch_losses, torch_correct = runtime.score(ids)
    assert np.abs(losses - torch_losses).max() < 1e-4
    assert losses.mean() == pytest.approx(torch_losses.mean(), abs=1e-5)
    assert np.array_equal(correct, torch_correct)
    runtime.rewind()
    assert np.array_equal(runtime.prefill([1, 2]), before)


def test_more_tokens_than_the_context_are_an_error() -> None:
    runtime = TorchRuntime(random_checkpoint(SHAPES["tied"]), "cpu")
    with pytest.raises(LLMError, match="49 tokens exceed the context length of 48"):
        runtime.prefill([1] * 49)
    with pytest.raises(LLMError, match="49 tokens exceed the context length of 48"):
        runtime.score(np.ones((1, 50), np.int64))
    with pytest.raises(ValueError, match="at least one token"):
        runtime.prefill([])
