"""The onnxruntime graphs on quantized weights, compared with the numpy runtime on the dequantized weights."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import ModelConfig
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import bits_of, quantize
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx.runtime import OnnxRuntime, unsupported
from tests.conftest import random_checkpoint
from tests.models.decoders import SHAPES
from tests.platforms import needs_onnxruntime

QWEN3 = ModelConfig(300, 64, 96, 2, 4, 2, 16, 600, rope_theta=100.0)
KINDS = {
    name: replace(config, head_dim=16, max_position_embeddings=600, rope_theta=100.0)
    for name, config in SHAPES.items()
    if not unsupported(replace(config, head_dim=16))
}
IDS = np.random.default_rng(1).integers(0, 300, 400).tolist()


def dequantized(model: Checkpoint, kind: str) -> NumpyRuntime:
    """The numpy runtime on the dequantized weights."""
    shapes = model.config.tensor_shapes()
    bits = {name: bits_of(name, shape, kind) for name, shape in shapes.items()}
    values = {n: quantize(model.tensors[n], b).dequantize() if b else model.tensors[n] for n, b in bits.items()}
    return NumpyRuntime(replace(model, tensors=values))


@needs_onnxruntime
def test_logits_are_close_to_those_of_the_numpy_runtime() -> None:
    for name in list(KINDS):
        for kind in ["int8", "int4"]:
            model = random_checkpoint(KINDS[name])
            quantized, reference = OnnxRuntime(model, kind), dequantized(model, kind)
            for length in (1, 2, 300):
                quantized.rewind()
                reference.rewind()
                logits, expected = quantized.prefill(IDS[:length]), reference.prefill(IDS[:length])
                assert np.sqrt(np.mean((logits - expected) ** 2)) < 0.03 * expected.std()


@needs_onnxruntime
def test_float32_logits_are_those_of_the_numpy_runtime() -> None:
    for name in list(KINDS):
        model = random_checkpoint(KINDS[name])
        runtime, reference = OnnxRuntime(model, None), NumpyRuntime(model)
        for length in (1, 2, 300):
            runtime.rewind()
            reference.rewind()
            expected = reference.prefill(IDS[:length])
            np.testing.assert_allclose(runtime.prefill(IDS[:length]), expected, atol=1e-4 * expected.std())
            for draft in ([7, 8, 9, 7], [8, 7, 9, 8]):
                expected = reference.logits(draft)
                np.testing.assert_allclose(runtime.logits_of_draft(draft), expected, atol=1e-4 * expected.std())
                for one in (runtime, reference):
                    one.undo_step(length)
            expected = reference.step(7)
            np.testing.assert_allclose(runtime.step(7), expected, atol=1e-4 * expected.std())
        forks, references = [[one.fork(length) for length in (3, 7, 300)] for one in (runtime, reference)]
        expected = NumpyRuntime.step_batch(references, IDS[:3])
        np.testing.assert_allclose(OnnxRuntime.step_batch(forks, IDS[:3]), expected, atol=1e-4 * expected.std())


@needs_onnxruntime
def test_scores_are_close_to_those_of_the_numpy_runtime() -> None:
    model = random_checkpoint(QWEN3)
    quantized, reference = OnnxRuntime(model, "int8"), dequantized(model, "int8")
    windows = np.array([IDS[:301], IDS[50:351]])
    losses, _ = quantized.score(windows)
    expected, _ = reference.score(windows)
    assert losses.shape == expected.shape == (2, 300)
    assert losses.mean() == pytest.approx(expected.mean(), rel=0.005)


@needs_onnxruntime
def test_a_small_quantized_model_gives_the_same_logits_with_its_own_thread_and_the_shared_threads() -> None:
    program = """
import numpy as np
from llmcli.models.onnx.runtime import OnnxRuntime
from tests.conftest import random_checkpoint
from tests.models.onnx.test_runtime import IDS, QWEN3

model = random_checkpoint(QWEN3)
first, larger, last = (OnnxRuntime(model, scheme) for scheme in ("int8", None, "int8"))
larger.prefill(IDS[:20])
np.testing.assert_array_equal(first.prefill(IDS[:20]), last.prefill(IDS[:20]))
np.testing.assert_array_equal(first.step(7), last.step(7))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@needs_onnxruntime
def test_a_step_after_a_longer_score_uses_rotary_tables_that_still_exist() -> None:
    model = OnnxRuntime(random_checkpoint(QWEN3), "int8")
    before = model.prefill(IDS[:1])
    bound = model._binding(1)._tables
    model.score(np.array([IDS[:351]]))  # replaces the tables of the network
    assert model._network.rotary_tables(1) is not bound
    assert model._binding(1)._tables is bound  # a value must live as long as it is bound
    model.rewind()
    np.testing.assert_array_equal(model.prefill(IDS[:1]), before)


@needs_onnxruntime
def test_rotary_tables_grow_as_positions_are_used() -> None:
    model = random_checkpoint(QWEN3)
    quantized = OnnxRuntime(model, "int8")
    claimed = OnnxRuntime(replace(model, config=replace(QWEN3, max_position_embeddings=10**9)), "int8")
    for first, last in ((0, 1), (1, 120), (120, 121), (121, 400)):
        np.testing.assert_array_equal(claimed.prefill(IDS[first:last]), quantized.prefill(IDS[first:last]))
    assert [table.shape()[0] for table in claimed._network.rotary_tables(1)] == [400, 400]
    window = np.array([IDS[:351]])
    np.testing.assert_array_equal(claimed.score(window)[0], quantized.score(window)[0])
    np.testing.assert_array_equal(claimed.step(7), quantized.step(7))
