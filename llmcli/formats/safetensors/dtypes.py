"""The data types of tensors: their names in a safetensors file, in numpy and in torch, and their sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Values = NDArray[Any]

BYTES_PER_ELEMENT = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WEIGHT_DTYPES = tuple(TORCH_NAMES)  # data types of a model's tensors, unless quantized
NUMPY_NAMES = TORCH_NAMES | {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}


def stored_bytes(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Return the size in a file of tensors of these (dtype, shape)."""
    return sum(math.prod(shape) * BYTES_PER_ELEMENT[dtype] for dtype, shape in tensors)


def is_readable(dtype: str) -> bool:
    return dtype in NUMPY_NAMES


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return numpy's data type for the elements of a tensor."""
    import numpy as np

    if dtype == "BF16":
        import ml_dtypes  # noqa: F401  # adds bfloat16 to numpy; takes milliseconds to import

    return np.dtype(NUMPY_NAMES[dtype])


def encode(array: Values, dtype: str) -> NDArray[np.uint8]:
    """Return an array's bytes in a file; values are rounded to nearest, ties to even."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, numpy_dtype(dtype)).reshape(-1).view(np.uint8)
