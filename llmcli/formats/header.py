"""The header of a model file, in one representation for all formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcli.config import Shape
from llmcli.formats.metadata import Json

if TYPE_CHECKING:
    from llmcli.formats.safetensors.dtypes import Values

# PEFT's config of adapters: its file, and its key in the metadata of adapters that this program writes
PEFT_CONFIG = "adapter_config.json"


class TensorInfo(NamedTuple):
    """A tensor as described in the header."""

    name: str
    dtype: str
    shape: Shape
    start: int  # position of its first byte in the file
    end: int  # position after its last byte
    path: Path | None = None  # file with the tensor, if the model has several files
    factor: float = 1.0  # reading computes factor * stored value + offset
    offset: float = 0.0
    stored_name: str = ""  # name in the file
    # picks this tensor's elements out of the stored tensor
    view: Callable[[Values], Values] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether its values are read as they are stored."""
        return self.factor == 1 and self.offset == 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def rows(self, first: int, last: int, rows: int | None = None) -> TensorInfo:
        """Return rows `first` to `last` - 1 as a separate tensor. `rows` is the number of stored rows
        (default: shape[0])."""
        row_bytes = (self.end - self.start) // (rows or self.shape[0])
        return self._replace(
            shape=(last - first, *self.shape[1:]),
            start=self.start + first * row_bytes,
            end=self.start + last * row_bytes,
            view=itemgetter(slice(first, last)),
        )


@dataclass(frozen=True)
class Header:
    """The tensors and metadata that a file declares."""

    path: Path
    file_bytes: int
    data_start: int
    tensors: dict[str, TensorInfo]  # in the order of the file
    metadata: Json  # texts; of a GGUF file, tokenizer.json is parsed
    form: str = "safetensors file"
    # for formats with their own data types
    decode: Callable[[TensorInfo], Iterator[Values]] | None = None
    problem: str = ""  # why this program can show the file but not run its model; "" if it can
    open_files: dict[Path, Any] = field(default_factory=dict, repr=False, compare=False)  # see file.py

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def is_ours(self) -> bool:
        """Whether this program wrote the file."""
        return "llmcli" in self.metadata
