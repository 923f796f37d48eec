"""Context shifts: a full cache without its oldest tokens is compared with a new cache of the tokens that it keeps."""

from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.models.ensemble import EnsembleRuntime
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx import runtime as onnx
from llmcli.models.runtime import Runtime, removed_by_shift
from llmcli.models.torch.runtime import TorchRuntime
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES

IDS = np.random.default_rng(1).integers(0, 300, 100).tolist()
ENOUGH = {"rtol": 1e-3, "atol": 1e-4}


def runtimes(config: ModelConfig) -> list[Runtime]:
    model = random_checkpoint(config)
    found: list[Runtime] = [NumpyRuntime(model), TorchRuntime(model, "cpu")]
    if onnx.is_installed() and not onnx.unsupported(config):
        found.append(onnx.OnnxRuntime(model, None))
    return found


def single_layers(config: ModelConfig) -> list[ModelConfig]:
    """Models of one layer, of each kind that a model has. In them, keys and values depend on their token alone."""
    layers = range(config.num_hidden_layers)
    kinds = {(config.layer_types[i : i + 1], config.no_rope_layers[i : i + 1]) for i in layers}
    return [replace(config, num_hidden_layers=1, layer_types=types, no_rope_layers=rotary) for types, rotary in kinds]


def shift_twice(runtime: Runtime) -> tuple[list[int], np.ndarray]:
    """Process IDS; return (tokens in the cache, logits after them)."""
    kept: list[int] = []
    for done, token in enumerate(IDS):
        if runtime.length == runtime.context:
            removed = runtime.shift(IDS[:done])
            del kept[removed.start : removed.stop]
            assert runtime.length == len(kept) < runtime.context
        logits = runtime.step(token)
        kept.append(token)
    return kept, logits


@pytest.mark.parametrize("name", SHAPES)
def test_a_cache_without_its_oldest_tokens_is_that_of_the_others(name: str) -> None:
    for config in single_layers(SHAPES[name]):
        for runtime in runtimes(config):
            kept, logits = shift_twice(runtime)
            runtime.rewind()
            np.testing.assert_allclose(logits, runtime.prefill(kept), **ENOUGH, err_msg=type(runtime).__name__)


@pytest.mark.parametrize("name", SHAPES)
def test_all_runtimes_remove_the_same_tokens(name: str) -> None:
    (kept, logits), *others = map(shift_twice, runtimes(SHAPES[name]))
    first = 0 if SHAPES[name].architecture.learned_positions else 4
    assert kept[:first] == IDS[:first] and kept[first:] == IDS[len(IDS) - len(kept) + first :]
    for other, its_logits in others:
        assert other == kept
        np.testing.assert_allclose(its_logits, logits, **ENOUGH)


def test_the_first_tokens_and_the_newest_stay() -> None:
    for length in range(1, 2000):
        removed = removed_by_shift(length)
        assert 0 <= removed.start <= 4 and removed.start < removed.stop <= max(1, length // 2)
    assert removed_by_shift(1024) == range(4, 132)


def test_texts_that_are_processed_together() -> None:
    """Also when the shifted cache is in a slot."""
    alone = NumpyRuntime(random_checkpoint(SHAPES["grouped"]))
    first, second = alone.fork(), alone.fork()
    for done, token in enumerate(IDS):
        for runtime in (alone, first):
            if runtime.length == runtime.context:
                runtime.shift(IDS[:done])
        if second.length == second.context:
            second.rewind(7)
        expected = alone.step(token)
        logits, _ = first.step_batch([first, second], [token, IDS[-1 - done]])
        np.testing.assert_allclose(logits, expected, **ENOUGH)


def test_an_ensemble_of_equal_models_predicts_as_one_of_them() -> None:
    model = random_checkpoint(SHAPES["grouped"])
    kept, logits = shift_twice(NumpyRuntime(model))
    together, log_probabilities = shift_twice(EnsembleRuntime([NumpyRuntime(model), NumpyRuntime(model)]))
    assert together == kept
    relative = logits - log_probabilities
    np.testing.assert_allclose(relative, relative[0], **ENOUGH)


def test_an_ensemble_with_learned_positions_processes_its_newer_half_again() -> None:
    models = [random_checkpoint(config) for name, config in SHAPES.items() if name.startswith(("grouped", "gpt2"))]
    ensemble = EnsembleRuntime([NumpyRuntime(model) for model in models])
    kept, log_probabilities = shift_twice(ensemble)
    ensemble.rewind()
    np.testing.assert_allclose(ensemble.prefill(kept), log_probabilities, **ENOUGH)
