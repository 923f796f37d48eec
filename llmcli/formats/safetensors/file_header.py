"""The header of a model file: its tensors and its metadata, in one form for all file formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # position of its first byte in the file
    end: int  # position after its last byte
    path: Path | None = None  # of the file that holds it, if the model has several

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors and metadata that a file declares."""

    path: Path
    file_bytes: int
    data_start: int
    tensors: dict[str, TensorInfo]  # in the order of the file
    metadata: dict[str, str]
    form: str = "safetensors file"
    decode: Callable[[TensorInfo], Iterator[NDArray[Any]]] | None = None  # for formats with their own data types
    problem: str = ""  # why this program can show the file but not run its model, if so

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def is_ours(self) -> bool:
        """Whether this program wrote the file."""
        return "llmcli" in self.metadata
