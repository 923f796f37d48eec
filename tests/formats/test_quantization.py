"""Quantized matrices: exact values computed by hand, error bounds, and files with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.errors import LLMError
from llmcli.formats import checkpoint, loading, quantization
from llmcli.formats.quantization import quantize
from tests.conftest import random_checkpoint

CONFIG = ModelConfig(300, 64, 96, 2, 4, 2, 16, 32, rope_theta=100.0)


def test_8_bits_by_hand():
    row = np.array([[127.0, -127.0, 1.0, 0.4, 0.6, *[0.0] * 27]], np.float32)
    result = quantize(row, 8)
    assert result.scales.tolist() == [[1.0]]
    assert result.codes[0, 0, :5].tolist() == [255, 1, 129, 128, 129]
    assert result.dequantize()[0, :5].tolist() == [127.0, -127.0, 1.0, 0.0, 1.0]


def test_4_bits_by_hand():
    """The weight of largest magnitude, of either sign, becomes code 0: -8 times the scale."""
    row = np.array([[16.0, -14.0, 2.0, 0.9, *[0.0] * 28]], np.float32)
    result = quantize(row, 4)
    assert result.scales.tolist() == [[-2.0]]
    assert result.codes.shape == (1, 1, 16)
    assert result.codes[0, 0, :2].tolist() == [0 | 15 << 4, 7 | 8 << 4]
    assert result.dequantize()[0, :4].tolist() == [16.0, -14.0, 2.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 100),
    st.sampled_from([8, 4]),
    st.integers(0, 1000),
    st.just(0.0) | st.floats(0.1, 1e3),
)
def test_every_weight_is_within_half_a_step(rows, columns, bits, seed, size):
    matrix = (np.random.default_rng(seed).normal(0, size, (rows, columns))).astype(np.float32)
    result = quantize(matrix, bits)
    assert result.bits == bits and result.columns == columns
    steps = np.repeat(np.abs(result.scales.astype(np.float32)), 32, axis=1)[:, :columns]
    # 4 bits hold -8 to 7 times the scale, so a value near 8 times the scale may be a whole step off
    assert (np.abs(result.dequantize() - matrix) <= steps * (0.52 if bits == 8 else 1.02) + 1e-6 * size).all()
    np.testing.assert_array_equal(result.dequantize([0, -1, 0]), result.dequantize()[[0, -1, 0]])


def test_a_quantized_file_is_a_model(tmp_path: Path) -> None:
    for kind in ["int8", "int4"]:
        whole = random_checkpoint(CONFIG, tokenizer_json="{}")
        small = replace(whole, quantization=kind)
        checkpoint.save(tmp_path / "small.safetensors", small)
        checkpoint.save(tmp_path / "whole.safetensors", whole)
        result = loading.load(tmp_path / "small.safetensors")
        assert result.quantization == kind, kind
        assert set(result.tensors) == set(whole.tensors), kind
        for name, shape in CONFIG.tensor_shapes().items():
            bits = quantization.bits_of(name, shape, kind)
            expected = quantize(whole.tensors[name], bits).dequantize() if bits else whole.tensors[name]
            np.testing.assert_array_equal(result.tensors[name], expected)
            np.testing.assert_array_equal(result.stacked([name]), expected)
        sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "whole")]
        assert sizes[0] < sizes[1] * (0.4 if kind == "int8" else 0.35), kind
        checkpoint.save(tmp_path / "again.safetensors", result)
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes(), kind


def test_codes_of_another_shape_are_an_error(tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "s.safetensors", replace(random_checkpoint(CONFIG, tokenizer_json="{}"), quantization="int8")
    )
    data = (tmp_path / "s.safetensors").read_bytes().replace(b'"quantization":"int8"', b'"quantization":"int4"')
    (tmp_path / "s.safetensors").write_bytes(data)
    with pytest.raises(LLMError, match=r"codes has shape \[64, 2, 32\]; its config requires \[64, 2, 16\]"):
        loading.load(tmp_path / "s.safetensors")
