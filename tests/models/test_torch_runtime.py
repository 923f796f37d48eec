"""The torch runtime gives the results of the numpy runtime."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llmcli.errors import LLMError
from llmcli.models import kernels, torch_runtime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch_runtime import TorchRuntime
from llmcli.models.transformer import LanguageModel
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


def test_a_prompt_of_any_length_takes_the_logits_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all tokens of a long prompt would be gigabytes."""
    rows = []

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return x @ weight.mT

    monkeypatch.setattr(torch_runtime, "F", SimpleNamespace(linear=linear))
    runtime = TorchRuntime(random_checkpoint(SHAPES["tied"]), "cpu")
    assert runtime.prefill([1, 2, 3, 4]).shape == (300,)
    assert runtime.logits([5, 6]).shape == (2, 300)
    assert rows == [1, 2]


def test_a_lack_of_gpu_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the command line and the server know."""
    runtime = TorchRuntime(random_checkpoint(SHAPES["tied"]), "cpu")

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 4.60 GiB. GPU 0 has a total capacity of ...")

    monkeypatch.setattr(LanguageModel, "hidden_states", fail)
    monkeypatch.setattr(LanguageModel, "to", fail)
    for attempt in (
        lambda: runtime.prefill([1]),
        lambda: runtime.step(1),
        lambda: runtime.score(np.ones((1, 3), np.int64)),
        lambda: TorchRuntime(random_checkpoint(SHAPES["tied"]), "cuda"),
    ):
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            attempt()


def test_attention_on_mps_gets_no_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose results are wrong there."""
    checkpoint, given = random_checkpoint(SHAPES["grouped"]), list[torch.Tensor]()
    attention = torch.nn.functional.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        given.extend([q, k, v])
        return attention(q, k, v, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(kernels, "_is_on_mps", lambda x: True)
    reference, tested = NumpyRuntime(checkpoint), TorchRuntime(checkpoint, "cpu")
    for ids in ([5, 6, 7, 8], [9], [1, 2]):
        assert np.abs(reference.prefill(ids) - tested.prefill(ids)).max() < 1e-4
    assert len(given) == 3 * 2 * 3 and all(x.is_contiguous() for x in given)


def test_more_tokens_than_the_context_are_an_error() -> None:
    runtime = TorchRuntime(random_checkpoint(SHAPES["tied"]), "cpu")
    with pytest.raises(LLMError, match="49 tokens exceed the context length of 48"):
        runtime.prefill([1] * 49)
    with pytest.raises(LLMError, match="49 tokens exceed the context length of 48"):
        runtime.score(np.ones((1, 50), np.int64))
    with pytest.raises(ValueError, match="at least one token"):
        runtime.prefill([])
