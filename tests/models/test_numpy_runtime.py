"""The numpy runtime: its cache, scoring and limits. test_transformer.py compares its logits with those of torch."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import save
from llmcli.formats.loading import load
from llmcli.models import numpy_runtime as runtime_module
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import LOGITS_AT_ONCE, PREFILL_CHUNK
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(200, 32, 64, 2, 4, 2, 8, 3 * PREFILL_CHUNK)
WITH_WINDOW = replace(
    CONFIG, model_type="gemma3_text", layer_types=("sliding_attention", "full_attention"), sliding_window=70,
    hidden_act="gelu_pytorch_tanh",
)  # fmt: skip


def test_prefill_in_several_calls_gives_the_same_logits() -> None:
    for config in [CONFIG, WITH_WINDOW]:
        ids = np.random.default_rng(0).integers(200, size=2 * PREFILL_CHUNK + 5).tolist()
        once, several = NumpyRuntime(random_checkpoint(config)), NumpyRuntime(random_checkpoint(config))
        expected = once.prefill(ids)
        several.prefill(ids[:3])
        several.step(ids[3])
        assert np.abs(expected - several.prefill(ids[4:])).max() < 1e-4, config
        assert once.length == several.length == len(ids), config


def test_layers_read_in_threads_are_those_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    save(path, random_checkpoint(replace(CONFIG, num_hidden_layers=9)))
    expected = NumpyRuntime(load(path)).prefill(range(9))
    monkeypatch.setattr(runtime_module, "LARGE_PARAMETERS", 0)
    assert np.array_equal(NumpyRuntime(load(path)).prefill(range(9)), expected)
    opened = load(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(LLMError, match=r"cannot read .*m.safetensors"):
        NumpyRuntime(opened)


@pytest.mark.parametrize("length", [1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK + 2, 3 * PREFILL_CHUNK])
@pytest.mark.parametrize("config", [CONFIG, WITH_WINDOW])
def test_scores_are_those_of_the_logits_of_each_window(
    length: int, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "LOGITS_AT_ONCE", 1000)  # logits of 5 tokens at once
    runtime = NumpyRuntime(random_checkpoint(config))
    ids = np.random.default_rng(1).integers(200, size=(3, length + 1))
    losses, correct = runtime.score(ids)
    for row in range(3):
        runtime.rewind()
        logits = runtime.logits(ids[row, :-1].tolist()).astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert np.abs(losses[row] + np.log(probabilities[np.arange(length), ids[row, 1:]])).max() < 1e-4
        assert correct[row].tolist() == (logits.argmax(-1) == ids[row, 1:]).tolist()


def test_scoring_never_holds_all_logits_in_memory() -> None:
    import tracemalloc

    runtime = NumpyRuntime(random_checkpoint(ModelConfig(50_000, 8, 16, 1, 2, 1, 4, 512)))
    tracemalloc.start()
    runtime.score(np.ones((2, 513), np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * LOGITS_AT_ONCE < 4 * 2 * 512 * 50_000


def test_a_very_negative_gate_overflows_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    checkpoint = random_checkpoint(ModelConfig(200, 32, 64, 1, 2, 2, 16, 8))
    checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"][:] *= 1e4
    assert np.isfinite(NumpyRuntime(checkpoint).prefill([1, 2, 3])).all()
    assert not recwarn.list


def test_each_weight_is_in_memory_once(tmp_path, monkeypatch) -> None:
    """The peak of numpy's allocations while loading is little more than the size of the model and its largest matrix,
    which is read whole, except for small matrices, which are kept in two orders."""
    import tracemalloc

    monkeypatch.setattr("llmcli.models.matrix_product.SMALL_WEIGHTS", 0)
    config = ModelConfig(4000, 256, 512, 4, 4, 4, 64, 64)
    save(tmp_path / "m.safetensors", random_checkpoint(config))
    checkpoint = load(tmp_path / "m.safetensors")
    tracemalloc.start()
    NumpyRuntime(checkpoint).prefill([1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * config.parameters + 4 * 4000 * 256 + 1e6
