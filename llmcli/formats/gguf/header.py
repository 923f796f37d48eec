"""The header of a GGUF file (version 2 or 3, ggml's docs/gguf.md). Files may be untrusted, so all sizes are
limited."""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from llmcli.config import Shape
from llmcli.errors import LLMError
from llmcli.formats.header import Header, TensorInfo
from llmcli.formats.open_file import GGUF_MAGIC

MAX_COUNT = 1 << 17  # tensors or fields
MAX_HEADER_BYTES = 100_000_000  # several times the longest published header
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY_ENTRIES = 1 << 24  # limit for all arrays together
MAX_DIMENSIONS = 4  # per tensor
MAX_ALIGNMENT = 1 << 20  # bytes
# GGML's type number -> (name, elements per block, bytes per block)
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
# the types of tensors in a model that can run; a file with others can be inspected
SUPPORTED_TYPES = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "BF16",
]
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
# types of a field's value besides _SCALARS
_STRING = 8
_ARRAY = 9


def parse(path: Path, data: mmap.mmap) -> Header:
    """Parse a header. Tensors have GGUF's own names, and the metadata is the fields. Raises LLMError for an
    unknown tensor type, ValueError or struct.error for a damaged file."""
    parser = _Parser(data)
    version = parser.number("<I")
    if version not in (2, 3):
        raise LLMError(f"a GGUF file of version {version}; 2 and 3 are supported")
    count = parser.count()
    fields = {parser.text(): parser.value(parser.number("<I")) for _ in range(parser.count())}
    entries = [parser.tensor_entry() for _ in range(count)]
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT:
        raise ValueError(f"its alignment is {alignment!r}")
    data_start = -(-parser.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_number, offset in entries:
        if name in tensors:
            raise ValueError(f"tensor {name[:100]!r} occurs twice")
        if type_number not in TYPES:
            raise unsupported_type(name, f"number {type_number}")
        dtype, block, size = TYPES[type_number]
        if math.prod(shape) % block or (shape and shape[-1] % block):
            raise ValueError(f"tensor {name[:100]!r} is not a whole number of {dtype} blocks")
        start = data_start + offset
        tensors[name] = TensorInfo(name, dtype, shape, start, start + math.prod(shape) // block * size)
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < position:
            raise ValueError(f"tensor {tensor.name[:100]!r} overlaps another")
        position = tensor.end
    if position > len(data):
        raise ValueError(
            f"it is cut off: the tensors end at byte {position:,}, but the file ends at {len(data):,}"
        )
    return Header(path, len(data), data_start, tensors, fields, "GGUF file")


def unsupported_type(name: str, dtype: str) -> LLMError:
    """Return the error for a tensor of a type whose values cannot be read."""
    supported = ", ".join(SUPPORTED_TYPES)
    return LLMError(f"tensor {name[:100]} is of type {dtype}, which is not supported; {supported} are")


class _Parser:
    """Reads the binary header. Lengths are checked against the file before they are used. Raises
    ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = len(GGUF_MAGIC)
        self._end = min(len(data), MAX_HEADER_BYTES)
        self._array_entries = 0

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._require(size)
        (value,) = struct.unpack_from(form, self._data, self.position)
        self.position += size
        return value

    def count(self) -> int:
        """Read the number of tensors or fields."""
        count = self.number("<Q")
        if count > MAX_COUNT:
            raise ValueError(
                f"its header has {count:,} entries of one kind; at most {MAX_COUNT:,} are supported"
            )
        return int(count)

    def text(self) -> str:
        (text,) = self._texts(1)
        return text

    def tensor_entry(self) -> tuple[str, Shape, int, int]:
        """Read (name, shape, type number, offset) of a tensor."""
        name = self.text()
        dimensions = self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name[:100]!r} has {dimensions} dimensions")
        shape = tuple(reversed([self.number("<Q") for _ in range(dimensions)]))
        return name, shape, self.number("<I"), self.number("<Q")

    def value(self, value_type: int) -> Any:
        """Read the value of a field."""
        if value_type in _SCALARS:
            return self.number(_SCALARS[value_type])
        if value_type == _STRING:
            return self.text()
        if value_type != _ARRAY:
            raise ValueError(f"a value in its header is of type {value_type}")
        entry_type = self.number("<I")
        count = self.number("<Q")
        # nested arrays are refused, as in ggml; they would also be slow to read
        if entry_type != _STRING and entry_type not in _SCALARS:
            raise ValueError(f"an array in its header has entries of type {entry_type}")
        size = struct.calcsize(_SCALARS.get(entry_type, "<Q"))  # a string begins with its length
        self._require(count * size)
        self._array_entries += count
        if self._array_entries > MAX_ARRAY_ENTRIES:
            raise ValueError(f"the arrays in its header have more than {MAX_ARRAY_ENTRIES:,} entries")
        if entry_type in _SCALARS:
            entries = np.frombuffer(self._data, _SCALARS[entry_type], count, self.position).tolist()
            self.position += count * size
            return entries
        return self._texts(count)

    def _texts(self, count: int) -> list[str]:
        """Read several strings. This is fast, since a vocabulary with its merges has 400,000."""
        data = self._data
        end = self._end
        unpack = struct.Struct("<Q").unpack_from
        texts = []
        position = self.position
        for _ in range(count):
            start = stop = position + 8
            if start <= end:
                stop += unpack(data, position)[0]
            if stop > end:
                self._require(stop - self.position)
            if stop - start > MAX_STRING_BYTES:
                raise ValueError(f"a string in its header has {stop - start:,} bytes")
            texts.append(data[start:stop])
            position = stop
        self.position = position
        try:
            return [*map(bytes.decode, texts)]
        except UnicodeDecodeError:
            return [text.decode("utf-8", "replace") for text in texts]

    def _require(self, size: int) -> None:
        """Raise ValueError unless the header has this many more bytes."""
        if size > len(self._data) - self.position:
            raise ValueError("it is cut off inside its header")
        if size > self._end - self.position:
            raise ValueError(f"its header has more than {MAX_HEADER_BYTES:,} bytes")
