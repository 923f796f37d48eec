"""The data types of tensors: their names in a safetensors file, in numpy and in torch, and their sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BYTES_PER_ELEMENT = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WEIGHT_DTYPES = tuple(TORCH_NAMES)  # data types of a model's tensors, unless quantized
_NUMPY_NAMES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


def stored_bytes(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Return the size in a file of tensors of these (dtype, shape)."""
    return sum(math.prod(shape) * BYTES_PER_ELEMENT[dtype] for dtype, shape in tensors)


def is_readable(dtype: str) -> bool:
    return dtype in _NUMPY_NAMES


def decode(data: bytes, dtype: str) -> NDArray[Any]:
    """Return the elements of a tensor in a file as a flat array; bfloat16 becomes float32."""
    import numpy as np

    elements = np.frombuffer(data, _NUMPY_NAMES[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return np.left_shift(elements, 16, dtype=np.uint32).view(np.float32)
    return elements


def encode(array: NDArray[Any], dtype: str) -> NDArray[np.uint8]:
    """Return an array's bytes in a file; bfloat16 is rounded to nearest, ties to even."""
    import numpy as np

    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint32)
        rounded = (bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        upper = np.where(is_nan, bits >> 16 | 0x40, rounded)  # rounding could turn a NaN into infinity
        return upper.astype("<u2").view(np.uint8)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, _NUMPY_NAMES[dtype]).reshape(-1).view(np.uint8)
