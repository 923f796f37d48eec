"""The graph on weights in few bits gives what the readable one gives on the same weights."""

from dataclasses import replace

import numpy as np
import pytest

from llmcli.config import ModelConfig, RopeScaling
from llmcli.errors import LLMError
from llmcli.formats.checkpoint import Checkpoint
from llmcli.formats.quantization import bits_of, quantize
from llmcli.models.numpy_runtime import NumpyRuntime
from llmcli.models.onnx_runtime import OnnxRuntime, is_installed
from tests.conftest import random_checkpoint

QWEN3 = ModelConfig(300, 64, 96, 2, 4, 2, 16, 600, rope_theta=100.0)
KINDS = {
    "qwen3": QWEN3,
    "qwen2": replace(QWEN3, model_type="qwen2", tie_word_embeddings=True),
    "llama": replace(QWEN3, model_type="llama", num_key_value_heads=4, head_dim=32),
    "llama 3": replace(QWEN3, model_type="llama", rope_scaling=RopeScaling("llama3", 8.0)),
}
IDS = np.random.default_rng(1).integers(0, 300, 400).tolist()


def on_the_same_weights(model: Checkpoint, kind: str) -> NumpyRuntime:
    """The readable runtime on what the weights in few bits stand for."""
    shapes = model.config.tensor_shapes()
    bits = {name: bits_of(name, shape, kind) for name, shape in shapes.items()}
    values = {n: quantize(model.tensors[n], b).dequantize() if b else model.tensors[n] for n, b in bits.items()}
    return NumpyRuntime(replace(model, tensors=values))


needed = pytest.mark.skipif(not is_installed(), reason="needs onnxruntime and onnx: pip install -e '.[fast]'")


@needed
@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_logits_are_those_of_the_readable_runtime(name: str, kind: str) -> None:
    """But for what the products multiply, which they round to eight bits."""
    model = random_checkpoint(KINDS[name])
    fast, readable = OnnxRuntime(model, kind), on_the_same_weights(model, kind)
    for length in (1, 2, 300):
        fast.rewind()
        readable.rewind()
        found, wanted = fast.prefill(IDS[:length]), readable.prefill(IDS[:length])
        assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.03 * wanted.std()


@needed
def test_steps_rewinding_and_growing_are_the_whole() -> None:
    model = random_checkpoint(QWEN3)
    fast = OnnxRuntime(model, "int8")
    whole = fast.prefill(IDS[:300])
    fast.rewind()
    fast.prefill(IDS[:100])
    fast.prefill(IDS[200:400])
    fast.rewind(100)
    for token in IDS[100:300]:
        stepped = fast.step(token)
    assert fast.length == 300
    assert np.sqrt(np.mean((stepped - whole) ** 2)) < 0.03 * whole.std()


@needed
def test_score_is_that_of_the_readable_runtime_and_leaves_the_cache_alone() -> None:
    model = random_checkpoint(QWEN3)
    fast, readable = OnnxRuntime(model, "int8"), on_the_same_weights(model, "int8")
    windows = np.array([IDS[:301], IDS[50:351]])
    before = fast.prefill(IDS[:10])
    nats, _ = fast.score(windows)
    wanted, _ = readable.score(windows)
    assert nats.shape == wanted.shape == (2, 300)
    assert nats.mean() == pytest.approx(wanted.mean(), rel=0.005)
    fast.rewind(9)
    np.testing.assert_allclose(fast.step(IDS[9]), before, atol=0.05 * before.std())


@needed
def test_what_does_not_fit_the_context_is_told() -> None:
    fast = OnnxRuntime(random_checkpoint(replace(QWEN3, max_position_embeddings=8)), "int8")
    fast.prefill(IDS[:8])
    with pytest.raises(LLMError, match="9 tokens do not fit the context length of 8"):
        fast.step(1)
    with pytest.raises(ValueError, match="at least one"):
        fast.prefill([])


@needed
def test_heads_that_the_library_does_not_turn_are_told() -> None:
    with pytest.raises(LLMError, match="head size of 8"):
        OnnxRuntime(random_checkpoint(replace(QWEN3, head_dim=8)), "int8")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LLMError, match=r"pip install 'llmcli\[fast\]'"):
        OnnxRuntime(random_checkpoint(QWEN3), "int8")


@needed
def test_rotary_tables_grow_with_what_is_used() -> None:
    """A config may claim a billion positions; the tables hold those that were used, and the answer is the same."""
    model = random_checkpoint(QWEN3)
    fast = OnnxRuntime(model, "int8")
    claimed = OnnxRuntime(replace(model, config=replace(QWEN3, max_position_embeddings=10**9)), "int8")
    for first, last in ((0, 1), (1, 120), (120, 121), (121, 400)):
        np.testing.assert_array_equal(claimed.prefill(IDS[first:last]), fast.prefill(IDS[first:last]))
    assert [table.shape()[0] for table in claimed.rotary] == [400, 400]
    window = np.array([IDS[:351]])
    np.testing.assert_array_equal(claimed.score(window)[0], fast.score(window)[0])
    np.testing.assert_array_equal(claimed.step(7), fast.step(7))
