"""The backend chosen for a model, and the notes about it."""

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.ensemble_file import Ensemble
from llmcli.formats.training_record import TrainingRecord
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx import runtime as onnx_runtime
from llmcli.models.onnx.runtime import OnnxRuntime
from llmcli.models.open_runtime import open_runtime, open_trained
from llmcli.models.runtime import Runtime
from llmcli.models.torch.devices import pick_device
from llmcli.models.torch.runtime import TorchRuntime
from tests.conftest import random_checkpoint
from tests.models.test_ngram_cache import WEIGHTS
from tests.platforms import needs_onnxruntime

CONFIG = ModelConfig(300, 64, 96, 2, 4, 2, 16, 32)
MODEL = random_checkpoint(CONFIG)
ENSEMBLE = Ensemble((MODEL, random_checkpoint(CONFIG, seed=1)), ("one", "two"))
OPEN: dict[str, Callable[[], Runtime]] = {
    "numpy": lambda: open_runtime(MODEL),
    "torch": lambda: TorchRuntime(MODEL, "cpu"),
    "ensemble": lambda: open_runtime(ENSEMBLE),
    "n-gram cache": lambda: open_runtime(
        replace(MODEL, record=TrainingRecord.from_json({"ngram_cache": WEIGHTS._asdict()}))
    ),
}
if onnx_runtime.is_installed():
    OPEN["onnx"] = lambda: open_runtime(MODEL, quantize="int8")


def test_the_cpu_runs_numpy_and_an_ensemble_of_it() -> None:
    assert isinstance(open_runtime(MODEL), NumpyRuntime)
    runtime = open_runtime(ENSEMBLE)
    assert isinstance(runtime, EnsembleRuntime) and runtime.parameters == 2 * CONFIG.parameters


@needs_onnxruntime
def test_for_speed_float32_runs_in_onnxruntime_unless_it_is_unsupported_or_large(monkeypatch) -> None:
    assert isinstance(open_runtime(MODEL, fast=True), OnnxRuntime)
    sparse = replace(CONFIG, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2)
    assert isinstance(open_runtime(random_checkpoint(sparse), fast=True), NumpyRuntime)
    monkeypatch.setattr("llmcli.models.open_runtime.FAST_BYTES", 4 * CONFIG.parameters - 1)
    assert isinstance(open_runtime(MODEL, fast=True), NumpyRuntime)


def test_another_device_runs_torch_even_when_it_resolves_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert isinstance(open_runtime(MODEL, "auto"), TorchRuntime)
    with pytest.raises(LLMError, match="finds no cuda device here; use `device` cpu or auto"):
        open_runtime(MODEL, "cuda")


def test_auto_picks_cuda_before_mps_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device("auto") == expected
        assert pick_device("cpu") == "cpu"


@needs_onnxruntime
def test_quantized_weights_run_in_onnxruntime_without_a_note() -> None:
    notes: list[str] = []
    assert isinstance(open_runtime(MODEL, quantize="int8", on_note=notes.append), OnnxRuntime)
    assert isinstance(open_runtime(replace(MODEL, quantization="int4"), on_note=notes.append), OnnxRuntime)
    assert notes == []


def test_a_model_that_onnxruntime_does_not_support_runs_dequantized_with_a_note() -> None:
    notes: list[str] = []
    model = random_checkpoint(replace(CONFIG, head_dim=8))
    runtime = open_runtime(model, quantize="int8", on_note=notes.append)
    assert isinstance(runtime, NumpyRuntime)
    [note] = notes
    assert "no accelerated int8 backend" in note and "head size of 8 (only multiples of 16)" in note
    assert not np.array_equal(runtime.prefill([1, 2]), NumpyRuntime(model).prefill([1, 2]))


def test_without_onnxruntime_stored_quantized_weights_run_and_requested_ones_do_not(monkeypatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    runtime = open_runtime(replace(MODEL, quantization="int8"), on_note=notes.append)
    assert isinstance(runtime, NumpyRuntime) and 'pip install "llmcli[fast]"' in notes[0]
    with pytest.raises(LLMError, match=r'pip install "llmcli\[fast\]"'):
        open_runtime(MODEL, quantize="int8")


def test_every_runtime_implements_the_interface() -> None:
    for name in OPEN:
        runtime = OPEN[name]()
        assert (runtime.context, runtime.length) == (32, 0) and runtime.parameters >= CONFIG.parameters, name
        after_three = runtime.prefill([1, 2, 3])
        assert after_three.shape == (300,) and runtime.length == 3, name
        runtime.rewind(2)
        np.testing.assert_allclose(runtime.step(3), after_three, atol=0.05)
        assert runtime.logits([4, 5]).shape == (2, 300) and runtime.length == 5, name
        losses, correct = runtime.score(np.ones((2, 6), np.int64))
        assert losses.shape == correct.shape == (2, 5) and correct.dtype == np.bool_, name
        if name == "ensemble":  # whose cache is empty after scores
            runtime.prefill([1, 2, 3, 4, 5])
        with pytest.raises(LLMError, match="33 tokens exceed the context length of 32; use a shorter text"):
            runtime.prefill([1] * 28)
        with pytest.raises(LLMError, match="33 tokens exceed the context length of 32"):
            runtime.score(np.ones((1, 34), np.int64))
        assert runtime.length == 5, name
        runtime.rewind(2)
        np.testing.assert_allclose(runtime.step(3), after_three, atol=0.05)
        with pytest.raises(ValueError, match="at least one token"):
            runtime.logits([])


def test_a_runtime_that_does_not_know_the_experts_says_so() -> None:
    with pytest.raises(LLMError, match="only available on the CPU; run the model without `quantize` and `device`"):
        OPEN["torch"]().expert_weights()


def test_a_run_generates_where_it_trained_if_that_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_torch(checkpoint: Checkpoint, device: str) -> TorchRuntime:
        opened.append(device)
        return TorchRuntime(checkpoint, "cpu")

    monkeypatch.setattr("llmcli.models.torch.runtime.TorchRuntime", open_torch)
    assert isinstance(open_trained(MODEL, "cuda"), NumpyRuntime)  # a small model
    monkeypatch.setattr("llmcli.models.open_runtime.WORTH_FAST", CONFIG.parameters)
    assert isinstance(open_trained(MODEL, "cpu"), NumpyRuntime)
    assert opened == []
    assert isinstance(open_trained(MODEL, "cuda"), TorchRuntime) and opened == ["cuda"]

    def fail(checkpoint: Checkpoint, device: str) -> None:
        raise MemoryError("CUDA out of memory")

    monkeypatch.setattr("llmcli.models.torch.runtime.TorchRuntime", fail)
    assert isinstance(open_trained(MODEL, "cuda"), NumpyRuntime)


def test_without_an_onnxruntime_that_loads_float32_runs_in_numpy_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LLMError("needs onnxruntime") from ImportError("failed to map segment")

    notes: list[str] = []
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: True)
    monkeypatch.setattr(onnx_runtime, "OnnxRuntime", fail)
    assert isinstance(open_runtime(MODEL, fast=True, on_note=notes.append), NumpyRuntime)
    assert len(notes) == 1 and "failed to map segment" in notes[0]
    with pytest.raises(LLMError, match="needs onnxruntime"):
        open_runtime(MODEL, quantize="int8")
