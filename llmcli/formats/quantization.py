"""Matrices in few bits: blocks of 32 numbers in a row share a scale, and each is a small whole number times it.

int8: 1 byte a number; int4: 4 bits in the layers, 8 in what reads and writes tokens, where the loss would be largest
(measured: tests/benchmarks/LOG.md). The layout is that of onnxruntime's MatMulNBits, whose products run on it as it is.

Knows numpy only.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcli.config import ModelConfig

BLOCK = 32
CODES, SCALES = ".codes", ".scales"  # behind the name of a matrix, in a file
_MIDDLE = {8: 128, 4: 8}  # the code of zero


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns]; the last block of a row may be filled up."""

    codes: NDArray[np.uint8]  # [rows, blocks, 32 or 16]: of 4 bits two in a byte, the first in its lower half
    scales: NDArray[np.float16]  # [rows, blocks]
    columns: int

    @property
    def bits(self) -> int:
        return 8 * self.codes.shape[-1] // BLOCK

    def rows(self, which: Any) -> NDArray[np.float32]:
        """Some rows as numbers: [..., columns]."""
        codes = self.codes[which]
        if self.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], BLOCK)
        values = codes.astype(np.float32)
        values -= _MIDDLE[self.bits]
        values *= self.scales[which][..., None]
        return values.reshape(*values.shape[:-2], -1)[..., : self.columns]

    def matrix(self) -> NDArray[np.float32]:
        return self.rows(slice(None))


def quantize(matrix: NDArray[np.float32], bits: int) -> Blocks:
    """The nearest codes; each block's scale makes its largest number the last code: 127, or 8 below zero."""
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
    middle = _MIDDLE[bits]
    codes = np.clip(np.rint(values, out=values) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return Blocks(codes, scales, columns)


def bits_of(name: str, shape: tuple[int, ...], kind: str | None) -> int:
    """In how many bits a kind keeps a tensor; 0: as it is.

    >>> [bits_of(n, (64, 64), "int4") for n in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight")]
    [8, 4]
    """
    if kind is None or len(shape) != 2:
        return 0
    outside = name in ("model.embed_tokens.weight", "lm_head.weight")
    return 8 if kind == "int8" or outside else 4


def stored_shapes(config: ModelConfig, kind: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor of a file: name -> (type, shape), where F32 stands for what is no code and no scale."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in config.tensor_shapes().items():
        bits = bits_of(name, shape, kind)
        if bits:
            blocks = -(-shape[1] // BLOCK)
            found[name + CODES] = "U8", (shape[0], blocks, BLOCK * bits // 8)
            found[name + SCALES] = "F16", (shape[0], blocks)
        else:
            found[name] = "F32", shape
    return found


def stored_bytes(config: ModelConfig, kind: str | None) -> int:
    """Of the tensors in a file."""
    sizes = {"U8": 1, "F16": 2, "F32": 4}
    return sum(sizes[dtype] * math.prod(shape) for dtype, shape in stored_shapes(config, kind).values())
