"""The torch runtime gives the results of the numpy runtime."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.torch import kernels, transformer
from llmcli.models.torch import runtime as torch_runtime
from llmcli.models.torch.runtime import TorchRuntime
from llmcli.models.torch.transformer import LanguageModel
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES


def test_prefill_step_and_rewind_are_those_of_the_numpy_runtime() -> None:
    for shape in SHAPES:
        checkpoint = random_checkpoint(SHAPES[shape])
        reference, tested = NumpyRuntime(checkpoint), TorchRuntime(checkpoint, "cpu")
        for runtime in (reference, tested):
            runtime.prefill([5, 6, 7, 8])
            runtime.rewind(2)
            runtime.step(9)
        assert np.abs(reference.prefill([1, 2, 3]) - tested.prefill([1, 2, 3])).max() < 1e-4, shape
        assert reference.length == tested.length == 6, shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [2 * 48, 31])  # tokens whose logits are held together
def test_scores_are_those_of_the_numpy_runtime(shape: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(SHAPES[shape])
    ids = np.random.default_rng(2).integers(300, size=(5, 49))
    losses, correct = NumpyRuntime(checkpoint).score(ids)
    monkeypatch.setattr("llmcli.models.torch.runtime.LOGITS_AT_ONCE", 2 * 48 * 300)  # two windows at once
    monkeypatch.setattr(torch_runtime, "CPU_BLOCK_LOGITS", block * 300)
    runtime = TorchRuntime(checkpoint, "cpu")
    torch_losses, torch_correct = runtime.score(ids)
    assert np.abs(losses - torch_losses).max() < 1e-4
    assert losses.mean() == pytest.approx(torch_losses.mean(), abs=1e-5)
    assert np.array_equal(correct, torch_correct)


def test_a_prompt_of_any_length_takes_the_logits_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all tokens of a long prompt would be gigabytes."""
    rows, logits = [], LanguageModel.logits

    def noted(model: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(model, hidden)

    monkeypatch.setattr(LanguageModel, "logits", noted)
    runtime = TorchRuntime(random_checkpoint(SHAPES["tied"]), "cpu")
    assert runtime.prefill([1, 2, 3, 4]).shape == (300,)
    assert runtime.logits([5, 6]).shape == (2, 300)
    assert rows == [1, 2]


def test_the_matrices_are_folded_once_and_held_once() -> None:
    """In the layers as the unfolded model does it, to the bit; the head's gain is applied to the hidden states."""
    for shape in SHAPES:
        checkpoint = random_checkpoint(SHAPES[shape])
        model = LanguageModel(checkpoint.config).eval()
        model.load_arrays(checkpoint.tensors)
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.inference_mode():
            hidden, logits = model.hidden_states(ids), model(ids)
            model.fold_gains()
            assert torch.equal(model.hidden_states(ids), hidden)
            assert torch.allclose(model.logits(hidden), logits, atol=1e-5)
        assert sum(tensor.nbytes for tensor in tensors_of(model)) <= 4 * checkpoint.config.parameters, shape


def tensors_of(model: LanguageModel) -> Iterator[torch.Tensor]:
    """All weights that a folded model holds."""
    yield from model.parameters()
    for module in model.modules():
        yield from (tensor for tensor in getattr(module, "folded", None) or () if tensor is not None)
        if getattr(module, "gate_up", None) is not None:
            yield module.gate_up


def test_a_step_reads_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation makes a tensor as large as a matrix, such as a stacked or scaled copy of one."""
    checkpoint = random_checkpoint(SHAPES["grouped"])
    runtime = TorchRuntime(checkpoint, "cpu")
    runtime.prefill([1, 2])
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            given = {one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in given:
                largest = max(largest, result.numel())
            return result

    with Sizes():
        runtime.step(3)
    config = checkpoint.config
    assert largest <= max(config.vocab_size, 2 * config.intermediate_size) < config.hidden_size**2


def test_attention_where_a_device_cannot_compute_it_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel for grouped queries, keys and values are repeated: else torch would hold the scores of all
    heads, [T, T] each, on a GPU in float32 or with a mask. On MPS it gets no views, whose results are wrong there."""
    checkpoint, given = (
        random_checkpoint(SHAPES["grouped"]),
        list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]](),
    )
    heads, attention = checkpoint.config.num_attention_heads, torch.nn.functional.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        given.append((q, k, v, options["enable_gqa"]))
        return attention(q, k, v, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for is_mps in (False, True):
        monkeypatch.setattr(transformer, "_has_grouped_kernel", lambda q, mask, is_mps=is_mps: is_mps)
        monkeypatch.setattr(kernels, "_is_on_mps", lambda x, is_mps=is_mps: is_mps)
        given.clear()
        reference, tested = NumpyRuntime(checkpoint), TorchRuntime(checkpoint, "cpu")
        for ids in ([5, 6, 7, 8], [9], [1, 2]):
            assert np.abs(reference.prefill(ids) - tested.prefill(ids)).max() < 1e-4
        assert len(given) == 3 * checkpoint.config.num_hidden_layers
        for q, k, v, is_grouped in given:
            assert is_grouped == is_mps and (k.shape[1] == v.shape[1] == heads) != is_mps
            assert not is_mps or all(x.is_contiguous() for x in (q, k, v))
        assert tested.cache_bytes == 7 * checkpoint.config.cache_bytes_per_token  # the cache has the keys once


def test_which_kernels_know_grouped_queries() -> None:
    def on(device: str, dtype: torch.dtype) -> Any:
        return SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype)

    mask = torch.ones(1, dtype=torch.bool)
    assert transformer._has_grouped_kernel(on("cuda", torch.bfloat16), None)
    assert not transformer._has_grouped_kernel(on("cuda", torch.bfloat16), mask)
    assert not transformer._has_grouped_kernel(on("cuda", torch.float32), None)
    assert transformer._has_grouped_kernel(on("cpu", torch.float32), mask)


def test_a_lack_of_gpu_memory_is_a_memory_error(monkeypatch: pytest.MonkeyPatch) -> None:
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
