"""Quantized matrices: each block of 32 weights in a row has a scale, and a weight is a small integer times
the scale.

int8 uses 8 bits per weight. int4 uses 4 bits in the layers, and 8 bits in the input and output embeddings,
where 4 bits would cost the most quality (measured: tests/benchmarks/LOG.md). onnxruntime's MatMulNBits reads
this layout without conversion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llmcli.config import EMBEDDING, HEAD, POSITIONS, ModelConfig, Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcli.formats.safetensors.dtypes import Array

BLOCK = 32  # weights that share a scale
MAX_FLOAT16 = 65504.0  # larger weights need another data type
# suffixes of a matrix's name in a file
CODES = ".codes"
SCALES = ".scales"
_ZERO_CODE = {8: 128, 4: 8}  # bits -> code for 0


class QuantizedMatrix(NamedTuple):
    """A matrix [rows, columns] in blocks; the last block of a row is padded."""

    # [rows, blocks, 32], or [rows, blocks, 16]: two 4-bit codes per byte, low nibble first
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]  # [rows, blocks]
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return len(self.codes), self.columns

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return int(8 * self.codes.shape[-1] // BLOCK)

    def dequantize(self, rows: Any = slice(None)) -> Array:
        """Return the values of all rows, or of the rows indexed by `rows`, [..., columns]."""
        import numpy as np

        codes = self.codes[rows]
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], BLOCK)
        values = codes.astype(np.float32)
        values -= _ZERO_CODE[self.bits]
        values *= self.scales[rows][..., None]
        return values.reshape(*values.shape[:-2], -1)[..., : self.columns]


def quantize(matrix: Array, bits: int) -> QuantizedMatrix:
    """Round each weight of a matrix [rows, columns] to the nearest code of 8 or 4 `bits`. The scale of a
    block maps its largest weight in magnitude to an extreme value: 127 or -127 in 8 bits, -8 in 4 bits."""
    import numpy as np

    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    values = np.zeros((rows, blocks * BLOCK), np.float32)
    values[:, :columns] = matrix
    values = values.reshape(rows, blocks, BLOCK)
    if bits == 8:
        scales = (np.abs(values).max(axis=-1) / 127).astype(np.float16)
    else:
        largest = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        scales = (largest / -8).astype(np.float16)
    with np.errstate(divide="ignore"):
        factors = np.where(scales == 0, 0, 1 / scales.astype(np.float32)).astype(np.float32)
    values *= factors[..., None]
    zero = _ZERO_CODE[bits]
    codes = np.clip(np.rint(values, out=values) + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return QuantizedMatrix(codes, scales, columns)


def quantize_rows(matrix: Array) -> tuple[NDArray[np.int8], Array]:
    """Round each weight of a matrix [rows, columns] to 8 bits, with one scale per row: (codes, scales
    [rows])."""
    import numpy as np

    scales = (np.abs(matrix).max(axis=-1) / 127).astype(np.float32)
    codes = np.zeros_like(matrix)
    np.divide(matrix, scales[:, None], out=codes, where=scales[:, None] > 0)
    return np.rint(codes).clip(-127, 127).astype(np.int8), scales


def bits_of(name: str, shape: Shape, scheme: str | None) -> int:
    """Return the bits per weight of a tensor under a scheme ("int8" or "int4"); 0 if the tensor is not
    quantized."""
    if scheme is None or len(shape) != 2:
        return 0
    return 8 if scheme == "int8" or name in (EMBEDDING, HEAD, POSITIONS) else 4


def stored_tensors(config: ModelConfig, scheme: str | None) -> dict[str, tuple[str, Shape]]:
    """Return (dtype, shape) of each tensor in a file, by name. F32 stands for any unquantized dtype."""
    tensors: dict[str, tuple[str, Shape]] = {}
    for name, shape in config.tensor_shapes().items():
        bits = bits_of(name, shape, scheme)
        if bits:
            blocks = -(-shape[1] // BLOCK)
            tensors[name + CODES] = "U8", (shape[0], blocks, BLOCK * bits // 8)
            tensors[name + SCALES] = "F16", (shape[0], blocks)
        else:
            tensors[name] = "F32", shape
    return tensors
