"""The numpy runtime as a machine: its cache, its limits. Its logits are held against torch in test_model.py."""

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import load, save
from llmcli.models import numpy_runtime as runtime_module
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.runtime import LOGITS_AT_ONCE, PREFILL_CHUNK
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(200, 32, 64, 2, 4, 2, 8, 3 * PREFILL_CHUNK)


def test_prefill_in_pieces_is_prefill_at_once() -> None:
    ids = np.random.default_rng(0).integers(200, size=2 * PREFILL_CHUNK + 5).tolist()
    one, many = NumpyRuntime(random_checkpoint(CONFIG)), NumpyRuntime(random_checkpoint(CONFIG))
    at_once = one.prefill(ids)
    many.prefill(ids[:3])
    many.step(ids[3])
    assert np.abs(at_once - many.prefill(ids[4:])).max() < 1e-4
    assert one.length == many.length == len(ids)


def test_rewind_forgets() -> None:
    runtime = NumpyRuntime(random_checkpoint(CONFIG))
    first = runtime.prefill([1, 2, 3])
    runtime.prefill([4, 5, 6])
    runtime.rewind(2)
    assert np.abs(runtime.step(3) - first).max() < 1e-5
    runtime.rewind()
    assert runtime.length == 0


def test_more_than_the_context_is_refused_and_changes_nothing() -> None:
    runtime = NumpyRuntime(random_checkpoint(ModelConfig(200, 32, 64, 1, 2, 2, 16, 8)))
    wanted = runtime.prefill(range(7))
    with pytest.raises(LLMError, match="9 tokens do not fit the context length of 8"):
        runtime.prefill([1, 2])
    runtime.rewind(6)
    assert np.abs(runtime.step(6) - wanted).max() < 1e-5


@pytest.mark.parametrize("length", [1, 2, PREFILL_CHUNK - 1, PREFILL_CHUNK + 2, 3 * PREFILL_CHUNK])
def test_scores_of_windows_are_those_of_their_logits_one_window_at_a_time(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "LOGITS_AT_ONCE", 1000)  # logits of 5 tokens at once
    runtime = NumpyRuntime(random_checkpoint(CONFIG))
    ids = np.random.default_rng(1).integers(200, size=(3, length + 1))
    nats, right = runtime.score(ids)
    for row in range(3):
        runtime.rewind()
        logits = runtime.logits(ids[row, :-1].tolist()).astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert np.abs(nats[row] + np.log(chances[np.arange(length), ids[row, 1:]])).max() < 1e-4
        assert right[row].tolist() == (logits.argmax(-1) == ids[row, 1:]).tolist()


def test_scoring_takes_nothing_in_and_refuses_more_than_the_context() -> None:
    runtime, other = NumpyRuntime(random_checkpoint(CONFIG)), NumpyRuntime(random_checkpoint(CONFIG))
    for each in (runtime, other):
        each.prefill([1, 2, 3])
    runtime.score(np.ones((2, 3 * PREFILL_CHUNK + 1), np.int64))
    assert runtime.length == 3 and np.array_equal(runtime.step(4), other.step(4))
    with pytest.raises(LLMError, match="385 tokens do not fit the context length of 384"):
        runtime.score(np.ones((1, 3 * PREFILL_CHUNK + 2), np.int64))


def test_scoring_never_holds_all_logits() -> None:
    import tracemalloc

    runtime = NumpyRuntime(random_checkpoint(ModelConfig(50_000, 8, 16, 1, 2, 1, 4, 512)))
    tracemalloc.start()
    runtime.score(np.ones((2, 513), np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * LOGITS_AT_ONCE < 4 * 2 * 512 * 50_000


def test_a_file_runs_like_the_arrays_it_was_written_from(tiny_model) -> None:
    config = load(tiny_model).config
    from_file = NumpyRuntime(load(tiny_model)).prefill([1, 2, 3])
    from_memory = NumpyRuntime(random_checkpoint(config)).prefill([1, 2, 3])
    assert np.array_equal(from_file, from_memory)


def test_a_gate_far_below_zero_is_shut_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    checkpoint = random_checkpoint(ModelConfig(200, 32, 64, 1, 2, 2, 16, 8))
    checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"][:] *= 1e4
    assert np.isfinite(NumpyRuntime(checkpoint).prefill([1, 2, 3])).all()
    assert not recwarn.list


def test_memory_holds_each_weight_once(tmp_path) -> None:
    """Peak of what numpy allocates while loading: the model's size and a little."""
    import tracemalloc

    config = ModelConfig(4000, 256, 512, 4, 4, 4, 64, 64)
    save(tmp_path / "m.safetensors", random_checkpoint(config))
    checkpoint = load(tmp_path / "m.safetensors")
    tracemalloc.start()
    NumpyRuntime(checkpoint).prefill([1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * config.parameters + 4e6
