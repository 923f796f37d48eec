"""Blocks of random bytes are decoded to the values of the gguf package."""

import numpy as np
import pytest

from llmcli.formats.gguf import blocks
from llmcli.formats.gguf.header import SUPPORTED_TYPES, TYPES

BLOCK_TYPES = [(name, size) for name, values, size in TYPES.values() if values > 1 and name in SUPPORTED_TYPES]


@pytest.mark.parametrize(("dtype", "size"), BLOCK_TYPES)
def test_values_are_those_of_the_gguf_package(dtype: str, size: int) -> None:
    gguf = pytest.importorskip("gguf", reason="needs the extra: pip install -e '.[gguf]'")
    data = np.random.default_rng(0).integers(0, 256, 500 * size, np.uint8)  # some scales are infinite or NaN
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
    decoded = blocks.decode(data.tobytes(), dtype)
    np.testing.assert_array_equal(decoded, expected)
    assert decoded.dtype == np.float32 and 0.9 < np.isfinite(decoded).mean() < 1
